"""Grounding: boxes in a reply against true boxes, matched one to one, in unit space.

score = (sum over matched pairs of their similarity + floor x unmatched boxes of either side) / max(predicted, true).
With similarities of at least `floor`, k boxes for one target score at most the mean of their single scores, so that
listing boxes never beats naming one of them, and an empty answer never beats an attempt. `floor` is 0, or -1 for
GIoU, DIoU and CIoU, which fall to -1 for boxes far away (CIoU, which can fall lower, is cut there).
"""

from __future__ import annotations

from collections.abc import Sequence

from vision_rl.boxes import SIMILARITIES, Box, iou_pair, match
from vision_rl.coordinates import Size, from_unit, in_space, space_size
from vision_rl.errors import UserError
from vision_rl.parsing import BoxReading, box_format, format_boxes, read_boxes, reasoning_is_closed
from vision_rl.rewards.terms import DEFAULT_TERMS, Reward, Terms
from vision_rl.rewards.tools import DEFAULT_WEIGHTS, ArcWeights, Call, arc_reward
from vision_rl.rewards.vqa import with_terms

KINDS = ("iou", "giou", "diou", "ciou", "point", "gaussian", "arc", "max_iou")

_FLOORS = {"giou": -1.0, "diou": -1.0, "ciou": -1.0}
_TAKES_POINTS = ("point", "gaussian")
_SLACK = 0.02


def answer_space(answer_format: str, family: str) -> tuple[str, str]:
    """(format of the boxes, family whose space their numbers are in) for an `answer_format`.

    "bbox" and "click" are in unit space whatever the model; "native" is the family's own format and space.
    """
    if answer_format in ("bbox", "click"):
        return answer_format, "unit"
    if answer_format == "native":
        return box_format(family), family
    raise UserError(f"agent.answer_format={answer_format} does not exist; choose bbox, click or native")


def gold_reply(
    true_boxes: Sequence[Sequence[float]],
    *,
    answer_format: str = "bbox",
    family: str = "unit",
    original_size: Size | None = None,
    processed_size: Size | None = None,
    decimals: int | None = None,
) -> str:
    """The reply of a perfect model: the true boxes (xyxy, unit space) in the given format and space.

    decimals as in `parsing.format_boxes`: with its default the numbers are rounded as the family writes them, which
    costs small boxes some IoU; with 6 the reply scores 1.0 up to 0.1 %.
    """
    fmt, space = answer_space(answer_format, family)
    return format_boxes([from_unit(box, space, original_size, processed_size) for box in true_boxes], fmt, decimals)


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


def max_iou(predicted: Sequence[Box], true: Sequence[Box]) -> float:
    """The guide's score: the largest IoU of any predicted with any true box. Listing boxes games it."""
    return max((iou_pair(p, t) for p in predicted for t in true), default=0.0)


def grounding_reward(
    reply: str,
    true_boxes: Sequence[Sequence[float]],
    *,
    answer_format: str = "bbox",
    family: str = "unit",
    original_size: Size | None = None,
    processed_size: Size | None = None,
    kind: str = "iou",
    tool_calls: Sequence[Call] = (),
    terms: Terms = DEFAULT_TERMS,
    weights: ArcWeights = DEFAULT_WEIGHTS,
) -> Reward:
    """The reward of a whole reply to a grounding instruction.

    true_boxes: xyxy in unit space; none means that there is nothing to find, and the reply must say so (an empty list
    in its format, or "no finding"). answer_format and family: see `answer_space`. Sizes are (width, height) in pixels;
    only a pixel family needs one, see `coordinates.space_size`. kind: one of `KINDS`; "arc" also reads `tool_calls`,
    (name, arguments) of the calls that were made. "max_iou" is the guide's, without any term. `UserError` for bad
    settings. Boxes in a wrong space, and swapped or negative corners, match nothing and cost like any other extra box.
    Components: task, iou (matched), point (hit rate of the centres), format/ok, format/wrong_space (0 or 1),
    format/malformed, boxes/predicted, boxes/extra, boxes/missing, and those of the terms and of Arc Vision.
    """
    if kind not in KINDS:
        raise UserError(f"agent.reward={kind} is not a reward for grounding; choose one of {', '.join(KINDS)}")
    fmt, space = answer_space(answer_format, family)
    size = space_size(space, original_size, processed_size)
    true: list[Box] = [(box[0], box[1], box[2], box[3]) for box in true_boxes]
    reading = read_boxes(reply, fmt)
    boxes, wrong_space, bad = _usable(reading, size, kind in _TAKES_POINTS)
    unusable = wrong_space + bad + reading.malformed
    written = len(boxes) + unusable
    answered = written > 0 or reading.none
    missing = max(0, len(true) - len(boxes))
    components = {
        "iou": match_score(boxes, true, "iou", unusable) if answered else 0.0,
        "point": match_score(boxes, true, "point", unusable) if answered else 0.0,
        "format/wrong_space": float(wrong_space > 0),
        "format/malformed": float(reading.malformed + bad),
        "boxes/predicted": float(written),
        "boxes/extra": float(max(0, written - len(true))),
        "boxes/missing": float(missing),
    }
    format_ok = answered and not unusable and (("<" not in reply) or reasoning_is_closed(reply))
    if kind == "max_iou":
        components["task"] = value = max_iou(boxes, true)
        components["format/ok"] = float(format_ok)
        return Reward(value, components)
    if kind == "arc":
        arc = arc_reward(components["iou"], true[0] if true else None, tool_calls, weights)
        return with_terms(arc.value, components | arc.components, reply, format_ok, terms)
    if not answered:
        components["task"] = _FLOORS.get(kind, 0.0)
    else:
        components["task"] = components[kind] if kind in components else match_score(boxes, true, kind, unusable)
    return with_terms(components["task"], components, reply, format_ok, terms)
