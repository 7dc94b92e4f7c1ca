"""A task in one file: prompt, parser, reward, agent and made-up data. Change what is yours; docs/add-a-task.md explains it.

python data_utils.py verify --task FILE --file FOLDER/train.parquet
python FILE --endpoint URL --model NAME --data FOLDER/train.parquet --rows 3     # any OpenAI-compatible server
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageDraw

from vision_rl.agent.client import client_for
from vision_rl.agent.lightning import agl
from vision_rl.agent.media import show
from vision_rl.agent.messages import user_message
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task
from vision_rl.types import LLM, Reward

PROMPT = "{question}\nAnswer the question using a single word or phrase."
COLOURS = {"red": (214, 40, 40), "green": (40, 160, 70), "blue": (50, 90, 220), "yellow": (235, 200, 40)}


def parse(reply: str) -> str:
    """The answer in a reply: its last line, in lower case, without a full stop."""
    return (reply.strip().splitlines() or [""])[-1].strip().rstrip(".").lower()


def score(task: Mapping[str, Any], reply: str) -> Reward:
    """1 for an answer that is among the row's, else 0. A pure function: any text in, a finite number out."""
    predicted = parse(reply)
    right = float(predicted in [parse(answer) for answer in task["answers"]])
    return Reward(right, {"accuracy": right, "format/ok": float(bool(predicted))})


@agl.rollout
async def starter_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    """One rollout: ask about the picture, emit the reward with its named components."""
    _, reward = await answer(task, llm)
    agl.emit_reward(reward.named(), primary_key="reward")


async def answer(task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """Ask the model about the picture and score its reply."""
    settings = AgentSettings.of(task)
    pictures = [picture.url for picture in show(task["image_paths"], settings, task["image_sizes"])]
    completion = await client_for(llm, settings).chat.completions.create(
        model=llm.model,
        messages=[user_message(PROMPT.format(question=task["question"]), pictures)],
        **{"max_tokens": settings.max_tokens, **llm.sampling_parameters},
    )
    reply = completion.choices[0].message.content or ""
    return reply, score(task, reply)


def draw(rng: random.Random) -> tuple[Image.Image, dict[str, Any]]:
    """A picture of a coloured square and the fields of its row; instead of it, bring files of your own."""
    name = rng.choice(list(COLOURS))
    picture = Image.new("RGB", (84, 84), (240, 240, 240))
    left, top = rng.randint(4, 40), rng.randint(4, 40)
    ImageDraw.Draw(picture).rectangle((left, top, left + 36, top + 36), fill=COLOURS[name])
    return picture, {"question": "What color is the square?", "answers": [name]}


TASK = Task(
    name="starter",
    agent=starter_agent,
    answer=answer,
    rewards=("exact",),
    prompt=PROMPT,
    score=score,
    gold=lambda task: (task["answers"][0], 1.0),
    synthetic=draw,
)

if __name__ == "__main__":
    from vision_rl.evaluation.debug import main

    main(__file__)
