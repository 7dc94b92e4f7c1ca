"""Detection figures of grounding answers without scores: average precision, and Dice against outlines.

A model writes boxes without scores, so all enter at once: precision P and recall R are one point, and the area under it is
AP = P x R. pycocotools sorts equal scores by the numbering of the pictures, and gives 1.0 or 0.5 for the same boxes. Boxes are
paired one to one so that as many as possible reach the IoU. Two means are reported, as they differ:

- per class: P and R over all pictures of a finding, averaged over findings (VinDr-CXR's challenge, at IoU 0.4);
- per picture: P and R of each picture with something to find, averaged over pictures (RadVLM, at IoU 0.5).

Intervals draw whole patients, where rows name them, else pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from vision_rl.answers.boxes import Box, iou
from vision_rl.evaluation.intervals import RESAMPLES, mean_interval
from vision_rl.media.images import image_size
from vision_rl.settings import AgentSettings
from vision_rl.tasks import get_task

LEVELS = (0.4, 0.5)
_GRID = 512
_BLOCK = 200
Record = Mapping[str, Any]


def detection_figures(records: Sequence[Record], settings: AgentSettings, clusters: Sequence[str]) -> dict[str, Any]:
    """Figures (value, low, high, n) by name of scored rows of one task; empty where no answer can be drawn as boxes.

    clusters: what each record's interval is drawn by.
    """
    drawing = get_task(records[0]["task"]).part("drawing") if records else None
    if drawing is None:
        return {}
    sizes = [(record.get("image_sizes") or [None])[0] or image_size(record["image_paths"][0]) for record in records]
    predicted = [drawing(record, settings, (size[0], size[1])) for record, size in zip(records, sizes, strict=True)]
    found: dict[str, Any] = {}
    for level in LEVELS:
        counts = np.array(
            [_counts(boxes, record["boxes"], level) for boxes, record in zip(predicted, records, strict=True)]
        )
        found[f"AP@{level} per class"] = _per_class([class_of(record) for record in records], counts, clusters)
        seen = np.flatnonzero(counts[:, 2])
        values = _precision(counts[seen].astype(float)).tolist()
        found[f"AP@{level} per picture"] = _figure(values, [clusters[row] for row in seen])
    shaped = [row for row, record in enumerate(records) if record["meta"].get("polygons")]
    if shaped:
        dice = [_dice(predicted[row], records[row]["meta"]["polygons"]) for row in shaped]
        found["Dice"] = _figure(dice, [clusters[row] for row in shaped])
    return found


def class_of(record: Record) -> str:
    """The finding that a row asks for: the one named in its question, else its only label, else any."""
    labels = {label for label in record["labels"] if label}
    return str(record["meta"].get("finding") or (labels.pop() if len(labels) == 1 else "any finding"))


def _counts(predicted: Sequence[Box], true: Sequence[Sequence[float]], level: float) -> tuple[int, int, int]:
    """(pairs that reach the IoU, predicted, true)."""
    if not predicted or not true:
        return 0, len(predicted), len(true)
    from scipy.optimize import linear_sum_assignment

    hits = iou(np.array(predicted)[:, None], np.array(true)[None]) >= level - 1e-9
    rows, columns = linear_sum_assignment(hits, maximize=True)
    return int(hits[rows, columns].sum()), len(predicted), len(true)


def _precision(counts: NDArray[Any]) -> NDArray[np.float64]:
    """AP = P x R of (..., 3) counts; 0 without predictions."""
    hits, predicted, true = counts[..., 0], counts[..., 1], counts[..., 2]
    return hits**2 / np.maximum(predicted * true, 1)


def _per_class(classes: Sequence[str], counts: NDArray[Any], clusters: Sequence[str]) -> dict[str, Any]:
    names, places = list(dict.fromkeys(classes)), list(dict.fromkeys(clusters))
    sums = np.zeros((len(places), len(names), 3))
    np.add.at(sums, ([places.index(c) for c in clusters], [names.index(c) for c in classes]), counts)

    def means(totals: NDArray[Any]) -> NDArray[np.float64]:
        real = totals[..., 2] > 0
        return (_precision(totals) * real).sum(-1) / np.maximum(real.sum(-1), 1)

    if not counts[:, 2].any():
        return {"value": None, "low": None, "high": None, "n": 0}
    rng, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES // _BLOCK):
        times = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), size=_BLOCK)
        drawn.append(means(np.tensordot(times, sums, 1)))
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    value = float(means(sums.sum(0)))
    # Equal in every sample: resampling has nothing to say (see `mean_interval`).
    ends = (None, None) if low == high else (float(low), float(high))
    return {"value": value, "low": ends[0], "high": ends[1], "n": len(classes)}


def _figure(values: Sequence[float], clusters: Sequence[str]) -> dict[str, Any]:
    low, high = (mean_interval(values, clusters) if values else None) or (None, None)
    return {"value": float(np.mean(values)) if values else None, "low": low, "high": high, "n": len(values)}


def _dice(boxes: Sequence[Box], polygons: Sequence[Sequence[float]]) -> float:
    """2 |A and B| / (|A| + |B|) of the boxes together and the outlines together, on a grid over the picture."""
    drawn, true = (Image.new("1", (_GRID, _GRID)) for _ in range(2))
    for x1, y1, x2, y2 in boxes:
        left, top = max(0, round(x1 * _GRID)), max(0, round(y1 * _GRID))
        drawn.paste(1, (left, top, max(left, round(x2 * _GRID)), max(top, round(y2 * _GRID))))
    for polygon in polygons:
        ImageDraw.Draw(true).polygon([number * _GRID for number in polygon], fill=1)
    a, b = np.asarray(drawn), np.asarray(true)
    return float(2 * (a & b).sum() / max(int(a.sum() + b.sum()), 1))
