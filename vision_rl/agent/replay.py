"""What a finished rollout looked at, from its record alone: where each picture lies in the first, and its answer's boxes.

The record (a line of rollouts.jsonl) holds replies and pictures; the tool calls of the replies are carried out once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vision_rl.agent.media import size_limits
from vision_rl.agent.tools import ToolBox
from vision_rl.answers.boxes import Box
from vision_rl.answers.coordinates import Size, to_unit
from vision_rl.answers.parsing import parse_boxes, parse_tool_calls
from vision_rl.answers.zoom import View
from vision_rl.media.images import open_image
from vision_rl.media.references import frames_of, picture_path
from vision_rl.rewards.grounding import answer_space


def picture_files(run_dir: Path, refs: Sequence[str]) -> list[Path]:
    """The files of the pictures that a turn of rollouts.jsonl names, those of a video's frames among them."""
    return [picture_path(frame, run_dir / "pictures") for ref in refs for frame in frames_of(ref)]


def pictures_of(run_dir: Path, record: Mapping[str, Any]) -> list[Image.Image]:
    """All pictures of a rollout's conversation, in order. Raises `UserError` naming one that is gone."""
    return [open_image(path) for path in picture_files(run_dir, record["image_refs"][-1])]


def views_of(record: Mapping[str, Any], settings: Mapping[str, Any], pictures: Sequence[Image.Image]) -> list[View]:
    """Where each of the conversation's pictures lies in the first, and the size at which the model saw it."""
    limits = size_limits(settings)
    number = sum(len(frames_of(ref)) for ref in record["image_refs"][0])
    views = [View(limits.processed(picture.size)) for picture in pictures]
    # A video's first frame stands alone and the others come by waiting; of several pictures, tools act on the first.
    frames = record["image_paths"] if number == 1 else record["image_paths"][:1]
    tools = ToolBox(frames, {}, limits)
    for call in (call for reply in record["replies"] for call in parse_tool_calls(reply)):
        result = tools.run(call) if number < len(pictures) else None
        if result is not None and result.view is not None:
            views[number] = View(views[number].size, result.view.box)
            number += 1
    return views


def answer_boxes(record: Mapping[str, Any], settings: Mapping[str, Any], views: Sequence[View]) -> list[Box]:
    """The boxes of the last reply, in the first picture's unit space, whichever picture they were given in."""
    with_tools = settings["max_turns"] > 1
    view = views[-1] if with_tools and settings["answer_view"] == "last" else views[0]
    form, space = answer_space(settings["answer_format"], settings["family"])
    return [
        view.to_picture(to_unit(box, space, view.size, view.size)) for box in parse_boxes(record["replies"][-1], form)
    ]


def predicted_boxes(record: Mapping[str, Any], settings: Mapping[str, Any], size: Size) -> list[Box]:
    """The boxes of a scored row's reply, in unit space of its first picture of `size` (width, height).

    As written: not clipped, answers in another coordinate space included. None for an answer in the space of a zoomed view,
    which its reply does not name. record: has `reply` and `components`.
    """
    if settings.get("answer_view") == "last" and record["components"].get("tools/zooms"):
        return []
    form, space = answer_space(settings["answer_format"], settings["family"])
    seen = size_limits(settings).processed(size)
    return [to_unit(box, space, size, seen) for box in parse_boxes(record["reply"], form)]
