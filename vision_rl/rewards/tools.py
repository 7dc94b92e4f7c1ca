"""Arc Vision's three-part reward of an agent that may zoom, wait or inspect before it answers.

value = 0.6 task + 0.3 tool + 0.1 gate, never clamped at 0: task is the IoU, tool pays for a tool that helped, gate
takes off for tools that were missing, needless or spammed. Three deviations, all against gaming, all switches of
`ArcWeights`: the bonus is paid only if the answer is right (`right_iou`), only for a call that looked at the target
(`aimed_only`), and not on an easy target (`needed_only`). Arc Vision pays a share of the IoU for any call at all, and
on an easy target as much with a tool as without one, which teaches constant zooming.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vision_rl.answers.boxes import Box, point_in_box
from vision_rl.settings import DEFAULT_WEIGHTS, ArcWeights
from vision_rl.types import Reward

TOOL_NAMES = ("zoom_ui_element", "wait_for_ui", "inspect_element")

Call = tuple[str, Mapping[str, Any]]


_LOWEST_GATE = -2.0


def target_kind(target: Box, weights: ArcWeights = DEFAULT_WEIGHTS) -> str:
    """ "small", "edge" or "easy" for a target box in unit space; small goes before edge."""
    x1, y1, x2, y2 = target
    if (x2 - x1) * (y2 - y1) < weights.small_area:
        return "small"
    near = x1 < weights.edge or y1 < weights.edge or x2 > 1 - weights.edge or y2 > 1 - weights.edge
    return "edge" if near else "easy"


def is_aimed(call: Call, target: Box) -> bool:
    """Whether a call names a region (xyxy, unit space) that holds the centre of the target."""
    region = call[1].get("region")
    if not isinstance(region, Sequence) or isinstance(region, str) or len(region) != 4:
        return False
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in region):
        return False
    x1, y1, x2, y2 = region
    centre = (target[0] + target[2]) / 2, (target[1] + target[3]) / 2
    return point_in_box(*centre, (x1, y1, x2, y2))


def _tool_part(iou: float, kind: str, target: Box, calls: Sequence[Call], weights: ArcWeights) -> float:
    if not calls:
        return weights.bonus_without if kind != "small" and iou > weights.without_iou else 0.0
    known = [call for call in calls if call[0] in TOOL_NAMES]
    helped = any(is_aimed(call, target) for call in known) if weights.aimed_only else bool(known)
    if not helped or iou < weights.right_iou or (weights.needed_only and kind == "easy"):
        return 0.0
    bonus = {"small": weights.bonus_small, "edge": weights.bonus_edge, "easy": weights.bonus_easy}[kind]
    return bonus * min(iou, 1.0)


def _gate_part(iou: float, kind: str | None, calls: Sequence[Call], weights: ArcWeights) -> float:
    gate = 0.0
    names = [name for name, _ in calls]
    if kind == "small" and not calls and iou < weights.missed_iou:
        gate += weights.missed
    if kind == "easy" and len(calls) > 1:
        gate += weights.needless
    if kind == "small" and "wait_for_ui" in names and "zoom_ui_element" not in names:
        gate += weights.wait_only
    if len(calls) > weights.max_calls:
        gate += weights.excess + weights.per_extra_call * (len(calls) - weights.max_calls - 1)
    return max(gate, _LOWEST_GATE)


def arc_reward(iou: float, target: Box | None, calls: Sequence[Call], weights: ArcWeights = DEFAULT_WEIGHTS) -> Reward:
    """Arc Vision's reward from the task score, the target box and the tool calls that were really made.

    iou: in [0, 1], of the final answer. target: xyxy in unit space, None if there is nothing to find (no tool is paid
    then). calls: (name, arguments) in order, failed ones included; names other than `TOOL_NAMES` earn nothing but
    count. Components: task, tool, gate (before weighting), tools/calls, tools/needed (small target).
    """
    kind = None if target is None else target_kind(target, weights)
    tool = 0.0 if target is None or kind is None else _tool_part(iou, kind, target, calls, weights)
    gate = _gate_part(iou, kind, calls, weights)
    return Reward(
        weights.task * iou + weights.tool * tool + weights.gate * gate,
        {
            "task": iou,
            "tool": tool,
            "gate": gate,
            "tools/calls": float(len(calls)),
            "tools/needed": float(kind == "small"),
        },
    )
