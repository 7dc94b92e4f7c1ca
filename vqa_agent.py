"""Visual question answering: one image (or several), one question, one short answer.

`python vqa_agent.py` answers one task and prints question, answer and reward: the debug mode.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vision_rl.agent.client import LLM, client_for, was_cut
from vision_rl.agent.media import media_message
from vision_rl.agent.prompts import vqa_text
from vision_rl.rewards import Reward
from vision_rl.rewards.judge import shared_judge
from vision_rl.rewards.terms import terms_of
from vision_rl.rewards.user import is_user_reward, rewarded
from vision_rl.rewards.vqa import answer_metric, best_answer, vqa_reward
from vision_rl.rewards.vqa_accuracy import textvqa_accuracy


async def answer(task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """Ask the model and score its reply: (reply, reward). Training, workers, evaluation and baselines call this."""
    settings = task["settings"]
    completion = await client_for(llm, settings).chat.completions.create(
        model=llm.model,
        messages=[media_message(vqa_text(task["question"], task.get("choices", ())), task)],
        **{"max_tokens": settings["max_tokens"], **llm.sampling_parameters},
    )
    reply, cut = completion.choices[0].message.content or "", was_cut(completion)
    if settings["reward"] == "judge":
        judge = shared_judge()
        return reply, await judge.areward(task["question"], reply, task["answers"], truncated=cut)
    return reply, score(task, reply, truncated=cut)


def score(task: Mapping[str, Any], reply: str, *, truncated: bool = False) -> Reward:
    """The reward of a reply, by the metric that the run's settings or the row name; the judge alone has to be asked."""
    kind, own = task["settings"]["reward"], is_user_reward(task["settings"]["reward"])
    reward = vqa_reward(
        reply,
        task["answers"],
        kind="vqa" if own else kind,
        metric=task.get("metric", ""),
        choices=task.get("choices", ()),
        meta=task.get("meta", {}),
        terms=terms_of(task["settings"]),
        truncated=truncated,
    )
    return rewarded(kind, reply, task, reward) if own else reward


def gold(task: Mapping[str, Any]) -> tuple[str, float]:
    """The reply of a perfect model and its score, which is below 1 where the annotators of a VQA row disagree."""
    metric = answer_metric(task["settings"]["reward"], task.get("metric", ""))
    if metric in ("vqa", "official_2021"):
        return best_answer(task["answers"])
    if metric == "textvqa":
        return best_answer(task["answers"], textvqa_accuracy)
    return task["answers"][0], 1.0


if __name__ == "__main__":
    from vision_rl.evaluation.debug import main

    main("vqa")
