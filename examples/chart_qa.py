"""ChartQA in one file: the data, prompt, parser, reward and agent of a task that this project does not ship.

    python train_agent.py --task examples/chart_qa.py                         # the tiny model, on charts drawn here
    python data_utils.py verify --task examples/chart_qa.py --file charts.parquet
    python evaluate_agent.py --task examples/chart_qa.py --data charts.parquet --checkpoint runs/chart_qa

A row of one's own needs `image_path`, `question` and `answer`; `meta` may say of which kind its chart is.
"""

from __future__ import annotations

import random
import re
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
TOLERANCE = 0.05
"""ChartQA's relaxed accuracy (Masry et al., 2022, section 5): a number may be off by 5 % of the true one."""
_NUMBER = re.compile(r"[+-]?\d{1,18}(?:\.\d{0,18})?")


def parse(reply: str) -> str:
    """The final answer: the reply's last line, without white space or a full stop around it, in lower case."""
    return (reply.strip().splitlines() or [""])[-1].strip().rstrip(".").lower()


def number(text: str) -> float | None:
    """The number that a text is, "1,200", "$12" and "15 %" included; None for any other text."""
    plain = text.replace(",", "").strip("$%€£ ")
    return float(plain) if _NUMBER.fullmatch(plain) else None


def relaxed(predicted: str, expected: str) -> bool:
    """Whether an answer counts as right: numbers within 5 %, words letter by letter."""
    ours, theirs = number(predicted), number(parse(expected))
    if ours is None or theirs is None:
        return bool(predicted) and predicted == parse(expected)
    return abs(ours - theirs) <= TOLERANCE * abs(theirs)


def score(task: Mapping[str, Any], reply: str) -> Reward:
    """1 for an answer that relaxed accuracy accepts, else 0."""
    predicted = parse(reply)
    right = float(any(relaxed(predicted, answer) for answer in task["answers"]))
    return Reward(right, {"relaxed_accuracy": right, "format/ok": float(bool(predicted))})


@agl.rollout
async def chart_qa_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    """One rollout: ask about the picture, emit the reward with its named components."""
    _, reward = await answer(task, llm)
    agl.emit_reward(reward.named(), primary_key="reward")


async def answer(task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """Ask the model about the chart and score its reply."""
    settings = AgentSettings.of(task)
    pictures = [picture.url for picture in show(task["image_paths"], settings, task["image_sizes"])]
    completion = await client_for(llm, settings).chat.completions.create(
        model=llm.model,
        messages=[user_message(PROMPT.format(question=task["question"]), pictures)],
        **{"max_tokens": settings.max_tokens, **llm.sampling_parameters},
    )
    reply = completion.choices[0].message.content or ""
    return reply, score(task, reply)


def draw_chart(rng: random.Random) -> tuple[Image.Image, dict[str, Any]]:
    """A bar chart of 84 x 84 pixels in the tiny model's colours, and a question about it."""
    colours = {"red": (214, 40, 40), "green": (40, 160, 70), "blue": (50, 90, 220), "yellow": (235, 200, 40)}
    names = rng.sample(list(colours), rng.randint(2, 4))
    heights = rng.sample(range(20, 76), len(names))
    chart = Image.new("RGB", (84, 84), (240, 240, 240))
    pen = ImageDraw.Draw(chart)
    for place, (name, height) in enumerate(zip(names, heights, strict=True)):
        left = 4 + 20 * place
        pen.rectangle((left, 80 - height, left + 15, 80), fill=colours[name])
    if rng.random() < 0.5:
        question, truth, kind = "How many bars are there?", str(len(names)), "count"
    else:
        question, truth, kind = "What color is the tallest bar?", names[heights.index(max(heights))], "extreme"
    return chart, {"question": question, "answers": [truth], "meta": {"kind": kind}}


TASK = Task(
    name="chart_qa",
    agent=chart_qa_agent,
    answer=answer,
    rewards=("relaxed_accuracy",),
    prompt=PROMPT,
    score=score,
    gold=lambda task: (task["answers"][0], 1.0),
    synthetic=draw_chart,
    metric="relaxed_accuracy",
    breakdowns=lambda record: [("kind", record["meta"]["kind"])] if record["meta"].get("kind") else [],
)
