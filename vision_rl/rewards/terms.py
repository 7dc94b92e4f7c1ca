"""The terms that all rewards share: deductions for bad format and for length, which stop replies from growing."""

from __future__ import annotations

from vision_rl.answers.parsing import parse_confidence
from vision_rl.settings import Terms
from vision_rl.types import Reward


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
