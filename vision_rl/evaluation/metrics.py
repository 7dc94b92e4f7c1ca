"""Figures of scored rows, from the reward's components, by the breakdowns of each task's official tables.

Nothing is scored here. VQA: accuracy (both sides normalised) and that of the strict code of 2021, overall,
by answer type and by question type. Grounding: point accuracy
(ScreenSpot's: the centre of the box lies in the true one), mean matched IoU and the share of rows at IoU 0.1 to 0.9, by
platform and type (ScreenSpot), group and type (ScreenSpot-Pro), by label (radiology) and by target size. Rows without truth (test
sets) have no figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from vision_rl.data.schema import group_of
from vision_rl.evaluation.intervals import mean_interval
from vision_rl.evaluation.official_tables import QUESTION_TABLES, benchmark_of, cells_of, cells_title, values_of
from vision_rl.rewards.calibration import brier_score, correlation, expected_calibration_error
from vision_rl.rewards.metrics import METRICS
from vision_rl.rewards.tools import target_kind
from vision_rl.run.tool_metrics import tool_metrics
from vision_rl.tasks import get_task
from vision_rl.types import Record

IOU_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
OUTCOMES = ("right", "wrong place", "wrong space", "wrong format")
NO_FINDING = "no finding"
CALIBRATION_BINS = 10
OVERALL = ("vqa", "official_2021", "iou")
"""Metrics that every row of their task has under a measure of its own."""
Measure = Callable[[Record], float]
Figure = dict[str, Any]
"""value, low and high (95 % interval; None where there is none), n."""


def _component(name: str) -> Measure:
    return lambda record: float(record["components"].get(name, 0.0))


def _at_iou(level: float) -> Measure:
    # A true IoU of 0.3 may be stored as 0.29999999999999993.
    return lambda record: float(record["components"].get("iou", 0.0) >= level - 1e-9)


_REWARD: dict[str, Measure] = {"reward": lambda record: float(record["reward"])}
VQA_MEASURES: dict[str, Measure] = {
    "accuracy": _component("accuracy"),
    "official 2021": _component("official_2021"),
    **_REWARD,
    "format ok": _component("format/ok"),
}
GROUNDING_MEASURES: dict[str, Measure] = {
    "point accuracy": _component("point"),
    "IoU": _component("iou"),
    **{f"ACC@{level}": _at_iou(level) for level in IOU_LEVELS},
    **_REWARD,
    **{
        name: (lambda record, name=name: float(outcome(record) == name))  # type: ignore[misc]
        for name in ("wrong place", "wrong space", "wrong format")
    },
}


def measures(task: str) -> dict[str, Measure]:
    """The figures of a task, by name."""
    row = get_task(task)
    own: dict[str, Measure] = row.part("measures")
    return own or {row.metric: _component(row.metric), **_REWARD, "format ok": _component("format/ok")}


def headline(task: str) -> tuple[str, ...]:
    """The measures that breakdowns show; the first one is what the task is judged by."""
    row = get_task(task)
    return row.headline or (row.metric,)


def scored(records: Iterable[Record]) -> list[Record]:
    """The rows that have a score: answered, and with a truth to compare with (an empty box list is one)."""
    return [
        record
        for record in records
        if not record["failure"] and (record["answers"] or get_task(record["task"]).truth != "answers")
    ]


def outcome(record: Record) -> str:
    """One of `OUTCOMES` for a grounding row: the format is asked before the place, so that the two are never mixed."""
    parts = record["components"]
    if parts.get("format/wrong_space"):
        return "wrong space"
    if not parts.get("format/ok", 0.0):
        return "wrong format"
    return "right" if parts.get("point", 0.0) >= 1.0 else "wrong place"


def breakdowns(record: Record) -> list[tuple[str, str]]:
    """(breakdown, value) pairs of a row: the tables that it counts in."""
    found = get_task(record["task"]).part("breakdowns")
    return [*(found(record) if found else ()), ("source", record["source"])]


def vqa_breakdowns(record: Record) -> list[tuple[str, str]]:
    """By the tables of `benchmarks.QUESTION_TABLES`; VQA-RAD and SLAKE write "OPEN", "Closed" and "CLOSED "."""
    meta = record["meta"]
    return [(title, value) for title, key in QUESTION_TABLES for value in values_of(meta, key)]


def grounding_breakdowns(record: Record) -> list[tuple[str, str]]:
    """By the tables of the row's benchmark, label and size of the target."""
    meta, row = record["meta"], benchmark_of(record["source"])
    found = [(title, value) for title, key in row.tables for value in values_of(meta, key)]
    if len(row.cells) > 1:
        found += [(cells_title(record["source"]), cell) for cell in cells_of(record["source"], meta)]
    # ScreenSpot's labels are its types.
    kinds = values_of(meta, "data_type")
    labels = list(dict.fromkeys(label for label in record["labels"] if label and label.lower() not in kinds))
    if not record["boxes"]:
        labels = [NO_FINDING]
    found += [("label", label) for label in labels]
    found.append(("rows", "with something to find" if record["boxes"] else "with nothing to find"))
    return found + [("target size", target_size(box)) for box in record["boxes"][:1]]


