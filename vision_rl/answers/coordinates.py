"""Coordinate spaces of the model families, and the conversion of each to and from unit space (0..1, xyxy).

One row of `FAMILIES` per family. The family is looked up from the `model_type` of the model's config, or set by hand;
it is never guessed from the size of the numbers, because 0..1000 and pixels overlap. `in_space` only *recognises*
numbers that cannot belong to the space that was asked for, so that they are counted; nothing converts them.

Sizes are (width, height) in pixels, except in `smart_resize`, which keeps transformers' order (height, width).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vision_rl.answers.boxes import Box
from vision_rl.errors import UserError

Size = tuple[int, int]

TOLERANCE = 0.02
"""How far a coordinate may lie outside of its space, as a share of the space: models miss borders by a pixel or two."""


@dataclass(frozen=True)
class Family:
    """One model family: the space of the numbers that it writes and the format around them.

    space: a name in `SPACES`, "processed" (pixels of the image after the processor's resizing) or "original" (pixels of
    the image file). native: a row of `vision_rl.answers.formats.FORMATS`. factor: both sides of a processed image are multiples
    of it (None: tiles or unknown). patch: side of one vision patch in pixels.
    """

    name: str
    model_types: tuple[str, ...]
    space: str
    native: str
    factor: int | None = None
    patch: int | None = None


SPACES = {"unit": 1.0, "percent": 100.0, "thousand": 1000.0, "to_999": 999.0, "bins_1024": 1024.0}
"""The number that stands for the right and the lower border, in the spaces that do not depend on the picture."""

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("qwen2_vl", ("qwen2_vl",), "thousand", "box_tokens", 28, 14),
        Family("qwen2_5_vl", ("qwen2_5_vl",), "processed", "bbox_2d", 28, 14),
        Family("qwen3_vl", ("qwen3_vl", "qwen3_vl_moe"), "thousand", "bbox_2d", 32, 16),
        Family("qwen3_5", ("qwen3_5", "qwen3_5_moe"), "thousand", "bbox_2d", 32, 16),
        Family("internvl", ("internvl", "internvl_chat"), "thousand", "box_tag"),
        Family("glm4v", ("glm4v", "glm4v_moe", "glm46v"), "thousand", "glm_box", 28, 14),
        Family("gemma", ("gemma3", "gemma3n", "gemma4"), "bins_1024", "box_2d"),
        Family("paligemma", ("paligemma",), "bins_1024", "loc"),
        Family("florence2", ("florence2",), "thousand", "florence"),
        Family("deepseek_vl2", ("deepseek_vl_v2",), "to_999", "det"),
        Family("molmo", ("molmo",), "percent", "molmo"),
        Family("kimi_vl", ("kimi_vl",), "unit", "pyautogui", 28, 14),
        Family("ui_tars", (), "thousand", "ui_tars", 28, 14),
        Family("ui_tars_1_5", (), "processed", "ui_tars", 28, 14),
        Family("unit", (), "unit", "bbox"),
        Family("pixels", (), "original", "bbox_2d"),
    )
}
"""UI-TARS 1.0 is built on Qwen2-VL and 1.5 on Qwen2.5-VL, whose model types they carry: name the family by hand."""

_BY_MODEL_TYPE = {model_type: family for family in FAMILIES.values() for model_type in family.model_types}


def family_for(model_type: str) -> Family:
    """The family of a model from its config's `model_type`; `UserError` if no row names that type."""
    try:
        return _BY_MODEL_TYPE[model_type]
    except KeyError:
        known = ", ".join(sorted(_BY_MODEL_TYPE))
        raise UserError(
            f"model_type {model_type!r} has no known coordinate space (known: {known}); "
            "set family=unit and a prompt format in unit space, or add a row to vision_rl.answers.coordinates.FAMILIES"
        ) from None


def get_family(family: str | Family) -> Family:
    """A row of `FAMILIES` by name (or itself); `UserError` for an unknown name."""
    if isinstance(family, Family):
        return family
    try:
        return FAMILIES[family]
    except KeyError:
        raise UserError(f"family {family!r} does not exist; choose one of {', '.join(FAMILIES)}") from None


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """(height, width) after the resizing of the Qwen-VL processors: the same numbers as transformers' `smart_resize`.

    Both sides become multiples of `factor`, the area lies between `min_pixels` and `max_pixels` where that is possible.
    Read the limits from the processor that is really used. `UserError` for an empty image or an aspect ratio over 200.
    """
    if height <= 0 or width <= 0:
        raise UserError(f"an image of {width}x{height} pixels cannot be resized; give a real image")
    if max(height, width) / min(height, width) > 200:
        raise UserError(f"an image of {width}x{height} pixels has an aspect ratio over 200; crop it first")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def space_size(
    family: str | Family, original_size: Size | None = None, processed_size: Size | None = None
) -> tuple[float, float]:
    """(width, height) of a family's space: the numbers that stand for the right and the lower border.

    `original_size` is needed for the space "original" only, `processed_size` (what the model saw, not the file) for
    "processed" only; `UserError` if the needed one is missing or empty.
    """
    row = get_family(family)
    if row.space in SPACES:
        return SPACES[row.space], SPACES[row.space]
    name, size = ("processed_size", processed_size) if row.space == "processed" else ("original_size", original_size)
    if size is None or not (size[0] > 0 and size[1] > 0):
        raise UserError(f"family {row.name} writes pixels: {name} must be a (width, height) above 0, not {size}")
    return float(size[0]), float(size[1])


def to_unit(
    box: Sequence[float], family: str | Family, original_size: Size | None = None, processed_size: Size | None = None
) -> Box:
    """An xyxy box in the family's space as xyxy in unit space (0..1 of image width and height); nothing is clipped."""
    width, height = space_size(family, original_size, processed_size)
    return box[0] / width, box[1] / height, box[2] / width, box[3] / height


def from_unit(
    box: Sequence[float], family: str | Family, original_size: Size | None = None, processed_size: Size | None = None
) -> Box:
    """An xyxy box in unit space as xyxy in the family's space; the inverse of `to_unit`, not rounded."""
    width, height = space_size(family, original_size, processed_size)
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def in_space(box: Sequence[float], size: tuple[float, float]) -> bool:
    """Whether the numbers of an xyxy box can belong to a space of `size` (from `space_size`).

    False if one lies beyond the right or lower border by more than `TOLERANCE`, or if, in a space of hundreds of
    pixels, the box is written in unit space: all four within 0..1 and not all whole numbers.
    """
    x_limit, y_limit = size[0] * (1 + TOLERANCE), size[1] * (1 + TOLERANCE)
    x1, y1, x2, y2 = box
    if x1 > x_limit or x2 > x_limit or y1 > y_limit or y2 > y_limit:
        return False
    if size[0] <= 1 or size[1] <= 1:
        return True
    return not (0 <= x1 <= 1 and 0 <= y1 <= 1 and 0 <= x2 <= 1 and 0 <= y2 <= 1) or (
        x1 % 1 == 0 and y1 % 1 == 0 and x2 % 1 == 0 and y2 % 1 == 0
    )
