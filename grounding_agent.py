"""Grounding: point at the thing that an instruction names, in a screenshot or a radiograph.

With `agent.max_turns=1` (the default) it is one question and one answer; with more turns and `agent.max_tool_calls` the
model may zoom, inspect or wait before it answers (`vision_rl/agent/conversation.py`).

    python grounding_agent.py                # asks the tiny model about a few rows: instruction, reply, boxes, reward
    python train_agent.py --task grounding   # trains it
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vision_rl.agent.client import client_for, thinking, was_cut
from vision_rl.agent.conversation import MadeCall, converse, has_tools
from vision_rl.agent.grounding_prompts import request
from vision_rl.agent.lightning import agl
from vision_rl.agent.media import show, size_limits
from vision_rl.agent.messages import user_message
from vision_rl.agent.prompts import GROUNDING_PROMPT
from vision_rl.answers.space import AnswerSpace
from vision_rl.answers.zoom import WHOLE, View
from vision_rl.media.images import image_size
from vision_rl.rewards.grounding import DEFAULT, KINDS, box_metric, grounding_reward
from vision_rl.rewards.tools import target_kind
from vision_rl.rewards.user import or_the_users
from vision_rl.settings import AgentSettings
from vision_rl.tasks import Task
from vision_rl.types import LLM, Reward


@agl.rollout
async def grounding_agent(task: dict[str, Any], llm: agl.LLM) -> None:
    """One rollout: ask where the thing is, emit the reward with its named components."""
    _, reward = await answer(task, llm)
    agl.emit_reward(reward.named(), primary_key="reward")


async def answer(task: dict[str, Any], llm: LLM) -> tuple[str, Reward]:
    """Ask the model and score its last reply: (reply, reward). Training, workers, evaluation and baselines call this."""
    settings = AgentSettings.of(task)
    if has_tools(settings):
        talk = await converse(task, llm)
        reward = score(task, talk.replies[-1], talk.view, talk.calls, truncated=talk.truncated)
        return talk.replies[-1], reward
    shown = show(task["image_paths"], settings, task["image_sizes"])
    text = request(task["question"], settings, pictures=len(shown), size=(task["image_sizes"] or [None])[0])
    completion = await client_for(llm, settings).chat.completions.create(
        model=llm.model,
        messages=[user_message(text, [picture.url for picture in shown])],
        **{"max_tokens": settings.max_tokens, **thinking(task), **llm.sampling_parameters},
    )
    reply = completion.choices[0].message.content or ""
    return reply, score(task, reply, View(shown[0].size), truncated=was_cut(completion))


@or_the_users(DEFAULT)
def score(
    task: Mapping[str, Any],
    reply: str,
    view: View | None = None,
    calls: Sequence[MadeCall] = (),
    *,
    truncated: bool = False,
) -> Reward:
    """The reward of a reply whose boxes are in the space of `view` (None: the whole picture, as the model sees it).

    The row's boxes and polygons (meta: polygons, flat lists x1, y1, x2, y2, ... in unit space) are brought there, which
    changes no IoU. What depends on the target's size and place in the whole picture, Arc Vision's reward, sees the
    row's own box.
    """
    settings = AgentSettings.of(task)
    width, height = task["image_sizes"][0] if task["image_sizes"] else image_size(task["image_paths"][0])
    view = view or View(size_limits(settings).processed((width, height)))
    boxes = [(box[0], box[1], box[2], box[3]) for box in task["boxes"]]
    space = AnswerSpace.of(settings, (width, height) if view.box == WHOLE else view.size, view.size)
    reward = grounding_reward(
        reply,
        [view.from_picture(box) for box in boxes],
        space,
        kind=box_metric(settings.reward, task.get("metric", ""), space.takes_points),
        tool_calls=[call.scored() for call in calls],
        target=boxes[0] if boxes else None,
        polygons=[view.polygon_from_picture(shape) for shape in task.get("meta", {}).get("polygons") or ()],
        truncated=truncated,
        terms=settings.terms,
        weights=settings.arc,
    )
    return Reward(reward.value, reward.components | tool_components(settings, boxes, calls))


def gold(task: Mapping[str, Any]) -> tuple[str, float]:
    """The reply of a perfect model, in the form that the task's settings ask for, and its score.

    Written with six decimals: rounded as a family writes them, the smallest boxes would lose some IoU.
    """
    settings, size = AgentSettings.of(task), (task["image_sizes"][0][0], task["image_sizes"][0][1])
    return AnswerSpace.of(settings, size, size_limits(settings).processed(size)).write(task["boxes"], 6), 1.0


def tool_components(
    settings: AgentSettings, boxes: Sequence[tuple[float, float, float, float]], calls: Sequence[MadeCall]
) -> dict[str, float]:
    """What tool metrics are made of: how many calls, how many of them refused, and whether the target is small."""
    if not has_tools(settings):
        return {}
    components = {
        "tools/calls": float(len(calls)),
        "tools/errors": float(sum(call.error for call in calls)),
        "tools/zooms": float(sum(call.view is not None for call in calls)),
    }
    if boxes:
        components["tools/needed"] = float(target_kind(boxes[0]) == "small")
    return components


TASK = Task(
    name="grounding",
    agent=grounding_agent,
    answer=answer,
    truth="boxes",
    rewards=KINDS,
    defaults={"agent.answer_format": "bbox"},
    prompt=GROUNDING_PROMPT,
    score=score,
    gold=gold,
    synthetic="vision_rl.tiny.tasks:grounding_example",
    metric="iou",
    hit="point",
    measures="vision_rl.evaluation.metrics:GROUNDING_MEASURES",
    headline=("point accuracy", "IoU", "ACC@0.5"),
    breakdowns="vision_rl.evaluation.metrics:grounding_breakdowns",
    drawing="vision_rl.agent.replay:predicted_boxes",
)

if __name__ == "__main__":
    from vision_rl.evaluation.debug import main

    main("grounding")
