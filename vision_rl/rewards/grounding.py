"""Grounding rewards: a reply's boxes are matched one to one with the true boxes, in unit space.

score = (sum over matched pairs of their similarity + floor x unmatched boxes of either side) / max(predicted, true).
With similarities of at least `floor`, k boxes for one target score at most the mean of their single scores, so that
listing boxes never beats naming one of them, and an empty answer never beats an attempt. `floor` is 0, or -1 for
GIoU, DIoU and CIoU, which fall to -1 for boxes far away (CIoU, which can fall lower, is cut there).
"ranked" is the exception: it pays for several points in the order of belief, see `ranked_score`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vision_rl.answers.boxes import SIMILARITIES, Box, iou_pair, match, point_in_box, point_in_polygon
from vision_rl.answers.coordinates import in_space
from vision_rl.answers.parsing import BoxReading, reasoning_is_closed
from vision_rl.answers.space import UNIT_BOXES, AnswerSpace
from vision_rl.errors import UserError
from vision_rl.rewards.terms import with_terms
from vision_rl.rewards.tools import Call, arc_reward
from vision_rl.settings import DEFAULT_TERMS, DEFAULT_WEIGHTS, ArcWeights, Terms
from vision_rl.types import Reward

KINDS = (
    *("iou", "giou", "diou", "ciou", "acc_at_iou_0.5", "point", "point_in_box", "gaussian", "distance"),
    *("ranked", "arc", "max_iou"),
)
DEFAULT = "iou"
POINT_KINDS = ("point", "point_in_box", "gaussian", "distance", "ranked")
"""Kinds that score a point as well as a box; the others need a box."""

_FLOORS = {"giou": -1.0, "diou": -1.0, "ciou": -1.0, "ranked": -1.0}
_SLACK = 0.02
_STRAIGHT = 1e-6
"""Points that lie this close to one line, in unit space, are a sweep and no candidates."""


def box_metric(reward: str, metric_of_row: str, points: bool) -> str:
    """What scores a row: the reward that was set for the run, or where none was (`DEFAULT`) the row's own metric.

    points: the answers are points, of which `DEFAULT` and metrics of boxes know nothing: "point" takes their place.
    """
    if reward != DEFAULT:
        return reward
    if metric_of_row in (POINT_KINDS if points else KINDS):
        return metric_of_row
    return "point" if points else reward


def _usable(reading: BoxReading, size: tuple[float, float], points: bool) -> tuple[list[Box], int, int]:
    """(boxes in unit space, number of boxes in a wrong space, number of boxes that are none) of what was parsed."""
    width, height = size
    boxes: list[Box] = []
    wrong_space = bad = 0
    for box in reading.boxes:
        if not in_space(box, size):
            wrong_space += 1
            continue
        x1, y1, x2, y2 = box[0] / width, box[1] / height, box[2] / width, box[3] / height
        ordered = (x1 <= x2 and y1 <= y2) if points else (x1 < x2 and y1 < y2)
        if not ordered or x1 < -_SLACK or y1 < -_SLACK:
            bad += 1
            continue
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, 1.0), min(y2, 1.0)
        if (x1 <= x2 and y1 <= y2) if points else (x1 < x2 and y1 < y2):
            boxes.append((x1, y1, x2, y2))
        else:
            bad += 1
    return boxes, wrong_space, bad


def match_score(predicted: Sequence[Box], true: Sequence[Box], kind: str, bad: int = 0) -> float:
    """The score of the module's first paragraph for a similarity of `boxes.SIMILARITIES`; 1.0 if both are empty.

    bad: predicted boxes that were written but cannot be used; they count as boxes that match nothing.
    """
    floor = _FLOORS.get(kind, 0.0)
    written = len(predicted) + bad
    if written == len(predicted) == len(true) == 1:
        return max(SIMILARITIES[kind](predicted[0], true[0]), floor)
    most = max(written, len(true))
    if most == 0:
        return 1.0
    pairs = match(predicted, true, kind)
    return (sum(max(score, floor) for _, _, score in pairs) + floor * (most - len(pairs))) / most


def point_score(
    predicted: Sequence[Box], true: Sequence[Box], bad: int = 0, polygons: Sequence[Sequence[float]] = ()
) -> float:
    """`match_score` of "point"; where polygons (x1, y1, x2, y2, ...) are given, one per true box, they are the targets."""
    if not polygons:
        return match_score(predicted, true, "point", bad)
    table = [[point_in_polygon((p[0] + p[2]) / 2, (p[1] + p[3]) / 2, shape) for shape in polygons] for p in predicted]
    if not table:
        return 0.0
    if len(table) == len(polygons) == 1:
        return float(table[0][0]) / (1 + bad)
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(np.array(table, dtype=float), maximize=True)
    hits = sum(table[i][j] for i, j in zip(rows.tolist(), columns.tolist(), strict=True))
    return hits / max(len(predicted) + bad, len(polygons))


def ranked_score(predicted: Sequence[Box], true: Sequence[Box], bad: int = 0) -> float:
    """InfiGUI-G1's adaptive exploration reward (arXiv 2508.05731) in [-1, 1] for n points in the order of belief.

    1 / sqrt(n k) if the k-th point is the first that hits, -1 / n if none does, -1 for three or more points on one line.
    It pays for exploring: listing n candidates can beat naming one at random, which is what it is for. With several
    true boxes n counts the points beyond one for each, and a hit pays the share of the boxes that were hit.
    """
    n = len(predicted) + bad
    if not n or not true:
        return 1.0 if not n and not true else -1.0 / max(n, 1)
    centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in predicted]
    if len(centres) >= 3 and _on_one_line(centres):
        return -1.0
    for rank, (x, y) in enumerate(centres, start=1):
        if any(point_in_box(x, y, box) for box in true):
            found = sum(any(point_in_box(*centre, box) for centre in centres) for box in true)
            return found / len(true) / math.sqrt(max(1, n - len(true) + 1) * rank)
    return -1.0 / n


def _on_one_line(points: Sequence[tuple[float, float]]) -> bool:
    """Whether all points lie on one line, equal points included."""
    (x0, y0), far = points[0], max(points, key=lambda point: math.dist(point, points[0]))
    dx, dy = far[0] - x0, far[1] - y0
    length = math.hypot(dx, dy)
    if length < _STRAIGHT:
        return True
    return all(abs(dx * (y - y0) - dy * (x - x0)) / length < _STRAIGHT for x, y in points)


def max_iou(predicted: Sequence[Box], true: Sequence[Box]) -> float:
    """The largest IoU of any predicted with any true box. Listing boxes games it."""
    return max((iou_pair(p, t) for p in predicted for t in true), default=0.0)


def grounding_reward(
    reply: str,
    true_boxes: Sequence[Sequence[float]],
    space: AnswerSpace = UNIT_BOXES,
    *,
    kind: str = "iou",
    tool_calls: Sequence[Call] = (),
    target: Box | None = None,
    polygons: Sequence[Sequence[float]] = (),
    truncated: bool = False,
    terms: Terms = DEFAULT_TERMS,
    weights: ArcWeights = DEFAULT_WEIGHTS,
) -> Reward:
    """The reward of a whole reply to a grounding instruction.

    true_boxes: xyxy in unit space; none means that there is nothing to find, and the reply must say so (an empty list
    in its format, the point -1, -1, or "no finding"). space: what the reply's numbers mean. kind: one of `KINDS`; a format
    of points takes `POINT_KINDS` only. "arc" also reads `tool_calls`, (name, arguments) of the calls that were made, and
    `target`, the first true box in the whole picture where `true_boxes` are those of a zoomed view. "max_iou" is
    without any term. polygons: see `point_score`. truncated: the length limit cut the reply off; its whole
    boxes are scored. `UserError` for bad settings. Boxes in a wrong space, and swapped or negative corners, match
    nothing and cost like any other extra box; the prompt's template echoed is no box and costs the format term.
    Components: task (again under the kind's own name), iou (matched), point (hit rate of the centres), format/ok,
    format/wrong_space (0 or 1), format/malformed, format/placeholder, boxes/predicted, boxes/extra, boxes/missing,
    boxes/refused (0 or 1, where there is something to find),
    truncated, and those of the terms and of Arc Vision.
    """
    kind, points = checked_kind(kind, space), space.takes_points
    true: list[Box] = [(box[0], box[1], box[2], box[3]) for box in true_boxes]
    reading = space.read(reply, truncated=truncated)
    boxes, wrong_space, bad = _usable(reading, space.size, points or kind in POINT_KINDS)
    unusable = wrong_space + bad + reading.malformed
    written = len(boxes) + unusable
    answered = written > 0 or reading.none
    components = {
        "iou": match_score(boxes, true, "iou", unusable) if answered else 0.0,
        "point": point_score(boxes, true, unusable, polygons) if answered else 0.0,
        "format/wrong_space": float(wrong_space > 0),
        "format/malformed": float(reading.malformed + bad),
        "format/placeholder": float(reading.placeholders),
        "boxes/predicted": float(written),
        "boxes/extra": float(max(0, written - len(true))),
        "boxes/missing": float(max(0, len(true) - len(boxes))),
    }
    if true:
        components["boxes/refused"] = float(reading.none and not written)
    format_ok = answered and not unusable and not reading.placeholders
    format_ok = format_ok and ("<" not in reply or reasoning_is_closed(reply))
    if kind == "max_iou":
        components["task"] = value = max_iou(boxes, true)
        components["format/ok"], components["truncated"] = float(format_ok), float(truncated)
        return Reward(value, components)
    if kind == "arc":
        first = target or (true[0] if true else None)
        arc = arc_reward(components["iou"], first if true else None, tool_calls, weights)
        return with_terms(arc.value, components | arc.components, reply, format_ok, terms, truncated)
    if not answered:
        components["task"] = _FLOORS.get(kind, 0.0)
    elif kind in components:
        components["task"] = components[kind]
    elif kind == "ranked":
        components["task"] = ranked_score(boxes, true, unusable)
    else:
        similarity = "gaussian_point" if points and kind == "gaussian" else kind
        components["task"] = match_score(boxes, true, similarity, unusable)
    components.setdefault(kind, components["task"])
    return with_terms(components["task"], components, reply, format_ok, terms, truncated)


def checked_kind(kind: str, space: AnswerSpace) -> str:
    """The kind under its own name; `UserError` for one that does not exist or cannot score the format's answers."""
    if kind not in KINDS:
        raise UserError(f"agent.reward={kind} is not a reward for grounding; choose one of {', '.join(KINDS)}")
    if kind not in POINT_KINDS and space.takes_points:
        raise UserError(
            f"agent.reward={kind} needs a box, but agent.answer_format={space.answer_format} asks for a point; "
            f"use {', '.join(POINT_KINDS)}"
        )
    return "point" if kind == "point_in_box" else kind
