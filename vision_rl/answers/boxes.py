"""Box geometry: areas, the IoU family, point-in-box, the GUI-G2 Gaussians, one-to-one matching.

Boxes are xyxy in any one space (all boxes of a call in the same one); x grows to the right, y downwards.
Every measure exists twice: for arrays with broadcasting (`iou(a, b)`), and for two plain tuples
(`SIMILARITIES["iou"]`), because most answers hold one box, and there a numpy call costs more than the arithmetic.

Sources: GIoU arXiv 1902.09630, DIoU and CIoU arXiv 1911.08287, Gaussians arXiv 2507.15846 (GUI-G2, alpha = 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[float, float, float, float]
Array = NDArray[np.float64]

_V_SCALE = 4 / math.pi**2


def area(boxes: ArrayLike) -> Array:
    """Areas of xyxy boxes, shape (..., 4) -> (...); a box with swapped corners has area 0."""
    b = np.asarray(boxes, dtype=np.float64)
    return np.maximum(b[..., 2] - b[..., 0], 0) * np.maximum(b[..., 3] - b[..., 1], 0)


def _intersection_union(a: Array, b: Array) -> tuple[Array, Array]:
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    inter = np.maximum(width, 0) * np.maximum(height, 0)
    return inter, area(a) + area(b) - inter


def _divide(top: Array, bottom: Array) -> Array:
    """top / bottom, and 0 where bottom is 0 (boxes without area)."""
    return np.divide(top, bottom, out=np.zeros(np.broadcast_shapes(top.shape, bottom.shape)), where=bottom > 0)


def iou(a: ArrayLike, b: ArrayLike) -> Array:
    """Intersection over union in [0, 1]; (..., 4) with (..., 4) by broadcasting. Two boxes without area have IoU 0.

    All pairs of N and M boxes: `iou(a[:, None], b[None])`, shape (N, M).
    """
    return _divide(*_intersection_union(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)))


def giou(a: ArrayLike, b: ArrayLike) -> Array:
    """Generalised IoU in (-1, 1]: IoU minus the share of the smallest enclosing box that neither box fills."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    inter, union = _intersection_union(a, b)
    width, height = _enclosing_sides(a, b)
    enclosing = width * height
    return _divide(inter, union) - _divide(enclosing - union, enclosing)


def diou(a: ArrayLike, b: ArrayLike) -> Array:
    """Distance IoU in (-1, 1]: IoU minus (distance of the centres / diagonal of the enclosing box) squared."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    width, height = _enclosing_sides(a, b)
    dx = (a[..., 0] + a[..., 2] - b[..., 0] - b[..., 2]) / 2
    dy = (a[..., 1] + a[..., 3] - b[..., 1] - b[..., 3]) / 2
    return iou(a, b) - _divide(dx**2 + dy**2, width**2 + height**2)


def ciou(a: ArrayLike, b: ArrayLike) -> Array:
    """Complete IoU in (-2, 1]: DIoU minus a term for the difference of the aspect ratios."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    v = _V_SCALE * (_aspect(a) - _aspect(b)) ** 2
    return diou(a, b) - _divide(v * v, 1 - iou(a, b) + v)


def _enclosing_sides(a: Array, b: Array) -> tuple[Array, Array]:
    width = np.maximum(a[..., 2], b[..., 2]) - np.minimum(a[..., 0], b[..., 0])
    height = np.maximum(a[..., 3], b[..., 3]) - np.minimum(a[..., 1], b[..., 1])
    return width, height


def _aspect(a: Array) -> Array:
    return np.arctan2(a[..., 2] - a[..., 0], a[..., 3] - a[..., 1])


