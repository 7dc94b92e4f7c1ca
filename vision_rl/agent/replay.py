"""What a finished rollout looked at, read from its record: each picture's place in the first one, and the answered boxes.

The record (a line of rollouts.jsonl) holds replies and pictures; the tool calls of the replies are carried out once more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from vision_rl.agent.media import size_limits
from vision_rl.agent.tools import ToolBox
from vision_rl.answers.actions import READERS
from vision_rl.answers.boxes import Box
from vision_rl.answers.coordinates import Size
from vision_rl.answers.parsing import parse_tool_calls
from vision_rl.answers.space import AnswerSpace
from vision_rl.answers.zoom import View
from vision_rl.media.images import open_image
from vision_rl.media.references import frames_of, picture_path
from vision_rl.settings import AgentSettings


def picture_files(run_dir: Path, refs: Sequence[str]) -> list[Path]:
    """The files of the pictures that a turn of rollouts.jsonl names, those of a video's frames among them."""
    return [picture_path(frame, run_dir / "pictures") for ref in refs for frame in frames_of(ref)]


def pictures_of(run_dir: Path, record: Mapping[str, Any]) -> list[Image.Image]:
    """All pictures of a rollout's conversation, in order. Raises `UserError` naming one that is gone."""
    return [open_image(path) for path in picture_files(run_dir, record["image_refs"][-1])]


def views_of(record: Mapping[str, Any], settings: AgentSettings, pictures: Sequence[Image.Image]) -> list[View]:
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


def answer_boxes(record: Mapping[str, Any], settings: AgentSettings, views: Sequence[View]) -> list[Box]:
    """The boxes of the last reply, in the first picture's unit space, whichever picture they were given in."""
    with_tools = settings.max_turns > 1
    view = views[-1] if with_tools and settings.answer_view == "last" else views[0]
    return [view.to_picture(box) for box in AnswerSpace.of(settings, view.size, view.size).boxes(record["replies"][-1])]


def predicted_boxes(record: Mapping[str, Any], settings: AgentSettings, size: Size) -> list[Box]:
    """The boxes of a scored row's reply, in unit space of its first picture of `size` (width, height).

    As written: not clipped, answers in another coordinate space included. None for an answer in the space of a zoomed view,
    which its reply does not name. record: has `reply` and `components`.
    """
    if settings.answer_view == "last" and record["components"].get("tools/zooms"):
        return []
    return AnswerSpace.of(settings, size, size_limits(settings).processed(size)).boxes(record["reply"])


def is_played(record: Mapping[str, Any]) -> bool:
    """Whether a rollout was an episode of an environment: its pictures are those of its trace."""
    return not record["image_paths"] and any(map(len, record["image_refs"]))


def episode_pictures(run_dir: Path, record: Mapping[str, Any]) -> list[list[Path]]:
    """The files of the pictures that an episode showed before each reply; the last one is what its action was about.

    A prompt may hold all of them or the latest: what is new in a turn begins where the turn before ended, and where nothing
    has changed it is the last one again.
    """
    turns: list[list[Path]] = []
    before: list[str] = []
    for refs in record["image_refs"]:
        kept = next(n for n in range(min(len(before), len(refs)), -1, -1) if before[len(before) - n :] == refs[:n])
        turns.append(picture_files(run_dir, refs[kept:] or refs[-1:]))
        before = refs
    return turns


def acted_at(reply: str, settings: AgentSettings, size: Size) -> list[tuple[float, float]]:
    """The places of a reply's action, in unit space of the picture of `size` that it is about; none for other actions."""
    seen = size_limits(settings).processed(size)
    for reader in (READERS["gui"], READERS["click"]):
        action = reader.read(reply, settings, size, seen)
        if action is not None and action.point is not None:
            return [point for point in (action.point, action.to) if point is not None]
    return []


def strip(turns: Sequence[tuple[Image.Image, Sequence[tuple[float, float]]]], side: int = 160) -> Image.Image:
    """An episode as a strip of its pictures (RGB) in order, each `side` pixels high, with a cross where it was acted."""
    shown = []
    for picture, places in turns:
        scale = side / picture.height
        frame = picture.resize((max(1, round(picture.width * scale)), side), Image.Resampling.LANCZOS)
        pen = ImageDraw.Draw(frame)
        for x, y in ((x * frame.width, y * frame.height) for x, y in places):
            for width, colour in ((5, "white"), (3, "#d62728")):
                pen.line((x - 7, y, x + 7, y), fill=colour, width=width)
                pen.line((x, y - 7, x, y + 7), fill=colour, width=width)
        shown.append(frame)
    gap = 6
    whole = Image.new("RGB", (sum(frame.width + gap for frame in shown) - gap if shown else 1, side), "white")
    left = 0
    for frame in shown:
        whole.paste(frame, (left, 0))
        left += frame.width + gap
    return whole


def episode_strip(run_dir: Path, record: Mapping[str, Any], settings: AgentSettings) -> Image.Image:
    """The strip of a recorded episode. Raises `UserError` naming a picture that is gone."""
    turns = []
    for files, reply in zip(episode_pictures(run_dir, record), record["replies"], strict=True):
        picture = open_image(files[-1])
        turns.append((picture, acted_at(reply, settings, picture.size)))
    return strip(turns)
