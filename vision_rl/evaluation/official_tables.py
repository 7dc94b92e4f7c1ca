"""The breakdowns that benchmarks print: which fields of `meta` they use, by a row's source.

GUI benchmarks as their owners score them: a point in the target (a box, or a polygon of OSWorld-G), a refusal where
there is none, counted over rows; some tables average their cells instead, so both means are given and named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Pairs = tuple[tuple[str, str], ...]
"""(title of the table, key of `meta`)."""

_TYPE = ("type", "data_type")


@dataclass(frozen=True)
class Benchmark:
    """One set. tables: its breakdowns. cells: the keys of `meta` whose combinations are the cells of its main table."""

    tables: Pairs
    cells: tuple[str, ...]


_SCREENSPOT = Benchmark((("platform", "platform"), _TYPE), ("platform", "data_type"))
BENCHMARKS: dict[str, Benchmark] = {
    "screenspot": _SCREENSPOT,
    "screenspot-v2": _SCREENSPOT,
    "screenspot-pro": Benchmark(
        (
            *(("group", "group"), _TYPE, ("application", "application"), ("platform", "platform")),
            *(("instruction style", "instruction_style"), ("language", "language"), ("target", "gt_type")),
        ),
        ("group", "data_type"),
    ),
    "osworld-g": Benchmark((("element type", "GUI_types"), ("target", "box_type")), ("GUI_types",)),
    "ui-vision": Benchmark((("setting", "setting"), ("platform", "platform")), ("setting",)),
    "mmbench-gui-l2": Benchmark(
        (("platform", "platform"), ("level", "grounding_type"), _TYPE), ("platform", "grounding_type")
    ),
    "venusbench-gd": Benchmark((("task", "task_type"), ("platform", "platform")), ("task_type",)),
}
"""By source, as `data_utils.py convert` writes it. Any other source gets ScreenSpot's table where its rows have the fields."""

QUESTION_TABLES: Pairs = (
    *(("answer type", "answer_type"), ("question type", "question_type"), ("language", "q_lang")),
    *(("content type", "content_type"), ("modality", "modality"), ("organ", "image_organ")),
    *(("phrase type", "phrase_type"), ("category", "category"), ("subject", "subject")),
)
"""Breakdowns of question sets: VQAv2, VQA-RAD (organ, phrase type), SLAKE (language, content, modality), MMMU, ChartQA."""


def benchmark_of(source: str) -> Benchmark:
    """The row of a source; ScreenSpot's for one that has none."""
    return BENCHMARKS.get(source, _SCREENSPOT)


def values_of(meta: Mapping[str, Any], key: str) -> list[str]:
    """The values of a field as a table shows them: small letters, single blanks; each item of a list is one."""
    found = meta.get(key)
    items = found if isinstance(found, list) else [found]
    return [" ".join(str(item).lower().split()) for item in items if item not in (None, "")]


def cells_of(source: str, meta: Mapping[str, Any]) -> list[str]:
    """The cells of its set's main table that a row counts in; none where a field is missing."""
    cells = [""]
    for key in benchmark_of(source).cells:
        cells = [f"{cell} {value}".strip() for cell in cells for value in values_of(meta, key)]
    return cells


def cells_title(source: str) -> str:
    """What the cells are, in words: "platform x type"."""
    row = benchmark_of(source)
    titles = {key: title for title, key in row.tables}
    return " x ".join(titles[key] for key in row.cells)
