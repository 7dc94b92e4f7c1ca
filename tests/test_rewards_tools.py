"""Arc Vision's three parts by table, the bonus only when right and aimed, penalties that add up."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_rl.answers.boxes import Box
from vision_rl.answers.parsing import parse_tool_calls
from vision_rl.answers.space import AnswerSpace
from vision_rl.rewards import arc_reward, grounding_reward
from vision_rl.rewards.tools import Call, is_aimed, target_kind
from vision_rl.settings import ArcWeights

SMALL: Box = (0.4, 0.4, 0.5, 0.5)
EDGE: Box = (0.05, 0.3, 0.5, 0.6)
EASY: Box = (0.2, 0.2, 0.8, 0.8)
PUBLISHED = ArcWeights(right_iou=0.0, aimed_only=False, needed_only=False)


def zoom(box: Box | None = None) -> Call:
    return "zoom_ui_element", {"region": list(box or (0.0, 0.0, 1.0, 1.0)), "zoom_factor": 2}


WAIT: Call = ("wait_for_ui", {"duration": 1.0})
INSPECT: Call = ("inspect_element", {"region": [0.0, 0.0, 1.0, 1.0], "type": "structure"})


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        (SMALL, "small"),
        (EDGE, "edge"),
        (EASY, "easy"),
        ((0.0, 0.0, 0.1, 0.1), "small"),  # small goes before edge
        ((0.2, 0.2, 0.2 + 0.25, 0.4 + 1e-9), "easy"),  # exactly 5 % is not small
        ((0.5, 0.5, 0.91, 0.8), "edge"),
        ((0.5, 0.5, 0.9, 0.9), "easy"),
    ],
)
def test_kinds_of_targets(box: Box, kind: str) -> None:
    assert target_kind(box) == kind


@pytest.mark.parametrize(
    ("iou", "box", "calls", "tool", "gate"),
    [
        # the tool part
        (1.0, SMALL, [zoom()], 0.4, 0.0),
        (0.6, SMALL, [zoom()], 0.24, 0.0),
        (1.0, EDGE, [zoom()], 0.2, 0.0),
        (0.5, EDGE, [INSPECT], 0.1, 0.0),
        (1.0, EASY, [zoom()], 0.1, 0.0),
        (1.0, EASY, [], 0.1, 0.0),
        (0.71, EDGE, [], 0.1, 0.0),
        (0.7, EASY, [], 0.0, 0.0),
        (1.0, SMALL, [], 0.0, 0.0),
        # the gate
        (0.49, SMALL, [], 0.0, -0.3),
        (0.5, SMALL, [], 0.0, 0.0),
        (0.49, EASY, [], 0.0, 0.0),
        (1.0, EASY, [zoom(), zoom()], 0.1, -0.25),
        (1.0, EDGE, [zoom(), zoom()], 0.2, 0.0),
        (1.0, SMALL, [WAIT, INSPECT], 0.4, -0.05),
        (1.0, SMALL, [WAIT, zoom()], 0.4, 0.0),
        (1.0, SMALL, [zoom()] * 3, 0.4, -0.4),
        (1.0, EASY, [zoom()] * 3, 0.1, -0.65),  # penalties add up
        (1.0, SMALL, [WAIT] * 3, 0.4, -0.45),
    ],
)
def test_published_formula(iou: float, box: Box, calls: list[Call], tool: float, gate: float) -> None:
    reward = arc_reward(iou, box, calls, PUBLISHED)
    assert reward.components["task"] == iou
    assert reward.components["tool"] == pytest.approx(tool)
    assert reward.components["gate"] == pytest.approx(gate)
    assert reward.value == pytest.approx(0.6 * iou + 0.3 * tool + 0.1 * gate)


@pytest.mark.parametrize(
    ("iou", "calls", "tool"),
    [
        (1.0, [zoom()], 0.4),
        (0.5, [zoom()], 0.2),
        (0.49, [zoom()], 0.0),  # wrong
        (1.0, [zoom((0.7, 0.7, 0.9, 0.9))], 0.0),  # looked elsewhere
        (1.0, [zoom((0.7, 0.7, 0.9, 0.9)), zoom(SMALL)], 0.4),
        (1.0, [WAIT], 0.0),
        (1.0, [("zoom_ui_element", {})], 0.0),
        (1.0, [("look_harder", {"region": [0, 0, 1, 1]})], 0.0),
    ],
)
def test_bonus_only_when_right_and_aimed(iou: float, calls: list[Call], tool: float) -> None:
    assert arc_reward(iou, SMALL, calls).components["tool"] == pytest.approx(tool)


def test_a_needless_look_earns_less_than_none() -> None:
    """Else the zooming that small targets teach spreads to large ones, and nothing takes it back."""
    assert arc_reward(1.0, EASY, [zoom(EASY)]).value == pytest.approx(0.6)
    assert arc_reward(1.0, EASY, []).value == pytest.approx(0.63)
    assert arc_reward(1.0, EDGE, [zoom(EDGE)]).value > arc_reward(1.0, EDGE, []).value
    assert arc_reward(1.0, SMALL, [zoom(SMALL)]).value > arc_reward(1.0, SMALL, []).value


@pytest.mark.parametrize(
    "region",
    [
        None,
        "0.1",
        [],
        [0, 0, 1],
        [0, 0, 1, 1, 1],
        [0, 0, "1", 1],
        [math.nan] * 4,
        [0, 0, math.inf, 1],
        [True] * 4,
        {},
        3,
    ],
)
def test_regions_that_are_none(region: Any) -> None:
    assert not is_aimed(("zoom_ui_element", {"region": region}), SMALL)


def test_unknown_tools_earn_nothing_under_the_published_rule_too() -> None:
    assert arc_reward(1.0, SMALL, [("look_harder", {})], PUBLISHED).components["tool"] == 0.0


def test_negative_values_are_not_clamped() -> None:
    assert arc_reward(0.0, EASY, [zoom()] * 3).value == pytest.approx(-0.065)


def test_spam_can_be_priced_per_call_and_stays_bounded() -> None:
    weights = ArcWeights(per_extra_call=-0.1)
    gates = [arc_reward(1.0, SMALL, [zoom()] * n, weights).components["gate"] for n in (2, 3, 4, 10_000)]
    assert gates == pytest.approx([0.0, -0.4, -0.5, -2.0])


def test_nothing_to_find() -> None:
    assert arc_reward(1.0, None, []).value == pytest.approx(0.6)
    assert arc_reward(1.0, None, [zoom()] * 3).value == pytest.approx(0.56)


@given(iou=st.floats(0, 1), n=st.integers(0, 6), small=st.booleans())
def test_more_zooms_than_one_never_pay(iou: float, n: int, small: bool) -> None:
    box = SMALL if small else EASY
    assert arc_reward(iou, box, [zoom()] * (n + 2)).value <= arc_reward(iou, box, [zoom()]).value + 1e-12


def test_grounding_reward_reads_the_real_calls_not_the_text() -> None:
    said = '<tool_call>{"name": "zoom_ui_element", "arguments": {"region": [0, 0, 1, 1]}}</tool_call>'
    reply = said + AnswerSpace().write([SMALL])
    assert grounding_reward(reply, [SMALL], kind="arc").components["tool"] == 0.0
    calls = [(call.name, call.arguments) for call in parse_tool_calls(reply)]
    made = grounding_reward(reply, [SMALL], kind="arc", tool_calls=calls)
    assert made.components["tool"] == pytest.approx(0.4, abs=1e-3)
    assert made.value == pytest.approx(0.72, abs=1e-3)
    assert made.components["tools/calls"] == 1.0
    assert made.components["tools/needed"] == 1.0
