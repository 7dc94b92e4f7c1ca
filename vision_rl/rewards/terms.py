"""What all rewards share: the result type, and the format and length terms that stop replies from growing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vision_rl.answers.parsing import parse_confidence


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
    truncated_price: for a reply that the length limit cut off, or a policy could write on without end behind its answer.
    """

    format_price: float = 0.1
    length_price: float = 0.2
    free_chars: int = 2000
    limit_chars: int = 8000
    truncated_price: float = 0.1

    def length(self, chars: int) -> float:
        """The length term, from 0 down to -length_price."""
        if chars <= self.free_chars:
            return 0.0
        return -self.length_price * min(1.0, (chars - self.free_chars) / max(1, self.limit_chars - self.free_chars))

    def format(self, ok: bool) -> float:
        """The format term: 0, or -format_price."""
        return 0.0 if ok else -self.format_price


DEFAULT_TERMS = Terms()


def terms_of(settings: Mapping[str, Any]) -> Terms:
    """The terms of a task's settings (`agent.terms.*`)."""
    return Terms(**settings["terms"]) if settings.get("terms") else DEFAULT_TERMS


def with_terms(
    score: float, components: dict[str, float], reply: str, format_ok: bool, terms: Terms, truncated: bool = False
) -> Reward:
    """A reward of a task score plus the format, length and truncation terms of the reply, with their components added."""
    format_term, length_term = terms.format(format_ok), terms.length(len(reply))
    components["format/ok"] = float(format_ok)
    components["format/term"] = format_term
    components["length"] = float(len(reply))
    components["length/term"] = length_term
    components["truncated"] = float(truncated)
    cut_term = -terms.truncated_price if truncated else 0.0
    confidence = parse_confidence(reply)
    if confidence is not None:
        components["confidence"] = confidence
    return Reward(score + format_term + length_term + cut_term, components)
