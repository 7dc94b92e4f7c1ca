"""A check's result: one line of the doctor's table."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """ok: None for what is only reported; found: what there is; cure: what to do where ok is False."""

    check: str
    ok: bool | None
    found: str
    cure: str = ""
