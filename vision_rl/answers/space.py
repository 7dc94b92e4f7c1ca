"""What an answer's numbers mean: its format, the family's coordinate space, and the picture's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from vision_rl.answers.boxes import Box
from vision_rl.answers.coordinates import FAMILIES, Size, from_unit, get_family, space_size, to_unit
from vision_rl.answers.formats import FORMATS, AnswerFormat
from vision_rl.answers.parsing import BoxReading, format_boxes, read_boxes
from vision_rl.errors import UserError
from vision_rl.settings import AgentSettings

_DECIMALS = {"unit": 4, "percent": 1}
"""Digits after the point that models write in small spaces."""


@dataclass(frozen=True)
class AnswerSpace:
    """answer_format, family: `agent.answer_format` and `agent.family`. Sizes are (width, height) in pixels; only a family that
    writes pixels needs one, see `coordinates.space_size`.

    A row of `FORMATS` is in the space that it names ("bbox" and "click" in unit space whatever the model), or else in the
    family's; "native" is the family's own format and space. Raises `UserError` for a format that there is not.
    """

    answer_format: str = "bbox"
    family: str = "unit"
    original_size: Size | None = None
    processed_size: Size | None = None

    @classmethod
    def of(cls, settings: AgentSettings, original: Size | None = None, processed: Size | None = None) -> Self:
        """The space that an agent's settings ask for, on a picture of these sizes."""
        return cls(settings.answer_format, settings.family, original, processed)

    @cached_property
    def format(self) -> AnswerFormat:
        """The row of `FORMATS`."""
        native = self.answer_format == "native" and self.family in FAMILIES
        name = FAMILIES[self.family].native if native else self.answer_format
        if name not in FORMATS:
            known = f"choose native or one of {', '.join(FORMATS)}"
            raise UserError(f"agent.answer_format={name} does not exist (agent.family={self.family}); {known}")
        return FORMATS[name]

    @property
    def numbers_of(self) -> str:
        """The family whose space the numbers are in."""
        return self.format.space or self.family

    @property
    def unit(self) -> str:
        """What the numbers count: a name of `coordinates.SPACES`, or "original" or "processed" pixels."""
        return get_family(self.numbers_of).space

    @property
    def takes_points(self) -> bool:
        """Whether answers are points, which have no area to compare."""
        return self.format.points

    @property
    def size(self) -> tuple[float, float]:
        """(width, height) of the space: the numbers of the right and of the lower border."""
        return space_size(self.numbers_of, self.original_size, self.processed_size)

    def read(self, reply: str, *, truncated: bool = False) -> BoxReading:
        """`read_boxes` of a reply; the numbers are as written."""
        return read_boxes(reply, self.format.name, truncated=truncated)

    def boxes(self, reply: str) -> list[Box]:
        """The boxes of a reply in unit space, as written: nothing is clipped."""
        return [
            to_unit(box, self.numbers_of, self.original_size, self.processed_size) for box in self.read(reply).boxes
        ]

    def write(self, boxes: Sequence[Sequence[float]], decimals: int | None = None) -> str:
        """The reply of a perfect model: boxes (xyxy, unit space) in the format and its space.

        decimals as in `format_boxes`: with its default the numbers are rounded as the family writes them, which costs small
        boxes some IoU; with 6 the reply scores 1.0 up to 0.1 %.
        """
        if decimals is None:
            decimals = _DECIMALS.get(self.unit, 0)
        sizes = self.original_size, self.processed_size
        return format_boxes([from_unit(box, self.numbers_of, *sizes) for box in boxes], self.format.name, decimals)


UNIT_BOXES = AnswerSpace()
"""<bbox>[x1, y1, x2, y2]</bbox> in unit space."""
