"""Figures of a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from vision_rl.tasks import get_task

BREAKDOWNS = ("answer_type", "question_type", "data_type", "data_source", "platform", "ui_type")
_TOP = 15


def summarise(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Counts and quantiles of normalised rows as plain JSON-able values; areas are shares of the image."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in ("task", "metric", "source", "media")}
    answers: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    fields: dict[str, Counter[str]] = {name: Counter() for name in BREAKDOWNS}
    images: set[str] = set()
    words, boxes, areas, widths, heights, per_row = [], [], [], [], [], []
    for row in rows:
        for name, counter in counts.items():
            counter[row[name] or "none"] += 1
        images.update(row["image_paths"])
        per_row.append(len(row["image_paths"]))
        words.append(len(row["question"].split()))
        answers.update(row["answers"])
        labels.update(label for label in row["labels"] if label)
        if get_task(row["task"]).truth == "boxes":
            boxes.append(len(row["boxes"]))
        areas += [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in row["boxes"]]
        widths += [width for width, _ in row["image_sizes"]]
        heights += [height for _, height in row["image_sizes"]]
        for name, counter in fields.items():
            if row["meta"].get(name) not in (None, ""):
                counter[str(row["meta"][name])] += 1
    return {
        "rows": len(words),
        "distinct_images": len(images),
        "images_per_row": quantiles(per_row),
        **{name: dict(counter.most_common()) for name, counter in counts.items()},
        "question_words": quantiles(words),
        "answers": dict(answers.most_common(_TOP)),
        "distinct_answers": len(answers),
        "boxes_per_row": quantiles(boxes),
        "no_finding_rows": sum(count == 0 for count in boxes),
        "box_area": quantiles(areas),
        "labels": dict(labels.most_common(_TOP)),
        "image_width": quantiles(widths),
        "image_height": quantiles(heights),
        **{name: dict(counter.most_common(_TOP)) for name, counter in fields.items()},
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Minimum, quartiles, maximum and mean; empty for no values."""
    if not values:
        return {}
    ordered = sorted(values)
    at = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "max": 1.0}
    result: dict[str, float] = {name: ordered[round(share * (len(ordered) - 1))] for name, share in at.items()}
    result["mean"] = sum(ordered) / len(ordered)
    return result


def as_text(summary: dict[str, Any]) -> str:
    """The summary as aligned lines; what is empty is left out."""
    lines = []
    for name, value in summary.items():
        if isinstance(value, dict):
            value = "  ".join(
                f"{key}: {number:.4g}" if isinstance(number, float) else f"{key}: {number}"
                for key, number in value.items()
            )
        if value not in ("", 0):
            lines.append(f"{name:16s} {value}")
    return "\n".join(lines)
