"""The types that all folders share: a row of data, the model to ask, a reply's reward, a scored row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
"""A row of `vision_rl.data.schema`, absolute paths; agents get it with `settings`, an `AgentSettings` as a dict."""
Record = Mapping[str, Any]
"""A scored row, as a line of rows.jsonl: the row's own fields, `reply`, `reward` and `components`."""


@dataclass(frozen=True)
class LLM:
    """The model that an agent asks; Agent Lightning's `agl.LLM`, which training rollouts get, has the same fields."""

    endpoint: str
    model: str
    sampling_parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reward:
    """The reward of one answer: the scalar that trains and evaluates, and its named parts. All finite."""

    value: float
    components: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or not all(map(math.isfinite, self.components.values())):
            raise ValueError(f"a reward must be finite: {self}")

    def named(self) -> dict[str, float]:
        """As `agl.emit_reward` takes it, with `primary_key="reward"`."""
        return {"reward": self.value, **self.components}