def cell_means(task: str, records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Headline measure -> {cells, number, value}: its mean over the cells of the set's main table, each weighing alike.

    Empty for rows of several sets, and where no row has the fields of a cell.
    """
    rows = scored(records)
    sources = {record["source"] for record in rows}
    cells: dict[str, list[Record]] = {}
    for record in rows if len(sources) == 1 else ():
        for cell in cells_of(record["source"], record["meta"]):
            cells.setdefault(cell, []).append(record)
    if len(cells) < 2:
        return {}
    title, known = cells_title(next(iter(sources))), measures(task)
    return {
        name: {
            "cells": title,
            "number": len(cells),
            "value": float(np.mean([np.mean([known[name](record) for record in inside]) for inside in cells.values()])),
        }
        for name in headline(task)
    }


def by_metric(records: Sequence[Record]) -> dict[str, Figure]:
    """Metric -> figure over the rows that name it, or that a run's reward has scored by it; none of the task's own figures."""
    groups: dict[str, list[Record]] = {}
    shown = {*OVERALL, *(name for record in records for name in measures(record["task"]))}
    for record in scored(records):
        for name in (name for name in METRICS if name in record["components"] and name not in shown):
            groups.setdefault(name, []).append(record)
    return {name: figure(rows, _component(name)) for name, rows in groups.items()}


def by_source(records: Sequence[Record]) -> dict[str, dict[str, Figure]]:
    """Source -> metric -> figure over its rows: the metric that a row names, else its task's own.

    Rows whose reward was another one, so that they have no such number, are left out.
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in scored(records):
        name = record.get("metric") or get_task(record["task"]).metric
        if _COMPONENTS.get(name, name) in record["components"]:
            groups.setdefault(record["source"], {}).setdefault(name, []).append(record)
    return {
        source: {name: figure(rows, _component(_COMPONENTS.get(name, name))) for name, rows in sorted(metrics.items())}
        for source, metrics in sorted(groups.items())
    }


_COMPONENTS = {"vqa": "accuracy", "point_in_box": "point"}
"""Metrics whose component has another name."""


def target_size(box: Sequence[float]) -> str:
    """ "small" or "large", as Arc Vision's reward counts: below or above 5 % of the picture."""
    return "small" if target_kind((box[0], box[1], box[2], box[3])) == "small" else "large"


def tool_figures(records: Sequence[Record]) -> dict[str, float] | None:
    """Use rate, and success (the point hit) with and without tools, overall and by target size; None without tools."""
    figures = tool_metrics([record["components"] for record in scored(records)], "all")
    return {name.removeprefix("all/").removeprefix("tools/"): value for name, value in figures.items()} or None


def cluster(record: Record) -> str:
    """What makes rows depend on each other: the patient, where a row names one, else its first picture; an episode stands
    alone."""
    return group_of(record) or str(record["image_paths"][0] if record["image_paths"] else record["id"])


def figure(records: Sequence[Record], measure: Measure) -> Figure:
    """Mean of a measure with its interval, drawn by `cluster`; value None for no rows."""
    if not records:
        return {"value": None, "low": None, "high": None, "n": 0}
    values = [measure(record) for record in records]
    interval = mean_interval(values, [cluster(record) for record in records])
    low, high = interval or (None, None)
    return {"value": float(np.mean(values)), "low": low, "high": high, "n": len(values)}


def overall(task: str, records: Sequence[Record]) -> dict[str, Figure]:
    """Every measure of a task over all scored rows."""
    rows = scored(records)
    return {name: figure(rows, measure) for name, measure in measures(task).items()}


def by_breakdown(task: str, records: Sequence[Record]) -> dict[str, dict[str, dict[str, Figure]]]:
    """breakdown -> value -> headline measure -> figure, in the order of the official tables, else by name."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in scored(records):
        for title, value in breakdowns(record):
            groups.setdefault(title, {}).setdefault(value, []).append(record)
    for title in ("source", "rows"):
        if len(groups.get(title, {})) < 2:
            groups.pop(title, None)
    return {
        title: {
            value: {name: figure(values[value], measures(task)[name]) for name in headline(task)}
            for value in sorted(values, key=_official_order)
        }
        for title, values in groups.items()
    }


_OFFICIAL = ("yes/no", "number", "other", "mobile", "desktop", "web", "text", "icon")


def _official_order(value: str) -> tuple[list[int], str]:
    words = [_OFFICIAL.index(word) if word in _OFFICIAL else len(_OFFICIAL) for word in value.split()]
    return words if all(word < len(_OFFICIAL) for word in words) else [len(_OFFICIAL)], value


def outcome_counts(records: Sequence[Record]) -> dict[str, int]:
    """How often each outcome of `OUTCOMES` came, for grounding rows."""
    found = [outcome(record) for record in scored(records)]
    return {name: found.count(name) for name in OUTCOMES}


def calibration(task: str, records: Sequence[Record]) -> dict[str, Any] | None:
    """How far stated confidences can be trusted; None if no row states one.

    The outcome is the task's hit component (accuracy, or the point hit); the correlation is with its metric.
    bins: for the reliability diagram, {n, confidence, outcome} of each tenth that has rows.
    """
    rows = [record for record in scored(records) if "confidence" in record["components"]]
    if not rows:
        return None
    right, graded = get_task(task).hit_component, get_task(task).metric
    stated = [record["components"]["confidence"] for record in rows]
    outcomes = [record["components"][right] for record in rows]
    places = [min(int(confidence * CALIBRATION_BINS), CALIBRATION_BINS - 1) for confidence in stated]
    bins = []
    for place in sorted(set(places)):
        inside = [index for index, other in enumerate(places) if other == place]
        bins.append(
            {
                "n": len(inside),
                "confidence": float(np.mean([stated[index] for index in inside])),
                "outcome": float(np.mean([outcomes[index] for index in inside])),
            }
        )
    return {
        "n": len(rows),
        "ece": expected_calibration_error(stated, outcomes, CALIBRATION_BINS),
        "brier": brier_score(stated, outcomes),
        "correlation": correlation(stated, [record["components"][graded] for record in rows]),
        "mean_confidence": float(np.mean(stated)),
        "mean_outcome": float(np.mean(outcomes)),
        "bins": bins,
    }


def truncated(records: Sequence[Record]) -> Figure:
    """The share of answered rows whose last reply the length limit cut off, as the server said."""
    answered = [record for record in records if not record["failure"]]
    return figure(answered, lambda record: float(record["usage"].get("truncated") or 0.0))


def usage_totals(records: Sequence[Record]) -> dict[str, Any]:
    """Tokens, requests and latency of all rows; latency in seconds per answered row, without pauses and retries."""
    used = [record["usage"] for record in records]
    latency = [record["usage"]["seconds"] for record in records if not record["failure"] and record["usage"]["calls"]]
    at: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {
        "requests": sum(usage["calls"] for usage in used),
        "rate_limited": sum(usage["rate_limited"] for usage in used),
        "server_errors": sum(usage["errors"] for usage in used),
        "prompt_tokens": sum(usage["prompt_tokens"] for usage in used),
        "completion_tokens": sum(usage["completion_tokens"] for usage in used),
        "latency_seconds": {
            "mean": float(np.mean(latency)),
            **{name: float(np.quantile(latency, share)) for name, share in at.items()},
        }
        if latency
        else None,
    }
