"""Where a value of the configuration comes from."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Self


class Layer(enum.Enum):
    """The layers of the configuration; what stands behind one wins over it, and a value derived from others comes last."""

    VERL = "verl"
    AGENTLIGHTNING = "agentlightning"
    OURS = "vision_rl"
    BASE = "base"
    TASK = "task"
    PRESET = "preset"
    VARIANT = "variant"
    CONFIG = "config"
    FLAG = "flag"
    OVERRIDE = "override"
    DERIVED = "derived"

    @property
    def is_default(self) -> bool:
        """Whether nobody chose what it sets: it holds for whatever is run."""
        return self in (Layer.VERL, Layer.AGENTLIGHTNING, Layer.OURS, Layer.BASE, Layer.TASK)

    @property
    def is_recomputed(self) -> bool:
        """Whether a run works out again what it sets: defaults of packages and tasks, and what follows from other settings."""
        return self is Layer.DERIVED or (self.is_default and self is not Layer.BASE)


@dataclass(frozen=True)
class Origin:
    """A layer, with the name of its file or, of a derived value, the reason."""

    layer: Layer
    name: str = ""

    def __str__(self) -> str:
        """As --dry-run prints it."""
        between = ": " if self.layer is Layer.DERIVED else " "
        return f"{self.layer.value}{between}{self.name}" if self.name else self.layer.value

    @classmethod
    def parse(cls, text: str) -> Self:
        """The inverse of `str`. Raises `ValueError` for any other text."""
        layer, _, name = text.partition(" ")
        return cls(Layer(layer.removesuffix(":")), name)


VERL = Origin(Layer.VERL)
FLAG = Origin(Layer.FLAG)
OVERRIDE = Origin(Layer.OVERRIDE)


def derived(reason: str) -> Origin:
    """The origin of a value that follows from others."""
    return Origin(Layer.DERIVED, reason)
