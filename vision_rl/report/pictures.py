"""Pictures for a page that stands alone: each as a data: URI, with the boxes that are drawn over it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from PIL import Image

from vision_rl.answers.boxes import Box
from vision_rl.answers.zoom import WHOLE
from vision_rl.media.images import open_image

Kind = Literal["true", "predicted", "zoom"]

_JPEG_QUALITY = 88
_SMALL = 0.02
"""Share of the picture below which a box gets a close-up."""
_MARGIN = 3.0
"""Of a close-up around its box, in box sides."""
_POINT = 0.006
"""Share of the picture's side below which a box is drawn as a point."""


@dataclass(frozen=True)
class Mark:
    """What is drawn over a picture, in its pixels. answer: number of the reply it belongs to, 0 for the truth."""

    kind: Kind
    answer: int
    x: float
    y: float
    width: float
    height: float
    point: bool


@dataclass(frozen=True)
class Picture:
    """A picture for a page.

    width, height: pixels of what is shown. view: which part of the row's first image it shows, xyxy in unit space; None
    where that is not known, or it is another image, and nothing can be drawn over it.
    """

    uri: str
    width: int
    height: int
    title: str = ""
    view: Box | None = WHOLE
    marks: tuple[Mark, ...] = ()

    def marked(self, boxes: Iterable[tuple[Kind, int, Box]]) -> Picture:
        """The picture with (kind, reply, box) drawn over it; boxes are in the first image's unit space."""
        if self.view is None:
            return self
        return replace(self, marks=tuple(self._mark(self.view, *box) for box in boxes))

    def _mark(self, view: Box, kind: Kind, answer: int, box: Box) -> Mark:
        (left, right), (top, bottom) = sorted((box[0], box[2])), sorted((box[1], box[3]))
        scale_x, scale_y = self.width / (view[2] - view[0]), self.height / (view[3] - view[1])
        point = right - left < _POINT and bottom - top < _POINT
        x, y = (left - view[0]) * scale_x, (top - view[1]) * scale_y
        # A browser draws no rectangle without an area: a line is widened to what can be seen.
        width, height = max(right - left, _POINT) * scale_x, max(bottom - top, _POINT) * scale_y
        return Mark(kind, answer, x, y, width, height, point)


def picture(image: Image.Image, *, side: int = 480, view: Box = WHOLE, title: str = "") -> Picture:
    """The part `view` of an RGB image, at most `side` pixels wide and high, as the shorter of PNG and JPEG."""
    left, top = round(view[0] * image.width), round(view[1] * image.height)
    right, bottom = max(round(view[2] * image.width), left + 1), max(round(view[3] * image.height), top + 1)
    part = image.crop((left, top, right, bottom))
    # What was cut, to the pixel: boxes that are drawn over it must lie on it.
    exact = (left / image.width, top / image.height, right / image.width, bottom / image.height)
    part.thumbnail((side, side), Image.Resampling.LANCZOS)
    png, jpeg = _encoded(part, "PNG"), _encoded(part, "JPEG")
    mime, data = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    uri = f"data:image/{mime};base64,{base64.b64encode(data).decode()}"
    return Picture(uri, part.width, part.height, title, exact)


def row_pictures(paths: Iterable[str | Path], true: Iterable[Box]) -> list[Picture]:
    """The pictures of a row, the first with a close-up of a small true box. Raises `UserError` naming one that is gone."""
    shown = []
    for number, path in enumerate(paths, start=1):
        image = open_image(path)
        whole = picture(image, title=f"picture {number}")
        shown.append(whole if number == 1 else replace(whole, view=None))
        box = next(iter(true), None)
        if number == 1 and box is not None and (box[2] - box[0]) * (box[3] - box[1]) < _SMALL:
            shown.append(picture(image, view=_around(box), title="close-up of the true box"))
    return shown


def _around(box: Box) -> Box:
    width, height = max(box[2] - box[0], 0.02), max(box[3] - box[1], 0.02)
    left, top = max(0.0, box[0] - _MARGIN * width), max(0.0, box[1] - _MARGIN * height)
    return left, top, min(1.0, box[2] + _MARGIN * width), min(1.0, box[3] + _MARGIN * height)


def _encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **({"quality": _JPEG_QUALITY} if kind == "JPEG" else {"optimize": True}))
    return buffer.getvalue()
