"""Find the best validation and count those after it, from the metrics alone, so that a resumed run knows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vision_rl.errors import UserError
from vision_rl.settings import Validation

VALIDATED = "val/reward"
"""The metric that every validation has."""


def judged(best: dict[str, Any] | None, step: int, metrics: Mapping[str, Any], rule: Validation) -> dict[str, Any]:
    """The record after a validation at `step`: {"step", "metric", "value", "since"}, since = validations without gain.

    Raises `UserError` where the validation did not measure `rule.metric`.
    """
    value = metrics.get(rule.metric)
    if value is None:
        names = ", ".join(sorted(name for name in metrics if name.startswith("val/")))
        raise UserError(f"app.validation.metric={rule.metric} is not measured; choose one of {names}")
    gain = float("inf") if best is None else (value - best["value"]) * (1 if rule.maximize else -1)
    if best is None or gain > rule.min_delta:
        return {"step": step, "metric": rule.metric, "value": value, "since": 0}
    return {**best, "since": best["since"] + 1}


def best_of(lines: Iterable[Mapping[str, Any]], rule: Validation) -> dict[str, Any] | None:
    """The record after the validations of a metrics.jsonl; None if there was none."""
    best = None
    for line in lines:
        if line.get(VALIDATED) is not None:
            best = judged(best, line["step"], line, rule)
    return best
