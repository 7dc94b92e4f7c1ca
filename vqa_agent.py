"""Visual question answering: one image (or several), one question, one short answer.

`python vqa_agent.py` answers one task and prints question, answer and reward: the debug mode.
"""

from __future__ import annotations

from typing import Any

from vision_rl.client import LLM, chat
from vision_rl.media import show
from vision_rl.messages import user_message
from vision_rl.prompts import VQA_PROMPT
from vision_rl.rewards import Reward
from vision_rl.rewards.judge import shared_judge
from vision_rl.rewards.vqa import vqa_reward


async def answer(task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """Ask the model and score its reply: (reply, reward). Evaluation and baselines call this too."""
    settings = task["settings"]
    images = [picture.url for picture in show(task["image_paths"], settings, task["image_sizes"])]
    completion = await chat(
        llm.endpoint,
        llm.model,
        [user_message(VQA_PROMPT.format(question=task["question"]), images)],
        timeout_seconds=settings["timeout_seconds"],
        **{"max_tokens": settings["max_tokens"], **llm.sampling_parameters},
    )
    reply = completion.choices[0].message.content or ""
    if settings["reward"] == "judge":
        return reply, await shared_judge().areward(task["question"], reply, task["answers"])
    return reply, vqa_reward(reply, task["answers"], kind=settings["reward"])


if __name__ == "__main__":
    from vision_rl.debug import main

    main(answer, task="vqa")
