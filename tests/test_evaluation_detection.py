"""Average precision without scores, Dice, refusals: what an evaluation of findings prints."""

from __future__ import annotations

import random
from typing import Any

import pytest

from vision_rl.agent.grounding_prompts import request
from vision_rl.answers.formats import FORMATS
from vision_rl.answers.space import AnswerSpace
from vision_rl.evaluation import metrics
from vision_rl.evaluation.detection import detection_figures
from vision_rl.rewards.grounding import grounding_reward
from vision_rl.run.collapse import CollapseWatcher
from vision_rl.settings import AgentSettings, CollapseWatch

A, B, C = [0.1, 0.1, 0.3, 0.3], [0.5, 0.5, 0.9, 0.9], [0.1, 0.6, 0.3, 0.8]
SETTINGS = AgentSettings(answer_format="click")


def record(true: list[list[float]], said: list[list[float]], finding: str = "", **meta: Any) -> dict[str, Any]:
    reply = AnswerSpace("click").write(said)
    return {
        **{"task": "grounding", "source": "x", "failure": "", "answers": [], "image_paths": ["a.png"]},
        **{"boxes": true, "labels": [finding or "Mass"] * len(true), "image_sizes": [[100, 100]]},
        "meta": meta | ({"finding": finding} if finding else {}),
        "reply": reply,
        "components": grounding_reward(reply, true, AnswerSpace("click")).components,
    }


def figures(records: list[dict[str, Any]]) -> dict[str, Any]:
    return detection_figures(records, SETTINGS, [str(row["meta"].get("patient", n)) for n, row in enumerate(records)])


@pytest.mark.parametrize(
    ("records", "per_class", "per_picture"),
    [
        ([record([A], [A])], 1.0, 1.0),
        ([record([A, B], [B, A])], 1.0, 1.0),
        ([record([A], [A, B])], 0.5, 0.5),  # P 1/2, R 1
        ([record([A], [A, A, A])], 1 / 3, 1 / 3),  # one found, repeated
        ([record([A, B], [A])], 0.5, 0.5),
        ([record([A], [])], 0.0, 0.0),
        ([record([A], [A], "Mass"), record([B], [C], "Nodule")], 0.5, 0.5),
        # 1 of 2 masses, 1 of 1 nodules: classes weigh alike, and so do pictures.
        ([record([A], [A], "Mass"), record([B], [C], "Mass"), record([C], [C], "Nodule")], 0.625, 2 / 3),
        # A false alarm costs its class, and is no picture with something to find.
        ([record([A], [A], "Mass"), record([], [B], "Mass")], 0.5, 1.0),
        ([record([A], [A], "Mass"), record([], [], "Mass")], 1.0, 1.0),
    ],
)
def test_average_precision_of_answers_without_scores(
    records: list[dict[str, Any]], per_class: float, per_picture: float
) -> None:
    found = figures(records)
    assert found["AP@0.5 per class"]["value"] == pytest.approx(per_class)
    assert found["AP@0.5 per picture"]["value"] == pytest.approx(per_picture)
    random.Random(0).shuffle(records)
    assert figures(records)["AP@0.5 per class"]["value"] == pytest.approx(per_class), (
        "whatever the order of the pictures"
    )


def test_the_level_and_as_many_pairs_as_possible() -> None:
    near = [0.1, 0.1, 0.3, 0.19]  # IoU 0.45 with A
    assert figures([record([A], [near])])["AP@0.4 per class"]["value"] == 1
    assert figures([record([A], [near])])["AP@0.5 per class"]["value"] == 0


def test_intervals_are_by_patient() -> None:
    rows = [record([A], [A if n < 5 else C], patient=n // 5) for n in range(10)]
    by_patient = figures(rows)["AP@0.5 per picture"]
    alone = figures([record([A], [A if n < 5 else C]) for n in range(10)])["AP@0.5 per picture"]
    assert by_patient["value"] == alone["value"] == 0.5
    assert (by_patient["low"], by_patient["high"]) == (0, 1) and alone["low"] > 0.1
    assert metrics.cluster(rows[0]) == metrics.cluster(rows[4]) != metrics.cluster(rows[5])
    assert figures(rows)["AP@0.5 per class"]["low"] == 0


def test_dice_is_of_the_outline() -> None:
    square = [0.1, 0.1, 0.3, 0.1, 0.3, 0.3, 0.1, 0.3]
    triangle = [0.1, 0.1, 0.3, 0.1, 0.1, 0.3]
    assert figures([record([A], [A], polygons=[square])])["Dice"]["value"] == pytest.approx(1, abs=0.02)
    assert figures([record([A], [A], polygons=[triangle])])["Dice"]["value"] == pytest.approx(2 / 3, abs=0.02)
    assert figures([record([A], [], polygons=[square])])["Dice"]["value"] == 0
    assert "Dice" not in figures([record([A], [A])])


def test_figures_with_and_without_empty_rows() -> None:
    rows = [record([A], []), record([], []), record([], [])]
    table = metrics.by_breakdown("grounding", rows)["rows"]
    assert table["with something to find"]["IoU"]["value"] == 0 and table["with nothing to find"]["IoU"]["value"] == 1
    assert "rows" not in metrics.by_breakdown("grounding", rows[:1])


@pytest.mark.parametrize("name", FORMATS)
def test_every_prompt_names_its_refusal_and_the_reward_takes_it(name: str) -> None:
    nothing = FORMATS[name].nothing
    family = FORMATS[name].space or "qwen2_5_vl"
    assert f"If it is not there, answer {nothing}." in request(
        "Find it.", AgentSettings(answer_format=name, family=family)
    )
    space = AnswerSpace(name, family, (100, 100), (112, 112))
    kind = "point" if FORMATS[name].points else "iou"
    assert grounding_reward(nothing, [], space, kind=kind).value == 1


def test_a_constant_refusal_is_an_alarm_whatever_it_earns() -> None:
    watcher, alarms = CollapseWatcher(CollapseWatch(window=2)), []
    for step in range(6):
        share = min(1.0, step / 4)
        alarms += watcher.update(step, {"train/reward": 0.71, "train/boxes/refused": share})
    assert [alarm.name for alarm in alarms][:1] == ["always refuses"] and "100%" in alarms[0].seen
    assert "boxes/refused" not in grounding_reward("<click></click>", [], AnswerSpace("click")).components
    assert grounding_reward("<click></click>", [A], AnswerSpace("click")).components["boxes/refused"] == 1
