"""Tables of the sets' papers, both means by name, what an evaluation records, and the size that a server has shown."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.test_evaluation_metrics import IDENTITY, TRUE, boxed, record
from vision_rl.answers.space import AnswerSpace
from vision_rl.errors import UserError
from vision_rl.evaluation import metrics
from vision_rl.evaluation.official_tables import BENCHMARKS, cells_of, cells_title
from vision_rl.evaluation.report import page_of
from vision_rl.evaluation.summary import render_markdown, summarise
from vision_rl.evaluation.targets import agent_settings, served_pixels
from vision_rl.rewards import vqa_reward
from vision_rl.settings import AgentSettings
from vision_rl.tasks import get_task

HIT, MISS = AnswerSpace().write([TRUE]), AnswerSpace().write([(0.8, 0.8, 0.9, 0.9)])


def summary_of(records: list[dict[str, Any]], task: str = "grounding") -> dict[str, Any]:
    return summarise({**IDENTITY, "task": task}, dict(enumerate(records)), len(records))


def test_the_mean_over_rows_and_the_mean_over_cells_are_both_named() -> None:
    rows = [("mobile", "text", HIT)] * 6 + [("mobile", "icon", MISS)] * 1 + [("web", "text", MISS)] * 1
    records = [
        boxed(n, reply, source="screenspot", meta={"platform": where, "data_type": kind})
        for n, (where, kind, reply) in enumerate(rows)
    ]
    summary = summary_of(records)
    assert summary["metrics"]["point accuracy"]["value"] == pytest.approx(6 / 8)
    assert summary["cell_means"]["point accuracy"] == {
        "cells": "platform x type",
        "number": 3,
        "value": pytest.approx(1 / 3),
    }
    assert "| point accuracy, mean over the 3 cells of platform x type | 33.33 % |" in render_markdown(summary)
    mixed = [*records, boxed(9, HIT, source="osworld-g")]
    assert summary_of(mixed)["cell_means"] == {}


def test_screenspot_pro_by_style_language_and_target() -> None:
    meta = {"group": "CAD", "data_type": "icon", "application": "autocad", "instruction_style": "action"}
    records = [
        boxed(0, HIT, source="screenspot-pro", meta={**meta, "language": "en", "gt_type": "positive"}),
        boxed(
            1, "<bbox>[]</bbox>", [], source="screenspot-pro", meta={**meta, "language": "cn", "gt_type": "negative"}
        ),
        boxed(2, HIT, [], source="screenspot-pro", meta={**meta, "language": "cn", "gt_type": "negative"}),
    ]
    tables = metrics.by_breakdown("grounding", records)
    shown = {title: {value: f["point accuracy"]["value"] for value, f in tables[title].items()} for title in tables}
    assert shown["target"] == {"positive": 1.0, "negative": 0.5}
    assert shown["language"] == {"cn": 0.5, "en": 1.0}
    assert shown["instruction style"] == {"action": pytest.approx(2 / 3)}
    assert shown["application"] == {"autocad": pytest.approx(2 / 3)}


def test_osworld_g_counts_a_row_in_each_of_its_element_types() -> None:
    meta = {"GUI_types": ["Button", "Icon"], "box_type": "bbox"}
    assert cells_of("osworld-g", meta) == ["button", "icon"]
    tables = metrics.by_breakdown("grounding", [boxed(0, HIT, source="osworld-g", meta=meta)])
    assert set(tables["element type"]) == {"button", "icon"} and set(tables["target"]) == {"bbox"}


@pytest.mark.parametrize("source", BENCHMARKS)
def test_every_benchmark_names_its_cells(source: str) -> None:
    row = BENCHMARKS[source]
    assert set(row.cells) <= {key for _, key in row.tables}
    assert cells_of(source, dict.fromkeys(row.cells, "X")) == [" ".join(["x"] * len(row.cells))]
    assert cells_of(source, {}) == [] and cells_title(source)


def test_medical_sets_by_their_papers_tables() -> None:
    meta = {"answer_type": "CLOSED ", "q_lang": "en", "content_type": "Organ", "modality": "CT"}
    tables = metrics.by_breakdown("vqa", [record(0, "vqa", "yes", answers=["yes"], meta=meta)])
    assert {title: list(values) for title, values in tables.items()} == {
        "answer type": ["closed"],
        "language": ["en"],
        "content type": ["organ"],
        "modality": ["ct"],
    }


def test_rows_with_a_metric_of_their_own_are_summed_up_under_its_name() -> None:
    rows = [record(0, "vqa", "helo", answers=["hello"]), record(1, "vqa", "yes", answers=["yes"])]
    rows[0]["components"] = vqa_reward("helo", ["hello"], metric="anls").components
    summary = summary_of(rows, "vqa")
    assert summary["by_metric"]["anls"]["value"] == pytest.approx(0.8) and summary["by_metric"]["anls"]["n"] == 1
    assert "anls" in [name for name, *_ in page_of(summary, rows).tables[0].rows]
    assert summary["metrics"]["accuracy"]["value"] == 0.5
    assert "| anls | 80.00 % |" in render_markdown(summary)


def test_an_evaluation_records_what_decides_its_reproduction() -> None:
    settings = {"answer_format": "point", "family": "qwen2_5_vl", "min_pixels": 3136, "max_pixels": 99999}
    identity = {**IDENTITY, "task": "grounding", "settings": settings, "sampling": {"temperature": 0.0}}
    found = summarise(identity, {0: boxed(0, HIT)}, 1)["protocol"]
    assert found["coordinate space"] == "processed (qwen2_5_vl)" and found["served pixels"] == [3136, 99999]

    assert found["temperature"] == 0.0 and found["pictures"] == "before the text"
    assert "(x, y)" in found["prompt"] and "- coordinate space: processed" in render_markdown(
        summarise(identity, {0: boxed(0, HIT)}, 1)
    )


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        (None, []),
        ("99999", ["agent.max_pixels=99999"]),
        ("3136:99999", ["agent.min_pixels=3136", "agent.max_pixels=99999"]),
    ],
)
def test_served_pixels(text: str | None, settings: list[str]) -> None:
    assert served_pixels(text) == settings


@pytest.mark.parametrize("text", ["", "0", "9:3", "a:3", "1x2", "-3", "3:"])
def test_bad_served_pixels(text: str) -> None:
    with pytest.raises(UserError, match="MAX or MIN:MAX"):
        served_pixels(text)


def foreign(*overrides: str) -> AgentSettings:
    return agent_settings("grounding", overrides, cpu=True, model_dir=None, trained_as=None, transport="data")


@pytest.mark.slow
def test_the_size_that_a_server_showed_is_stated_and_never_assumed() -> None:
    pixels = ("agent.family=qwen2_5_vl", "agent.answer_format=point")
    with pytest.raises(UserError, match="give --served-pixels"):
        foreign(*pixels)
    assert foreign(*pixels, *served_pixels("3136:99999")).max_pixels == 99999
    assert foreign("agent.family=qwen3_vl", "agent.answer_format=point").max_pixels is None
    assert foreign("agent.family=qwen2_5_vl").answer_format == "bbox"
    with pytest.raises(UserError, match=r"agent.reward=giou needs a box, but agent.answer_format=point"):
        foreign("agent.answer_format=point", "agent.reward=giou")


def test_terms_and_weights_come_from_the_configuration() -> None:
    settings = foreign("agent.terms.format_price=0.5", "agent.arc.task=1.0")
    assert settings.terms.format_price == 0.5 and settings.arc.task == 1.0
    assert AgentSettings().terms.format_price == 0.1


@pytest.mark.parametrize(
    ("limits", "shown"),
    [
        ([None, None], "the processor's own limit"),
        ([3136, None], "3136 to the processor's own limit"),
        ([1, 9], "1 to 9"),
    ],
)
def test_what_nobody_set_is_no_none(limits: list[int | None], shown: str) -> None:
    settings = {**dataclasses.asdict(AgentSettings()), "min_pixels": limits[0], "max_pixels": limits[1]}
    summary = summarise(
        {**IDENTITY, "task": "vqa", "settings": settings}, {0: record(0, "vqa", "yes", answers=["yes"])}, 1
    )
    text = render_markdown(summary)
    assert f"- served pixels: {shown}\n" in text and "None" not in text
    assert not any("None" in value for value in page_of(summary, []).settings.values())


def test_a_task_that_is_judged_by_a_published_metric_shows_it_once() -> None:
    get_task("examples/chart_qa.py")  # known by its name from here on
    row = record(0, "chart_qa", "7", answers=["7"], meta={"kind": "human"})
    row["components"] = {"relaxed_accuracy": 1.0, "format/ok": 1.0}
    text = render_markdown(summary_of([row], "chart_qa"))
    assert text.count("\n| relaxed_accuracy |") == 1
