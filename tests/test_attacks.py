"""No attack beats the honest answer; listing never beats naming one; the docs hold the tables that the code gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reward_attacks import TOOL_ATTACKS, Outcome, all_outcomes, guessing_rows, insert, tables
from vision_rl.errors import UserError
from vision_rl.preflight.attack_cases import GROUNDING_ATTACKS, VQA_ATTACKS

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[1] / "docs" / "rewards.md"


@pytest.fixture(scope="module")
def by_kind() -> dict[str, list[Outcome]]:
    return all_outcomes()


@pytest.fixture()
def outcomes(by_kind: dict[str, list[Outcome]]) -> list[Outcome]:
    return [outcome for some in by_kind.values() for outcome in some]


def test_every_attack_was_tried(outcomes: list[Outcome]) -> None:
    assert {outcome.attack for outcome in outcomes} == {*GROUNDING_ATTACKS, *VQA_ATTACKS, *TOOL_ATTACKS}
    assert all(outcome.honest > 0.5 for outcome in outcomes)


def test_no_attack_beats_the_honest_answer(outcomes: list[Outcome]) -> None:
    assert [outcome for outcome in outcomes if outcome.attacked > outcome.honest + 1e-9] == []


@pytest.mark.parametrize(
    "attack", ["right boxes among 20 others", "a grid of 100 boxes", "right boxes in the reasoning, a grid outside"]
)
def test_listing_boxes_costs_nearly_everything(outcomes: list[Outcome], attack: str) -> None:
    assert max(outcome.attacked for outcome in outcomes if outcome.attack == attack) < 0.3


@pytest.mark.parametrize(
    "attack",
    [
        *("swapped corners", "negative corners", "nan", "inf", "1e309", "a number of 5,000 digits"),
        *("right boxes in the wrong space", "right boxes inside the reasoning only", "right boxes inside a tool call"),
    ],
)
def test_what_is_no_answer_earns_nothing(outcomes: list[Outcome], attack: str) -> None:
    assert max(outcome.attacked for outcome in outcomes if outcome.attack == attack and " " in outcome.case) <= 0.0


def test_listing_never_beats_naming_one_and_the_guides_rewards_are_gamed() -> None:
    for task, k, named, listed, guide in guessing_rows():
        assert listed <= named + 1e-9, (task, k)
        assert guide > named, (task, k)


def test_the_guides_max_iou_is_gamed(outcomes: list[Outcome]) -> None:
    gamed = [outcome for outcome in outcomes if outcome.attack == "right boxes among 20 others"]
    assert max(outcome.guide for outcome in gamed) == pytest.approx(1.0, abs=1e-3)


def test_the_docs_hold_the_current_tables(by_kind: dict[str, list[Outcome]]) -> None:
    assert insert(DOCS.read_text(encoding="utf-8"), tables(by_kind)) == DOCS.read_text(encoding="utf-8")


def test_a_file_without_markers_is_refused() -> None:
    with pytest.raises(UserError, match="attacks: start"):
        insert("# nothing", "x")
