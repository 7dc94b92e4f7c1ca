"""Visual question answering: one or several images, one question, one short answer.

python vqa_agent.py                      # asks the tiny model about a few rows: prompt, reply, reward
python train_agent.py --task vqa         # trains it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_rl.agent.client import client_for, thinking, was_cut
from vision_rl.agent.lightning import agl
from vision_rl.agent.media import media_message, show
from vision_rl.agent.prompts import VQA_PROMPT, vqa_text
from vision_rl.rewards.user import or_the_users
from vision_rl.rewards.vqa import KINDS, answer_metric, best_answer, vqa_reward
from vision_rl.rewards.vqa_accuracy import textvqa_accuracy
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task
from vision_rl.types import LLM, Reward


@agl.rollout
async def vqa_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    """One rollout: ask about the picture, emit the reward with its named components."""
    _, reward = await answer(task, llm)
    agl.emit_reward(reward.named(), primary_key="reward")


async def answer(task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """Ask the model and score its reply: (reply, reward). Training, workers, evaluation and baselines call this."""
    settings = AgentSettings.of(task)
    completion = await client_for(llm, settings).chat.completions.create(
        model=llm.model,
        messages=[media_message(vqa_text(task["question"], task.get("choices", ())), task)],
        **{"max_tokens": settings.max_tokens, **thinking(task), **llm.sampling_parameters},
    )
    reply, cut = completion.choices[0].message.content or "", was_cut(completion)
    if settings.reward == "judge":
        from vision_rl.rewards.judge import shared_judge

        shown = show(task["image_paths"], settings, task["image_sizes"]) if settings.judge.pictures else []
        seen = [picture.url for picture in shown]
        judged = shared_judge().areward(task["question"], reply, task["answers"], pictures=seen, truncated=cut)
        return reply, await judged
    return reply, score(task, reply, truncated=cut)


@or_the_users("vqa")
def score(task: Mapping[str, Any], reply: str, *, truncated: bool = False) -> Reward:
    """The reward of a reply, by the metric that the run's settings or the row name; the judge alone has to be asked."""
    settings = AgentSettings.of(task)
    return vqa_reward(
        reply,
        task["answers"],
        kind=settings.reward,
        metric=task.get("metric", ""),
        choices=task.get("choices", ()),
        meta=task.get("meta", {}),
        terms=settings.terms,
        truncated=truncated,
    )


def gold(task: Mapping[str, Any]) -> tuple[str, float]:
    """The reply of a perfect model and its score, which is below 1 where the annotators of a VQA row disagree."""
    metric = answer_metric(AgentSettings.of(task).reward, task.get("metric", ""))
    if metric in ("vqa", "official_2021"):
        return best_answer(task["answers"])
    if metric == "textvqa":
        return best_answer(task["answers"], textvqa_accuracy)
    return task["answers"][0], 1.0


TASK = Task(
    name="vqa",
    agent=vqa_agent,
    answer=answer,
    rewards=(*KINDS, "judge"),
    prompt=VQA_PROMPT,
    score=score,
    gold=gold,
    synthetic="vision_rl.tiny.tasks:vqa_example",
    measures="vision_rl.evaluation.metrics:VQA_MEASURES",
    breakdowns="vision_rl.evaluation.metrics:vqa_breakdowns",
    submission="vision_rl.evaluation.summary:submission",
)

if __name__ == "__main__":
    from vision_rl.evaluation.debug import main

    main("vqa")
