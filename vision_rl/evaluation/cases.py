"""The rows that a report shows: which ones, their pictures as data: URIs, and their boxes in unit space."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vision_rl.boxes import Box
from vision_rl.coordinates import to_unit
from vision_rl.data.images import open_image
from vision_rl.errors import UserError
from vision_rl.evaluation import metrics
from vision_rl.evaluation.store import Record
from vision_rl.media import size_limits
from vision_rl.parsing import parse_boxes
from vision_rl.rewards.grounding import answer_space
from vision_rl.tasks import get_task

_SIDE = 720
_SHOWN_HEIGHT = 420
_SMALL = 0.02  # share of the picture below which a box gets a close-up
_MARGIN = 3.0  # of the close-up around the box, in box sides
_MOST_PICTURES = 4
_THINNEST = 0.006  # of the picture: browsers draw no rectangle without an area


@dataclass(frozen=True)
class Picture:
    """A picture for the page. view: the part of the image that it shows, (x, y, width, height) in unit space."""

    uri: str
    width: int
    height: int
    view: tuple[float, float, float, float]
    title: str

    @property
    def shown_width(self) -> int:
        """Width on the page in CSS pixels that keeps a tall picture from filling the screen."""
        return max(1, round(_SHOWN_HEIGHT * self.width / self.height))


@dataclass(frozen=True)
class Case:
    """One row as the page shows it. true, predicted: unit xyxy boxes of the first picture; problem: why it has none."""

    record: Record
    pictures: tuple[Picture, ...]
    true: tuple[Box, ...]
    predicted: tuple[Box, ...]
    problem: str = ""


def worst_and_best(task: str, records: Sequence[Record], count: int) -> tuple[list[Record], list[Record]]:
    """Up to `count` rows of either end, the extremes first, none in both.

    Of equally bad rows those that were sure of themselves come first, then the lower reward.
    """
    score = metrics.measures(task)[metrics.headline(task)[0]]

    def key(record: Record) -> tuple[float, ...]:
        parts = record["components"]
        return score(record), parts.get("iou", 0.0), -parts.get("confidence", 0.0), record["reward"], record["row"]

    ordered = sorted(metrics.scored(records), key=key)
    half = min(count, (len(ordered) + 1) // 2)
    return ordered[:half], ordered[half:][::-1][:count]


def case_of(record: Record, settings: Mapping[str, Any]) -> Case:
    """The case of a record; a picture that is gone is said, not raised."""
    true = tuple((box[0], box[1], box[2], box[3]) for box in record["boxes"])
    try:
        pictures = [open_image(path) for path in record["image_paths"][:_MOST_PICTURES]]
        shown = [_picture(picture, (0.0, 0.0, 1.0, 1.0), f"picture {i + 1}") for i, picture in enumerate(pictures)]
    except UserError as error:
        return Case(record, (), true, (), str(error))
    if true and (true[0][2] - true[0][0]) * (true[0][3] - true[0][1]) < _SMALL:
        shown.insert(1, _picture(pictures[0], _around(true[0]), "close-up of the true box"))
    drawing = get_task(record["task"]).part("drawing")
    found = drawing(record, settings, pictures[0].size) if drawing else []
    return Case(record, tuple(shown), true, tuple(map(drawable, found)))


def predicted_boxes(record: Record, settings: Mapping[str, Any], size: tuple[int, int]) -> list[Box]:
    """The boxes of a reply in unit space, as written: not clipped, wrong spaces included. size: (width, height).

    No boxes for an answer in the space of a zoomed view, which its reply does not name.
    """
    if settings.get("answer_view") == "last" and record["components"].get("tools/zooms"):
        return []
    fmt, family = answer_space(settings["answer_format"], settings["family"])
    seen = size_limits(settings).processed(size)
    return [to_unit(box, family, size, seen) for box in parse_boxes(record["reply"], fmt)]


def drawable(box: Box) -> Box:
    """A box that can be seen: swapped corners in order, a point or a line widened a little around its middle."""
    spans = []
    for low, high in (sorted((box[0], box[2])), sorted((box[1], box[3]))):
        grow = max(0.0, (_THINNEST - (high - low)) / 2)
        spans.append((low - grow, high + grow))
    (x1, x2), (y1, y2) = spans
    return x1, y1, x2, y2


def _around(box: Box) -> tuple[float, float, float, float]:
    width, height = max(box[2] - box[0], 0.02), max(box[3] - box[1], 0.02)
    left, top = max(0.0, box[0] - _MARGIN * width), max(0.0, box[1] - _MARGIN * height)
    right, bottom = min(1.0, box[2] + _MARGIN * width), min(1.0, box[3] + _MARGIN * height)
    return left, top, right - left, bottom - top


def _picture(image: Image.Image, view: tuple[float, float, float, float], title: str) -> Picture:
    """The part `view` of an image, scaled down to the page, as the shorter of PNG and JPEG."""
    left, top = round(view[0] * image.width), round(view[1] * image.height)
    right, bottom = round((view[0] + view[2]) * image.width), round((view[1] + view[3]) * image.height)
    part = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    # What was cut, to the pixel: the overlay must lie on it.
    exact = (left / image.width, top / image.height, part.width / image.width, part.height / image.height)
    part.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    png, jpeg = _encoded(part, "PNG"), _encoded(part, "JPEG")
    mime, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    uri = f"data:image/{mime};base64,{base64.b64encode(data).decode()}"
    return Picture(uri, part.width, part.height, exact, title)


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return buffer.getvalue()
