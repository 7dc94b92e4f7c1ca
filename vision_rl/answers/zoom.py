"""The geometry of a zoom: which pixels a region covers, at what size they are shown, and the way back.

A view is a part of a picture, cut at whole pixels and shown at a size that the model's processor leaves as it is (both
sides multiples of its factor, the area within its limits), so the crop is resampled once, here, by Lanczos. Both axes
are scaled on their own; boxes in the view's unit space map exactly to the picture's and back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from vision_rl.answers.boxes import Box
from vision_rl.answers.coordinates import FAMILIES, Size, smart_resize

WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
MAX_ASPECT = 8.0
"""A region longer than this is widened: a strip of a few pixels' height shows nothing, and processors refuse 200."""

_NO_LIMIT = 89_478_485
_ROUNDING = 1e-6


@dataclass(frozen=True)
class SizeLimits:
    """What the model's processor does to a picture. factor: both sides become multiples of it; areas in pixels."""

    factor: int = 28
    patch: int = 14
    min_pixels: int = 1
    max_pixels: int = _NO_LIMIT

    @classmethod
    def of(cls, family: str, min_pixels: int | None, max_pixels: int | None) -> SizeLimits:
        """The limits of a row of `coordinates.FAMILIES`; a family without a factor gets Qwen2-VL's: it harms nobody."""
        row = FAMILIES[family]
        return cls(row.factor or 28, row.patch or 14, min_pixels or 1, max_pixels or _NO_LIMIT)

    def processed(self, size: Size) -> Size:
        """(width, height) that the processor makes of a picture of `size`."""
        height, width = smart_resize(size[1], size[0], self.factor, self.min_pixels, self.max_pixels)
        return width, height


@dataclass(frozen=True)
class View:
    """A part of a picture. box: xyxy in the picture's unit space; size: (width, height) at which it is shown."""

    size: Size
    box: Box = WHOLE

    def to_picture(self, box: Box) -> Box:
        """A box in the view's unit space as one in the picture's; the inverse of `from_picture`."""
        x, y, right, bottom = self.box
        w, h = right - x, bottom - y
        return x + box[0] * w, y + box[1] * h, x + box[2] * w, y + box[3] * h

    def from_picture(self, box: Box) -> Box:
        """A box in the picture's unit space as one in the view's; parts outside of the view lie outside of 0..1."""
        x, y, right, bottom = self.box
        w, h = right - x, bottom - y
        return (box[0] - x) / w, (box[1] - y) / h, (box[2] - x) / w, (box[3] - y) / h

    def polygon_from_picture(self, polygon: Sequence[float]) -> list[float]:
        """`from_picture` of a flat list x1, y1, x2, y2, ..."""
        x, y, right, bottom = self.box
        return [(n - (x, y)[i % 2]) / (right - x, bottom - y)[i % 2] for i, n in enumerate(polygon)]


def crop_box(region: Box, size: Size, least: int) -> tuple[int, int, int, int]:
    """The pixels (left, top, right, bottom; right and bottom exclusive) that show a region of a picture of `size`.

    region: xyxy in unit space with x1 < x2 and y1 < y2; what lies outside of the picture is cut off. Each side is at
    least `least` pixels and the aspect ratio at most `MAX_ASPECT`, both as far as the picture allows; a region that is
    too small or too thin grows around its centre, and moves inwards at a border.
    """
    spans = [_clamped(region[axis] * size[axis], region[axis + 2] * size[axis], size[axis]) for axis in (0, 1)]
    sides = [min(max(end - start, least), limit) for (start, end), limit in zip(spans, size, strict=True)]
    longest = max(sides)
    sides = [min(max(side, longest / MAX_ASPECT), limit) for side, limit in zip(sides, size, strict=True)]
    sides = [min(side, MAX_ASPECT * min(sides)) for side in sides]
    (left, right), (top, bottom) = (
        _pixels(span, side, limit) for span, side, limit in zip(spans, sides, size, strict=True)
    )
    return left, top, right, bottom


def _clamped(start: float, end: float, limit: int) -> tuple[float, float]:
    return min(max(start, 0.0), limit), min(max(end, 0.0), limit)


def _pixels(span: tuple[float, float], side: float, limit: int) -> tuple[int, int]:
    """Whole pixels of an interval of length `side` around the middle of `span`, inside 0..limit."""
    start, end = span
    if abs(end - start - side) > _ROUNDING:
        start = min(max((start + end - side) / 2, 0.0), limit - side)
        end = start + side
    low = max(math.floor(start + _ROUNDING), 0)
    high = min(math.ceil(end - _ROUNDING), limit)
    return (low, high) if high > low else (max(high - 1, 0), max(high, 1))


def zoom(picture: Image.Image, region: Box, factor: float, limits: SizeLimits) -> tuple[Image.Image, View]:
    """The crop that shows `region` of an RGB picture enlarged `factor` times, and where it lies.

    The size is that of the crop times `factor`, brought to one that the processor keeps: at least one visual token
    (`limits.factor` pixels) on each side, and no more pixels than it would look at.
    """
    left, top, right, bottom = crop_box(region, picture.size, limits.patch)
    width, height = right - left, bottom - top
    size = limits.processed((max(1, round(width * factor)), max(1, round(height * factor))))
    crop = picture.crop((left, top, right, bottom))
    if crop.size != size:
        crop = crop.resize(size, Image.Resampling.LANCZOS)
    across, down = picture.size
    return crop, View(size, (left / across, top / down, right / across, bottom / down))