def iou_pair(a: Box, b: Box) -> float:
    """`iou` of two boxes given as plain numbers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    return inter / union if union > 0 else 0.0


def giou_pair(a: Box, b: Box) -> float:
    """`giou` of two boxes given as plain numbers."""
    enclosing = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    if enclosing <= 0:
        return 0.0
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return iou_pair(a, b) - (enclosing - union) / enclosing


def diou_pair(a: Box, b: Box) -> float:
    """`diou` of two boxes given as plain numbers."""
    width = max(a[2], b[2]) - min(a[0], b[0])
    height = max(a[3], b[3]) - min(a[1], b[1])
    diagonal = width * width + height * height
    if diagonal <= 0:
        return 0.0
    dx = (a[0] + a[2] - b[0] - b[2]) / 2
    dy = (a[1] + a[3] - b[1] - b[3]) / 2
    return iou_pair(a, b) - (dx * dx + dy * dy) / diagonal


def ciou_pair(a: Box, b: Box) -> float:
    """`ciou` of two boxes given as plain numbers."""
    v = _V_SCALE * (math.atan2(a[2] - a[0], a[3] - a[1]) - math.atan2(b[2] - b[0], b[3] - b[1])) ** 2
    bottom = 1 - iou_pair(a, b) + v
    return diou_pair(a, b) - (v * v / bottom if bottom > 0 else 0.0)


def point_in_box(x: float, y: float, box: Box) -> bool:
    """Whether a point lies in a box, borders included (ScreenSpot's rule)."""
    return box[0] <= x <= box[2] and box[1] <= y <= box[3]


def centre_in_box(a: Box, b: Box) -> float:
    """1.0 if the centre of `a` lies in `b`, borders included, else 0.0."""
    return float(point_in_box((a[0] + a[2]) / 2, (a[1] + a[3]) / 2, b))


def gaussian_point(a: Box, b: Box) -> float:
    """GUI-G2's point reward in [0, 1]: a Gaussian at the centre of `b`, sigma half its sides, read at `a`'s centre."""
    sx, sy = (b[2] - b[0]) / 2, (b[3] - b[1]) / 2
    if sx <= 0 or sy <= 0:
        return 0.0
    dx = (a[0] + a[2] - b[0] - b[2]) / 2 / sx
    dy = (a[1] + a[3] - b[1] - b[3]) / 2 / sy
    return math.exp(-(dx * dx + dy * dy) / 2)


def gaussian_coverage(a: Box, b: Box) -> float:
    """GUI-G2's coverage reward in [0, 1]: the overlap (Bhattacharyya) of two Gaussians, sigmas half the sides."""
    result = 1.0
    for low, high in ((0, 2), (1, 3)):
        sa, sb = (a[high] - a[low]) / 2, (b[high] - b[low]) / 2
        if sa <= 0 or sb <= 0:
            return 0.0
        # Dividing by the larger sigma first keeps tiny boxes away from underflow.
        big = max(sa, sb)
        ra, rb = sa / big, sb / big
        total = ra * ra + rb * rb
        distance = (a[low] + a[high] - b[low] - b[high]) / 2 / big
        result *= math.sqrt(2 * ra * rb / total) * math.exp(-distance * distance / (4 * total))
    return result


def gaussian(a: Box, b: Box) -> float:
    """GUI-G2's reward in [0, 1]: the mean of its point and its coverage reward."""
    return (gaussian_point(a, b) + gaussian_coverage(a, b)) / 2


def at_half(a: Box, b: Box) -> float:
    """1.0 if the IoU is 0.5 or more, else 0.0: accuracy at IoU 0.5 of referring expressions."""
    return float(iou_pair(a, b) >= 0.5 - 1e-9)


DISTANCE_CEILING = 0.5
"""What `distance` pays for a miss at most: a hit is always worth more than a near miss."""


def distance(a: Box, b: Box) -> float:
    """A dense point reward in [0, 1] in unit space: 1.0 for a centre of `a` inside `b`, borders included, and for a miss
    `DISTANCE_CEILING` x (1 - d / sqrt 2), d being the distance to the nearest point of `b` and sqrt 2 the diagonal.
    """
    x, y = (a[0] + a[2]) / 2, (a[1] + a[3]) / 2
    if point_in_box(x, y, b):
        return 1.0
    away = math.hypot(x - min(max(x, b[0]), b[2]), y - min(max(y, b[1]), b[3]))
    return DISTANCE_CEILING * max(0.0, 1 - away / math.sqrt(2))


def point_in_polygon(x: float, y: float, polygon: Sequence[float]) -> bool:
    """Whether a point lies in a polygon x1, y1, x2, y2, ... (even-odd rule), its edges included."""
    corners = list(zip(polygon[::2], polygon[1::2], strict=True))
    inside = False
    for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
        cross = (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1)
        if abs(cross) <= 1e-12 and min(x1, x2) <= x <= max(x1, x2) and min(y1, y2) <= y <= max(y1, y2):
            return True
        if (y1 > y) != (y2 > y) and x < (x2 - x1) * (y - y1) / (y2 - y1) + x1:
            inside = not inside
    return inside


SIMILARITIES: dict[str, Callable[[Box, Box], float]] = {
    "iou": iou_pair,
    "giou": giou_pair,
    "diou": diou_pair,
    "ciou": ciou_pair,
    "point": centre_in_box,
    "gaussian": gaussian,
    "gaussian_point": gaussian_point,
    "distance": distance,
    "acc_at_iou_0.5": at_half,
}
"""Similarity of (predicted, true) by name; 1.0 is perfect."""

_PAIRWISE: dict[str, Callable[[ArrayLike, ArrayLike], Array]] = {"iou": iou, "giou": giou, "diou": diou, "ciou": ciou}


_PLAIN_PAIRS = 100
"""Up to this many pairs plain arithmetic is faster than numpy's broadcasting."""


def match(predicted: Sequence[Box], true: Sequence[Box], metric: str = "iou") -> list[tuple[int, int, float]]:
    """Pair predicted with true boxes one to one so that the sum of the similarities is largest (Hungarian algorithm).

    Returns (index in predicted, index in true, similarity) for min(len(predicted), len(true)) pairs, in the order of
    the predicted boxes; pairs with similarity 0 are among them. `metric` is a name in `SIMILARITIES`.
    """
    if not len(predicted) or not len(true):
        return []
    similarity = SIMILARITIES[metric]
    if len(true) == 1:
        scores = [similarity(p, true[0]) for p in predicted]
        best = max(range(len(scores)), key=scores.__getitem__)
        return [(best, 0, scores[best])]
    if len(predicted) == 1:
        scores = [similarity(predicted[0], t) for t in true]
        best = max(range(len(scores)), key=scores.__getitem__)
        return [(0, best, scores[best])]
    # Imported here: scipy.optimize takes a third of a second to load, and most answers hold one box.
    from scipy.optimize import linear_sum_assignment

    if metric in _PAIRWISE and len(predicted) * len(true) > _PLAIN_PAIRS:
        table = _PAIRWISE[metric](np.asarray(predicted)[:, None], np.asarray(true)[None]).tolist()
    else:
        table = [[similarity(p, t) for t in true] for p in predicted]
    rows, columns = linear_sum_assignment(np.array(table), maximize=True)
    return [(i, j, table[i][j]) for i, j in zip(rows.tolist(), columns.tolist(), strict=True)]
