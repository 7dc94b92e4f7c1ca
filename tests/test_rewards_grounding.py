"""Matching with a price, "no finding", formats and spaces of all families, wrong spaces, totality."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.random_texts import random_text
from vision_rl.answers import formats
from vision_rl.answers.boxes import SIMILARITIES, Box, iou_pair
from vision_rl.answers.coordinates import FAMILIES
from vision_rl.answers.space import AnswerSpace
from vision_rl.errors import UserError
from vision_rl.rewards import grounding_reward
from vision_rl.rewards.grounding import KINDS, POINT_KINDS, match_score
from vision_rl.settings import Terms

A: Box = (0.1, 0.1, 0.3, 0.3)
B: Box = (0.6, 0.6, 0.9, 0.8)
NEAR_A: Box = (0.1, 0.1, 0.3, 0.2)  # IoU 0.5 with A
FAR: Box = (0.95, 0.0, 1.0, 0.05)
SIZES: dict[str, Any] = {"original_size": (1920, 1080), "processed_size": (1932, 1092)}
FORMATS = [
    *(("native", family) for family in FAMILIES),
    *((name, "unit") for name in formats.FORMATS),
    *((name, "qwen2_5_vl") for name in formats.FORMATS if AnswerSpace(name).takes_points),
]


def kinds_of(answer_format: str, family: str) -> tuple[str, ...]:
    return POINT_KINDS if AnswerSpace(answer_format, family).takes_points else KINDS


def reply(*boxes: Box) -> str:
    return AnswerSpace().write(boxes, decimals=6)


@st.composite
def unit_boxes(draw: st.DrawFn) -> Box:
    x, y = draw(st.floats(0, 0.9)), draw(st.floats(0, 0.9))
    return x, y, draw(st.floats(x + 0.02, 1.0)), draw(st.floats(y + 0.02, 1.0))


@pytest.mark.parametrize(
    ("predicted", "true", "value"),
    [
        ([A], [A], 1.0),
        ([NEAR_A], [A], 0.5),
        ([FAR], [A], 0.0),
        ([A, B], [A, B], 1.0),
        ([B, A], [A, B], 1.0),  # the order does not matter
        ([A], [A, B], 0.5),  # one missing
        ([A, B], [A], 0.5),  # one extra
        ([A, A], [A], 0.5),  # the same again is extra
        ([A, A], [A, B], 0.5),  # one box cannot match twice
        ([NEAR_A, A], [A], 0.5),  # the best of several is matched
        ([A, B, FAR, FAR], [A, B], 0.5),
        ([], [], 1.0),
        ([], [A], 0.0),
        ([A], [], 0.0),
    ],
)
def test_matched_iou_with_extra_and_missing_boxes(predicted: list[Box], true: list[Box], value: float) -> None:
    reward = grounding_reward(reply(*predicted), true)
    assert reward.value == pytest.approx(value, abs=1e-4)
    assert reward.components["iou"] == pytest.approx(value, abs=1e-4)
    assert reward.components["boxes/extra"] == max(0, len(predicted) - len(true))
    assert reward.components["boxes/missing"] == max(0, len(true) - len(predicted))
    assert reward.components["format/ok"] == 1.0


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou", "point", "gaussian"])
def test_one_box_gets_the_similarity_itself(kind: str) -> None:
    for box in (A, NEAR_A, (0.12, 0.11, 0.35, 0.33), FAR):
        expected = max(SIMILARITIES[kind](box, A), -1.0)
        assert grounding_reward(reply(box), [A], kind=kind).value == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("arc", "max_iou")])
def test_saying_nothing_is_never_better_than_trying(kind: str) -> None:
    for attempt in (A, NEAR_A, FAR, (0.0, 0.0, 1.0, 1.0)):
        tried = grounding_reward(reply(attempt), [A], kind=kind).value
        for silent in ("", "I do not know", reply(), "<bbox>[1, 2</bbox>"):
            assert grounding_reward(silent, [A], kind=kind).value <= tried + 1e-9


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou", "point", "gaussian"])
@given(boxes=st.lists(unit_boxes(), min_size=1, max_size=6), true=unit_boxes())
def test_listing_never_beats_the_mean_of_its_boxes(kind: str, boxes: list[Box], true: Box) -> None:
    """Whatever a list of boxes gets, naming one of them at random gets as much on average."""
    single = [match_score([box], [true], kind) for box in boxes]
    assert match_score(boxes, [true], kind) <= sum(single) / len(single) + 1e-9


@given(boxes=st.lists(unit_boxes(), max_size=5), true=st.lists(unit_boxes(), max_size=5))
def test_scores_are_bounded_and_fall_with_every_further_box(boxes: list[Box], true: list[Box]) -> None:
    for kind in SIMILARITIES:
        score = match_score(boxes, true, kind)
        assert -1 <= score <= 1 + 1e-9
        if len(boxes) >= len(true) and score >= 0:
            # A further box that matches nothing.
            assert match_score(boxes, true, kind, bad=1) <= score + 1e-9


def test_max_iou_is_the_guides_and_only_under_its_name() -> None:
    boxes = [FAR, B, NEAR_A, (0.0, 0.0, 1.0, 1.0)]
    expected = max(iou_pair(box, A) for box in boxes)
    assert grounding_reward(reply(*boxes), [A], kind="max_iou").value == pytest.approx(expected, abs=1e-4)
    assert grounding_reward(reply(*boxes), [A], kind="iou").value == pytest.approx(expected / 4, abs=1e-4)
    assert grounding_reward("", [A], kind="max_iou").value == 0.0


@pytest.mark.parametrize(("text", "value"), [("No finding.", 1.0), ("<bbox>[]</bbox>", 1.0), ("", -0.1), ("x", -0.1)])
def test_no_finding_must_be_said(text: str, value: float) -> None:
    assert grounding_reward(text, []).value == pytest.approx(value)


@pytest.mark.parametrize(("answer_format", "family"), FORMATS)
@pytest.mark.parametrize("true", [[A], [A, B], []])
def test_the_gold_reply_of_every_family_scores_one(answer_format: str, family: str, true: list[Box]) -> None:
    space = AnswerSpace(answer_format, family, **SIZES)
    gold = space.write(true, 6)
    for kind in kinds_of(answer_format, family):
        # A is small: Arc Vision pays the task only without a tool. The guide's max-IoU knows no "no finding".
        perfect = {"arc": 0.6, "max_iou": float(bool(true))}.get(kind, 1.0)
        reward = grounding_reward(gold, true, space, kind=kind)
        assert reward.value == pytest.approx(perfect, abs=1e-3), kind
        assert reward.components["format/ok"] == 1.0
        assert reward.components["format/wrong_space"] == 0.0
    kind = "point" if space.takes_points else "iou"
    assert grounding_reward(space.write(true), true, space, kind=kind).value > 0.98


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("unit", "pixels")])
def test_special_tokens_may_be_missing(family: str) -> None:
    space = AnswerSpace("native", family, **SIZES)
    text = space.write([A, B])
    tokens = (
        "<|box_start|>",
        "<|box_end|>",
        "<box>",
        "</box>",
        "<|begin_of_box|>",
        "<|end_of_box|>",
        "<|det|>",
        "<|/det|>",
    )
    for token in tokens:
        text = text.replace(token, "")
    kind = "point" if space.takes_points else "iou"
    assert grounding_reward(text, [A, B], space, kind=kind).value > 0.98


@pytest.mark.parametrize(
    ("answer_format", "family", "text"),
    [
        ("bbox", "qwen2_vl", "<bbox>[100, 100, 300, 300]</bbox>"),
        ("bbox", "unit", "<bbox>[2420, 146, 2512, 170]</bbox>"),
        ("click", "unit", "<click>100, 100, 200, 200</click>"),
        ("native", "qwen2_vl", "<|box_start|>(0.1,0.1),(0.3,0.3)<|box_end|>"),
        ("native", "qwen2_5_vl", '[{"bbox_2d": [0.1, 0.1, 0.3, 0.3]}]'),
        ("native", "qwen2_5_vl", '[{"bbox_2d": [100, 100, 3000, 300]}]'),
        ("native", "internvl", "<box>[[193, 109, 1579, 327]]</box>"),
    ],
)
def test_wrong_spaces_are_counted_and_not_rewarded(answer_format: str, family: str, text: str) -> None:
    for kind in ("iou", "point", "gaussian"):
        reward = grounding_reward(text, [A], AnswerSpace(answer_format, family, **SIZES), kind=kind)
        assert reward.components["format/wrong_space"] == 1.0
        assert reward.components["format/ok"] == 0.0
        assert reward.components["iou"] == 0.0
        assert reward.value == pytest.approx(-0.1)


def test_a_box_in_a_wrong_space_costs_like_an_extra_one() -> None:
    assert grounding_reward(reply(A) + "<bbox>[100, 100, 300, 300]</bbox>", [A]).value == pytest.approx(0.4)


@pytest.mark.parametrize(
    "numbers",
    [
        "0.3, 0.3, 0.1, 0.1",
        "0.1, 0.3, 0.3, 0.1",
        "-1, -1, 2, 2",
        "-0.5, 0.1, 0.3, 0.3",
        "0.1, 0.1, 0.1, 0.3",
        "0.2, 0.2",
    ],
)
def test_corners_that_make_no_box(numbers: str) -> None:
    reward = grounding_reward(f"<bbox>[{numbers}]</bbox>", [A])
    assert reward.value == pytest.approx(-0.1)
    assert reward.components["format/ok"] == 0.0


def test_a_little_beyond_the_border_is_cut_there() -> None:
    assert grounding_reward("<bbox>[-0.01, 0, 1.01, 1.0]</bbox>", [(0.0, 0.0, 1.0, 1.0)]).value == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "point"),
    [("<bbox>[0.2, 0.2]</bbox>", 1.0), ("<bbox>[0.1, 0.3]</bbox>", 1.0), ("<bbox>[0.31, 0.2]</bbox>", 0.0)],
)
def test_points_count_where_points_are_asked_for(text: str, point: float) -> None:
    assert grounding_reward(text, [A], kind="point").value == point


def test_point_metric_is_a_component_of_every_kind() -> None:
    reward = grounding_reward(reply((0.0, 0.0, 0.5, 0.5)), [A])
    assert reward.components["point"] == 1.0
    assert reward.components["iou"] < 0.2


def test_the_final_answer_counts() -> None:
    right, wrong = reply(A), reply(FAR)
    assert grounding_reward(f"<think>{wrong}</think>{right}", [A]).value == pytest.approx(1.0)
    assert grounding_reward(f"<think>{right}</think>{wrong}", [A]).value == 0.0
    assert grounding_reward(f"{right}<reasoning>cut off", [A]).value == pytest.approx(0.9)


def test_length_price() -> None:
    terms = Terms(length_price=0.5, free_chars=100, limit_chars=300)
    text = f"<think>{'x' * 300}</think>{reply(A)}"
    assert grounding_reward(text, [A], terms=terms).value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("space", "kind", "named"),
    [(AnswerSpace(), "vqa", "vqa"), (AnswerSpace("yolo"), "iou", "yolo"), (AnswerSpace("native", "x"), "iou", "x")],
)
def test_bad_settings_are_named(space: AnswerSpace, kind: str, named: str) -> None:
    with pytest.raises(UserError, match=named):
        grounding_reward(reply(A), [A], space, kind=kind)
    with pytest.raises(UserError, match="processed_size"):
        grounding_reward("", [A], AnswerSpace("native", "qwen2_5_vl"))


def test_ten_thousand_random_strings() -> None:
    generator = random.Random(2)
    for i in range(10_000):
        text = random_text(generator)
        answer_format, family = FORMATS[i % len(FORMATS)]
        true = [[], [A], [A, B]][i % 3]
        kinds = kinds_of(answer_format, family)
        kind = kinds[i % len(kinds)]
        reward = grounding_reward(text, true, AnswerSpace(answer_format, family, **SIZES), kind=kind)
        assert -1.4 <= reward.value <= 1.0
