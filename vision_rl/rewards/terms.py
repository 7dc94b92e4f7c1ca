"""What all rewards share: the result type, and the format and length terms that stop replies from growing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Reward:
    """The reward of one answer: the scalar that trains and evaluates, and its named parts. All finite."""

    value: float
    components: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or not all(map(math.isfinite, self.components.values())):
            raise ValueError(f"a reward must be finite: {self}")


@dataclass(frozen=True)
class Terms:
    """Prices that are taken off a task reward.

    format_price: for a reply that is not in the format that was asked for.
    length_price: for a reply (reasoning included) of `limit_chars` characters or more; nothing up to `free_chars`,
    linear between the two. A price on length is what the group needs to prefer the shorter of two right answers.
    """

    format_price: float = 0.1
    length_price: float = 0.2
    free_chars: int = 2000
    limit_chars: int = 8000

    def length(self, chars: int) -> float:
        """The length term, from 0 down to -length_price."""
        if chars <= self.free_chars:
            return 0.0
        return -self.length_price * min(1.0, (chars - self.free_chars) / max(1, self.limit_chars - self.free_chars))

    def format(self, ok: bool) -> float:
        """The format term: 0, or -format_price."""
        return 0.0 if ok else -self.format_price


DEFAULT_TERMS = Terms()
