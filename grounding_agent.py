"""Grounding: point at the thing that an instruction names, in a screenshot or a radiograph.

`python grounding_agent.py` solves one task and prints instruction, answer, boxes and reward: the debug mode.
"""

from __future__ import annotations

from typing import Any

import agentlightning as agl

from vision_rl.client import chat
from vision_rl.messages import image_url, user_message
from vision_rl.prompts import GROUNDING_PROMPT
from vision_rl.rewards import Reward
from vision_rl.rewards.grounding import grounding_reward


async def answer(task: dict[str, Any], llm: agl.LLM) -> tuple[str, Reward]:
    """Ask the model and score its reply: (reply, reward). Evaluation and baselines call this too."""
    settings = task["settings"]
    images = [image_url(path, settings["image_transport"]) for path in task["image_paths"]]
    completion = await chat(
        llm.endpoint,
        llm.model,
        [user_message(GROUNDING_PROMPT.format(instruction=task["question"]), images)],
        timeout_seconds=settings["timeout_seconds"],
        **{"max_tokens": settings["max_tokens"], **llm.sampling_parameters},
    )
    reply = completion.choices[0].message.content or ""
    return reply, score(task, reply)


def score(task: dict[str, Any], reply: str) -> Reward:
    """The reward of a reply: boxes in the format and the coordinate space that the prompt asked for, against the row's."""
    settings = task["settings"]
    width, height = task["image_sizes"][0]
    return grounding_reward(
        reply,
        task["boxes"],
        answer_format=settings["answer_format"],
        family=settings["family"],
        original_size=(width, height),
        processed_size=(width, height),
        kind=settings["reward"],
    )


@agl.rollout
async def grounding_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    """One rollout; the one reward that it emits is the number that evaluation prints."""
    _, reward = await answer(task, llm)
    agl.emit_reward({"reward": reward.value, **reward.components}, primary_key="reward")


if __name__ == "__main__":
    from vision_rl.debug import main

    main(answer, task="grounding")
