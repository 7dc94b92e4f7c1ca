"""report.html: one self-contained page with figures, calibration and the pictures, worst and best cases first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from vision_rl.evaluation import summary as texts
from vision_rl.evaluation.cases import Case, case_of, worst_and_best
from vision_rl.evaluation.metrics import headline
from vision_rl.evaluation.report_template import TEMPLATE
from vision_rl.evaluation.store import Record, write_text
from vision_rl.parsing import parse_answer
from vision_rl.tasks import get_task

REPORT = "report.html"
CASES = 12
"""Rows shown of either end."""


def write_report(directory: Path, summary: Mapping[str, Any], records: Sequence[Record]) -> Path:
    """Write `directory/report.html`; returns its path."""
    worst, best = worst_and_best(str(summary["task"]), records, CASES)
    settings = summary["settings"]
    page = render_report(summary, [case_of(r, settings) for r in worst], [case_of(r, settings) for r in best])
    write_text(directory / REPORT, page)
    return directory / REPORT


def render_report(summary: Mapping[str, Any], worst: Sequence[Case], best: Sequence[Case]) -> str:
    """The page as text. Boxes are SVG rectangles in unit space over each picture, so they stay sharp at any size."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["answer"] = parse_answer
    return environment.from_string(TEMPLATE).render(
        summary=summary,
        data=Path(summary["data"]).name,
        headline=headline(summary["task"]),
        task=get_task(summary["task"]),
        coverage=texts.coverage(summary),
        usage=texts.usage_lines(summary),
        show=texts.show,
        interval=texts.show_interval,
        tool_rows=texts.tool_rows,
        sections=(("Worst cases", worst), ("Best cases", best)),
        human=_counted_answers,
    )


def _counted_answers(answers: Sequence[str]) -> str:
    """Human answers with how many gave them, the most common first."""
    counts = {answer: list(answers).count(answer) for answer in answers}
    ordered = sorted(counts, key=lambda answer: -counts[answer])
    return ", ".join(f"{answer} ({counts[answer]})" if len(answers) > 1 else answer for answer in ordered)
