"""Boxes as the data sets write them -> unit xyxy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from vision_rl.errors import UserError

BOX_FORMATS = ("xyxy", "xywh")
SPACES = ("pixels", "unit", "thousand")
_FOUR = re.compile(r"\s*[\[(]?\s*" + r"\s*,\s*".join([r"(-?\d+(?:\.\d+)?)"] * 4) + r"\s*[\])]?\s*")


def four_numbers(value: Any, where: str) -> list[float]:
    """The four numbers of a box from a list or a text like "(1, 2, 3, 4)"; `UserError` for anything else."""
    found = _FOUR.fullmatch(value) if isinstance(value, str) else None
    try:
        box = [float(number) for number in (found.groups() if found else value)]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: box {value!r} is not four numbers") from error
    if len(box) != 4:
        raise UserError(f"{where}: box {value!r} is not four numbers")
    return box


def to_unit_xyxy(
    box: Sequence[float], size: tuple[int, int], *, box_format: str, space: str, where: str
) -> list[float]:
    """A box of a data set (xyxy or xywh; pixels of an image of `size` (width, height), 0..1, or 0..1000) as unit xyxy.

    It is clipped to the image; see `pixel_box_to_unit` for what is refused.
    """
    x1, y1, c, d = box
    xyxy = [x1, y1, c, d] if box_format == "xyxy" else [x1, y1, x1 + c, y1 + d]
    return pixel_box_to_unit(xyxy, {"pixels": size, "unit": (1, 1), "thousand": (1000, 1000)}[space], where)


def scaled_size(width: Any, height: Any, size: tuple[int, int], where: str, image: object) -> tuple[int, int]:
    """A stated (width, height) of a picture whose file has `size`, possibly scaled to that.

    Raises `UserError` starting with `where` for what is no size, and for a file of another aspect (more than a pixel off):
    it is cropped, padded or squeezed, and nobody can say where a box lies in it.
    """
    try:
        wide, high = round(float(width)), round(float(height))
    except (TypeError, ValueError, OverflowError):
        wide = high = 0
    if wide < 1 or high < 1:
        raise UserError(f"{where}: {width!r} x {height!r} is no size of a picture; correct it")
    if abs(size[0] * high - size[1] * wide) > max(wide, high):
        raise UserError(
            f"{where}: its boxes are of a picture of {wide} x {high} pixels, but {image} has {size[0]} x {size[1]}, another "
            "aspect; export the picture whole and in its own proportions"
        )
    return wide, high


def pixel_box_to_unit(xyxy: Sequence[float], size: tuple[int, int], where: str) -> list[float]:
    """xyxy in a space of `size` as unit xyxy, clipped to the image.

    Annotators cross the border by a few pixels; a box of which less than half remains is another image's or in another
    space; so is one that lies within the first pixel. Raises `UserError` starting with `where` for these, for swapped
    corners, an empty box and numbers not finite.
    """
    width, height = size
    x1, y1, x2, y2 = xyxy
    if not all(math.isfinite(number) for number in xyxy):
        raise UserError(f"{where}: box {list(xyxy)} is not finite; correct or remove it")
    if x2 <= x1 or y2 <= y1:
        raise UserError(f"{where}: box {list(xyxy)} (as xyxy) is empty or has swapped corners; check xyxy against xywh")
    if max(x2, y2) <= 1 < max(size):
        raise UserError(
            f"{where}: box {list(xyxy)} lies within one pixel of its image; is it in 0..1 and not in pixels?"
        )
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if max(right - left, 0) * max(bottom - top, 0) < 0.5 * (x2 - x1) * (y2 - y1):
        raise UserError(
            f"{where}: box {list(xyxy)} (as xyxy) lies mostly outside of its {width} x {height} image; "
            "check its space, xyxy against xywh, and the image"
        )
    return [left / width, top / height, right / width, bottom / height]
