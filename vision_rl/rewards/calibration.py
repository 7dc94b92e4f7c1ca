"""Calibration of stated confidences: calibration error, Brier score, correlation with the IoU.

Works on what a run has collected; confidences come from `vision_rl.answers.parsing.parse_confidence`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def expected_calibration_error(confidences: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> float:
    """ECE in [0, 1]: mean |confidence - outcome| over equal-width bins, weighted by their sizes; 0.0 for no data.

    confidences in [0, 1]; outcomes 0 or 1 (right or wrong), or a score in [0, 1]. A confidence on a border between two
    bins belongs to the upper one, 1.0 to the last.
    """
    if not confidences:
        return 0.0
    sums = [[0.0, 0.0] for _ in range(bins)]
    for confidence, outcome in zip(confidences, outcomes, strict=True):
        entry = sums[min(int(confidence * bins), bins - 1)]
        entry[0] += confidence
        entry[1] += outcome
    # |mean - mean| times size is |sum - sum|.
    return sum(abs(confidence - outcome) for confidence, outcome in sums) / len(confidences)


def brier_score(confidences: Sequence[float], outcomes: Sequence[float]) -> float:
    """Mean squared difference of confidence and outcome, in [0, 1]; 0.0 for no data."""
    pairs = list(zip(confidences, outcomes, strict=True))
    return sum((confidence - outcome) ** 2 for confidence, outcome in pairs) / len(pairs) if pairs else 0.0


def correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Pearson correlation in [-1, 1]; 0.0 where undefined (fewer than two pairs, or a side that never varies)."""
    n = len(a)
    if n != len(b):
        raise ValueError(f"correlation of {n} with {len(b)} numbers")
    if n < 2 or min(a) == max(a) or min(b) == max(b):
        return 0.0
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / n
    da, db = [x - mean_a for x in a], [y - mean_b for y in b]
    # Scaled by the largest deviation first, so that tiny spreads do not underflow to 0.
    scale_a, scale_b = max(map(abs, da)), max(map(abs, db))
    if scale_a == 0 or scale_b == 0:
        return 0.0
    da, db = [x / scale_a for x in da], [y / scale_b for y in db]
    top = math.fsum(x * y for x, y in zip(da, db, strict=True))
    value = top / math.sqrt(math.fsum(x * x for x in da) * math.fsum(y * y for y in db))
    return max(-1.0, min(1.0, value))
