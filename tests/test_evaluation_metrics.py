"""Figures, breakdowns and intervals against independent calculations and scipy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vision_rl.answers.space import AnswerSpace
from vision_rl.data.convert.screenspot import platform_of
from vision_rl.evaluation import metrics
from vision_rl.evaluation.intervals import mean_interval, resampled_means
from vision_rl.evaluation.summary import render_markdown, submission, summarise, write_summary
from vision_rl.rewards.grounding import grounding_reward
from vision_rl.rewards.vqa import vqa_reward

TRUE = [0.2, 0.2, 0.4, 0.4]
IDENTITY: dict[str, Any] = {"model": "m", "data": "data/val.parquet", "settings": {"answer_format": "bbox"}}


def record(number: int, task: str, reply: str, **fields: Any) -> dict[str, Any]:
    """A line of rows.jsonl, scored by the reward of training."""
    row: dict[str, Any] = {
        "row": number,
        "id": str(number),
        "task": task,
        "question": "q",
        "image_paths": [f"{number}.png"],
        "answers": [],
        "boxes": [],
        "labels": [],
        "image_sizes": [[100, 100]],
        "source": "test",
        "meta": {},
        "reply": reply,
        "failure": "",
        "usage": {
            "calls": 1,
            "prompt_tokens": 10,
            "completion_tokens": 2,
            "seconds": 0.5,
            "rate_limited": 0,
            "errors": 0,
        },
        "seconds": 0.6,
        **fields,
    }
    reward = vqa_reward(reply, row["answers"]) if task == "vqa" else grounding_reward(reply, row["boxes"])
    return {"reward": reward.value, "components": reward.components, **row}


def boxed(number: int, reply: str, boxes: Any = (TRUE,), **fields: Any) -> dict[str, Any]:
    return record(number, "grounding", reply, boxes=[list(box) for box in boxes], **fields)


def shifted(dx: float) -> str:
    return AnswerSpace().write([[0.2 + dx, 0.2, 0.4 + dx, 0.4]], decimals=6)


@pytest.mark.parametrize(
    ("reply", "boxes", "expected"),
    [
        (AnswerSpace().write([TRUE], decimals=6), [TRUE], "right"),
        (shifted(0.05), [TRUE], "right"),
        (shifted(0.15), [TRUE], "wrong place"),
        ("<bbox>[20, 20, 40, 40]</bbox>", [TRUE], "wrong space"),
        ("<bbox>[200, 200, 400, 400]</bbox>", [TRUE], "wrong space"),
        ("it is at the top", [TRUE], "wrong format"),
        ("", [TRUE], "wrong format"),
        ("<bbox>[0.2, 0.2, 0.4]</bbox>", [TRUE], "wrong format"),
        ("<bbox>[0.4, 0.4, 0.2, 0.2]</bbox>", [TRUE], "wrong format"),
        ("<bbox>[]</bbox>", [TRUE], "wrong place"),
        ("<bbox>[]</bbox>", [], "right"),
        ("no finding", [], "right"),
        (AnswerSpace().write([TRUE]), [], "wrong place"),
    ],
)
def test_outcomes_tell_format_space_and_place_apart(reply: str, boxes: Any, expected: str) -> None:
    assert metrics.outcome(boxed(0, reply, boxes)) == expected


def test_outcomes_add_up() -> None:
    records = [
        boxed(n, reply) for n, reply in enumerate([shifted(0), shifted(0.15), "<bbox>[9, 9, 20, 20]</bbox>", "no"])
    ]
    assert metrics.outcome_counts(records) == {"right": 1, "wrong place": 1, "wrong space": 1, "wrong format": 1}
    figures = metrics.overall("grounding", records)
    assert [figures[name]["value"] for name in ("wrong place", "wrong space", "wrong format")] == [0.25, 0.25, 0.25]


def test_grounding_figures_equal_their_definitions() -> None:
    shifts = [0.0, 0.02, 0.05, 0.08, 0.12, 0.16, 0.3]
    figures = metrics.overall("grounding", [boxed(n, shifted(dx)) for n, dx in enumerate(shifts)])
    ious = [max(0.0, 0.2 - dx) / (0.2 + dx) for dx in shifts]
    assert figures["IoU"]["value"] == pytest.approx(np.mean(ious), abs=1e-6)
    for level in metrics.IOU_LEVELS:
        assert figures[f"ACC@{level}"]["value"] == pytest.approx(np.mean([value >= level for value in ious]))
    assert figures["point accuracy"]["value"] == pytest.approx(np.mean([dx <= 0.1 for dx in shifts]))


def test_an_iou_on_the_level_counts() -> None:
    # Half of the true box: an IoU of exactly 0.5, up to rounding.
    figures = metrics.overall("grounding", [boxed(0, AnswerSpace().write([[0.2, 0.2, 0.4, 0.3]], decimals=6))])
    assert figures["ACC@0.5"]["value"] == 1.0


def test_screenspot_tables() -> None:
    sources = ("ios", "android", "macos", "windows", "gitlab", "shop")
    records = []
    for number, (source, kind) in enumerate((s, k) for s in sources for k in ("text", "icon")):
        hit = shifted(0) if kind == "text" or source == "ios" else shifted(0.3)
        meta = {"data_source": source, "data_type": kind, "platform": platform_of(source)}
        records.append(boxed(number, hit, meta=meta, labels=[kind], source="screenspot"))
    tables = metrics.by_breakdown("grounding", records)
    cross = {name: figures["point accuracy"]["value"] for name, figures in tables["platform x type"].items()}
    assert cross == {
        "mobile text": 1.0,
        "mobile icon": 0.5,
        "desktop text": 1.0,
        "desktop icon": 0.0,
        "web text": 1.0,
        "web icon": 0.0,
    }
    assert list(cross) == ["mobile text", "mobile icon", "desktop text", "desktop icon", "web text", "web icon"]
    assert tables["platform"]["mobile"]["point accuracy"]["value"] == 0.75
    assert "source" not in tables


def test_screenspot_pro_is_grouped_by_its_own_groups() -> None:
    meta = {"group": "CAD", "platform": "windows", "data_type": "icon"}
    tables = metrics.by_breakdown("grounding", [boxed(0, shifted(0), meta=meta, source="screenspot-pro")])
    assert set(tables) == {"group", "type", "platform", "group x type", "target size"}


def test_radiology_per_label() -> None:
    records = [
        boxed(0, shifted(0), labels=["nodule"]),
        boxed(1, shifted(0.3), labels=["nodule"]),
        boxed(
            2,
            AnswerSpace().write([TRUE, [0.5, 0.5, 0.7, 0.7]], decimals=6),
            [TRUE, [0.5, 0.5, 0.7, 0.7]],
            labels=["nodule", "mass"],
        ),
        boxed(3, "no finding", []),
    ]
    table = metrics.by_breakdown("grounding", records)["label"]
    assert {label: (f["point accuracy"]["n"], f["point accuracy"]["value"]) for label, f in table.items()} == {
        "mass": (1, 1.0),
        "no finding": (1, 1.0),
        "nodule": (3, pytest.approx(2 / 3)),
    }


def test_vqa_tables_and_submission(tmp_path: Path) -> None:
    rows = [
        ("Yes.", ["yes"] * 10, "Yes/No ", "is the"),
        ("no", ["yes"] * 10, "yes/no", "is the"),
        ("<think>7?</think>2", ["2"] * 9 + ["3"], "number", "how many"),
        ("red", ["red"] * 2 + ["blue"] * 8, "other", "what color"),
    ]
    records = {
        n: record(n, "vqa", reply, answers=answers, meta={"question_id": 100 + n, "answer_type": a, "question_type": q})
        for n, (reply, answers, a, q) in enumerate(rows)
    }
    records[4] = {**records[0], "row": 4, "failure": "x", "reply": "", "meta": {"question_id": 104}, "reward": None}
    summary = summarise({**IDENTITY, "task": "vqa"}, records, 6)
    assert summary["metrics"]["accuracy"]["value"] == pytest.approx((1 + 0 + 1 + 0.6) / 4)
    assert summary["metrics"]["official 2021"]["value"] == pytest.approx((0 + 0 + 1 + 0.6) / 4)
    types = {name: figures["accuracy"]["value"] for name, figures in summary["breakdowns"]["answer type"].items()}
    assert list(types.items()) == [("yes/no", 0.5), ("number", pytest.approx(1.0)), ("other", pytest.approx(0.6))]
    assert summary["breakdowns"]["question type"]["what color"]["accuracy"]["n"] == 1
    assert (summary["scored"], summary["failed"], summary["missing"]) == (4, 1, 1)
    write_summary(tmp_path, summary, records)
    assert json.loads((tmp_path / "submission.json").read_text()) == [
        {"question_id": 100, "answer": "Yes."},
        {"question_id": 101, "answer": "no"},
        {"question_id": 102, "answer": "2"},
        {"question_id": 103, "answer": "red"},
        {"question_id": 104, "answer": ""},
    ]
    text = (tmp_path / "summary.md").read_text()
    assert (
        "4 of 6 rows scored (1 failed, 1 missing; the figures leave them out)." in text
        and "| accuracy | 65.00 %" in text
    )
    assert json.loads((tmp_path / "summary.json").read_text()) == json.loads(json.dumps(summary))


def test_rows_without_truth_are_submitted_and_not_scored(tmp_path: Path) -> None:
    records = {0: record(0, "vqa", "yes", meta={"question_id": 7})}
    summary = summarise({**IDENTITY, "task": "vqa"}, records, 1)
    assert summary["scored"] == 0 and summary["metrics"]["accuracy"]["value"] is None
    write_summary(tmp_path, summary, records)
    assert json.loads((tmp_path / "submission.json").read_text()) == [{"question_id": 7, "answer": "yes"}]
    assert "1 without a true answer" in render_markdown(summary)


def test_calibration_of_stated_confidences() -> None:
    sure = "<confidence>0.9</confidence>"
    records = [boxed(n, (shifted(0) if n < 5 else shifted(0.3)) + sure) for n in range(10)]
    records.append(boxed(10, shifted(0)))
    found = metrics.calibration("grounding", records)
    assert found is not None
    assert found["n"] == 10 and found["ece"] == pytest.approx(0.4) and found["brier"] == pytest.approx(0.41)
    assert found["bins"] == [{"n": 10, "confidence": pytest.approx(0.9), "outcome": 0.5}]
    assert metrics.calibration("grounding", records[10:]) is None


def test_usage_totals() -> None:
    fast, slow = record(0, "vqa", "a", answers=["a"]), record(1, "vqa", "a", answers=["a"])
    slow["usage"] = {**slow["usage"], "seconds": 1.5, "rate_limited": 2}
    failed = {**record(2, "vqa", "", answers=["a"]), "failure": "x"}
    totals = metrics.usage_totals([fast, slow, failed])
    assert totals["prompt_tokens"] == 30 and totals["completion_tokens"] == 6 and totals["rate_limited"] == 2
    assert totals["latency_seconds"]["mean"] == 1.0 and totals["latency_seconds"]["max"] == 1.5


@pytest.mark.parametrize("size", [5, 60, 400])
def test_intervals_are_scipys_where_every_row_has_its_picture(size: int) -> None:
    values = np.random.default_rng(size).beta(0.5, 0.8, size)
    ours = mean_interval(list(values), list(range(size)), resamples=20_000)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", random_state=1
    ).confidence_interval
    assert ours is not None
    width = theirs.high - theirs.low
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)


def test_rows_of_one_picture_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.random(40)
    values = np.repeat(pictures, 10)
    clusters = np.repeat(np.arange(40), 10).tolist()
    together, apart = mean_interval(list(values), clusters), mean_interval(list(values))
    once = mean_interval(list(pictures))
    assert together is not None and apart is not None and once is not None
    assert together[1] - together[0] == pytest.approx(once[1] - once[0], rel=0.1)
    assert together[1] - together[0] > 2.5 * (apart[1] - apart[0])


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0, 0.0], [1.0, 1.0]])
def test_no_interval_where_resampling_says_nothing(values: list[float]) -> None:
    assert mean_interval(values) is None


def test_no_values_are_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to resample"):
        resampled_means([])


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(np.random.default_rng(1).random(50))
    whole = resampled_means(values)
    monkeypatch.setattr("vision_rl.evaluation.intervals._CELLS", 120)
    assert len(resampled_means(values)) == len(whole) and np.array_equal(resampled_means(values), whole)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 5)), min_size=2, max_size=40))
def test_intervals_lie_within_the_values(pairs: list[tuple[float, int]]) -> None:
    values, clusters = [value for value, _ in pairs], [cluster for _, cluster in pairs]
    interval = mean_interval(values, clusters, resamples=200)
    if interval is None:
        assert len(set(clusters)) < 2 or len(set(values)) == 1
    else:
        assert min(values) - 1e-9 <= interval[0] <= interval[1] <= max(values) + 1e-9


def test_ids_that_no_vqa_server_takes_make_no_submission() -> None:
    """Other sets call theirs question_id as well; it ended the evaluation after its last row."""
    records = [{"meta": {"question_id": name}, "reply": "yes"} for name in (7, "validation_Math_1")]
    assert submission(records) is None
    assert submission(records[:1]) == [{"question_id": 7, "answer": "yes"}]
