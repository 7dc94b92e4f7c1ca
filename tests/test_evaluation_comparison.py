"""Paired comparison of evaluations: pairing, verdicts, refusals, table and picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image
from scipy.stats import binomtest

from baselines.compare import main
from tests.test_evaluation_metrics import IDENTITY, boxed, record, shifted
from vision_rl.errors import UserError
from vision_rl.evaluation.comparison import compare, difference, draw_comparison, load, render_comparison, shown_p
from vision_rl.evaluation.results import open_store


def evaluation(folder: Path, records: list[dict[str, Any]], **identity: Any) -> Path:
    task = records[0]["task"]
    with open_store(folder, {**IDENTITY, "task": task, "data_sha256": "a", **identity}) as store:
        for row in records:
            store.add(row)
    return folder


def answered(right: list[bool]) -> list[dict[str, Any]]:
    return [record(n, "vqa", "yes" if hit else "no", answers=["yes"] * 10) for n, hit in enumerate(right)]


def test_pairing_finds_what_single_intervals_hide(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weak = list(rng.random(200) < 0.5)
    strong = [hit or index % 10 == 0 for index, hit in enumerate(weak)]  # never worse, better on a few rows
    folders = [evaluation(tmp_path / name, answered(hits)) for name, hits in (("a", weak), ("b", strong))]
    result = compare(load(folders))
    first, second = (result["measures"]["accuracy"][name] for name in ("a", "b"))
    assert first["high"] > second["low"]
    gap = second["difference"]
    assert gap["value"] == pytest.approx(second["value"] - first["value"])
    assert gap["low"] > 0 and gap["verdict"] == "better" and gap["p"] < 0.05
    assert "difference" not in first


def test_a_row_that_failed_and_was_asked_again_counts_once(tmp_path: Path) -> None:
    rows = answered([True, False])
    failed = {**rows[1], "failure": "500", "reward": None, "components": {}}
    folder = evaluation(tmp_path / "a", [rows[0], failed])
    with open_store(folder, {**IDENTITY, "task": "vqa", "data_sha256": "a"}) as store:
        store.add(rows[1])
    runs = load([folder, evaluation(tmp_path / "b", rows)])
    assert [list(run.records) for run in runs] == [[0, 1], [0, 1]]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("rows.jsonl", "{broken\n", r"rows\.jsonl has a line that is not JSON"),
        ("rows.jsonl", '{"row": 5}\n', r"rows\.jsonl, line 1 is not a scored row"),
        ("rows.jsonl", "[]\n", r"rows\.jsonl, line 1 is not a scored row"),
        ("evaluation.json", "[]", r"evaluation\.json is not a JSON object"),
        ("evaluation.json", '{"task": "vqa"}', "does not say its data, data_sha256"),
    ],
)
def test_damaged_evaluations_are_named(name: str, text: str, reason: str, tmp_path: Path) -> None:
    folders = [evaluation(tmp_path / label, answered([True])) for label in ("a", "b")]
    (folders[1] / name).write_text(text)
    with pytest.raises(UserError, match=reason):
        load(folders)


def test_chance_is_called_chance(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    folders = [evaluation(tmp_path / name, answered(list(rng.random(100) < 0.5))) for name in ("a", "b")]
    runs = load(folders)
    assert difference(runs[0], runs[1], "accuracy")["verdict"] == "no difference shown"
    same = difference(runs[0], runs[0], "accuracy")
    assert (same["value"], same["p"], same["verdict"]) == (0.0, 1.0, "no difference shown")


@pytest.mark.parametrize(
    ("better", "worse", "same", "p", "verdict"),
    [
        (8, 0, 0, 2 / 256, "better"),
        (8, 0, 40, 2 / 256, "better"),
        (5, 0, 0, 2 / 32, "no difference shown"),
        (6, 0, 4, 2 / 64, "better"),
        (5, 1, 0, 14 / 64, "no difference shown"),
        (1, 0, 0, 1.0, "no difference shown"),
        (0, 0, 3, 1.0, "no difference shown"),
    ],
)
def test_few_pairs_are_counted_exactly(
    tmp_path: Path, better: int, worse: int, same: int, p: float, verdict: str
) -> None:
    """For answers that are right or wrong that is the sign test; resamples of eight equal differences said p < 0.001."""
    first, second = [False] * better + [True] * worse + [True] * same, [True] * better + [False] * worse + [True] * same
    runs = load([evaluation(tmp_path / name, answered(hits)) for name, hits in (("a", first), ("b", second))])
    found = difference(runs[0], runs[1], "accuracy")
    assert (found["p"], found["verdict"]) == (pytest.approx(p), verdict)
    if better + worse:
        assert p == pytest.approx(binomtest(better, better + worse).pvalue)


def test_questions_about_one_picture_flip_together(tmp_path: Path) -> None:
    rows = [{**row, "image_paths": [f"{row['row'] // 4}.png"]} for row in answered([True] * 24)]
    wrong = [{**row, "image_paths": [f"{row['row'] // 4}.png"]} for row in answered([False] * 24)]
    runs = load([evaluation(tmp_path / "a", wrong), evaluation(tmp_path / "b", rows)])
    assert difference(runs[0], runs[1], "accuracy")["p"] == pytest.approx(2 / 2**6), "six pictures, not 24 rows"


def test_the_picture_carries_rows_and_p(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, right = answered([False] * 20), answered([True] * 20)
    runs = load([evaluation(tmp_path / "first", wrong), evaluation(tmp_path / "second", right)])
    texts: list[str] = []
    ticks: list[float] = []
    annotate, set_ticks = Axes.annotate, Axes.set_xticks

    def noted(self: Axes, text: str, *args: Any, **options: Any) -> Any:
        texts.append(text)
        return annotate(self, text, *args, **options)

    def ticked(self: Axes, shown: Sequence[float]) -> Any:
        ticks.extend(shown)
        return set_ticks(self, shown)

    monkeypatch.setattr(Axes, "annotate", noted)
    monkeypatch.setattr(Axes, "set_xticks", ticked)
    draw_comparison(compare(runs), tmp_path / "comparison.png")
    assert texts == ["0.000, n = 20", "1.000, n = 20, p < 0.001"]
    assert ticks and min(ticks) >= 0, "no share is below 0"
    assert shown_p(0.0234) == "= 0.023"


def test_an_empty_evaluation_is_named(tmp_path: Path) -> None:
    failed = [{**row, "failure": "500", "reward": None, "components": {}} for row in answered([True])]
    good, empty = evaluation(tmp_path / "good", answered([True])), evaluation(tmp_path / "empty", failed)
    with pytest.raises(UserError, match=r"empty has no scored row; evaluate again, or leave it out"):
        load([good, empty])


def test_more_wrong_places_are_worse(tmp_path: Path) -> None:
    good = evaluation(tmp_path / "good", [boxed(n, shifted(0)) for n in range(20)])
    bad = evaluation(tmp_path / "bad", [boxed(n, shifted(0.3)) for n in range(20)])
    result = compare(load([good, bad]))
    assert result["measures"]["wrong place"]["bad"]["difference"]["verdict"] == "worse"
    assert result["measures"]["IoU"]["bad"]["difference"]["verdict"] == "worse"


def test_only_rows_that_all_have_scored_count(tmp_path: Path) -> None:
    first, second = answered([True] * 10), answered([True] * 5 + [False] * 5)
    second[0] = {**second[0], "failure": "timeout", "reward": None, "components": {}}
    runs = load([evaluation(tmp_path / "a", first[:8]), evaluation(tmp_path / "b", second)])
    assert [list(run.records) for run in runs] == [[1, 2, 3, 4, 5, 6, 7]] * 2


def test_refusals(tmp_path: Path) -> None:
    first = evaluation(tmp_path / "a", answered([True, False]))
    other = evaluation(tmp_path / "b", answered([True, False]), data_sha256="b")
    late = evaluation(tmp_path / "c", [{**answered([True])[0], "row": 9}])
    for folders, words in (
        ([first], "two evaluations or more"),
        ([first, other], "only evaluations of the same rows"),
        ([first, late], "no scored row in common"),
        ([first, first], "--labels"),
        ([first, tmp_path / "nothing"], "holds no evaluation"),
    ):
        with pytest.raises(UserError, match=words):
            load(folders)
    with pytest.raises(UserError, match="give one each"):
        load([first, other], ["one"])


@pytest.mark.slow
def test_the_command_leaves_table_picture_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = evaluation(tmp_path / "a", [boxed(n, shifted(0.3)) for n in range(12)])
    second = evaluation(tmp_path / "b", [boxed(n, shifted(0.02 * n)) for n in range(12)])
    output = tmp_path / "out"
    main([str(first), str(second), "--labels", "centre box", "trained", "--output", str(output)])
    shown = capsys.readouterr().out
    assert shown.strip() == (output / "comparison.md").read_text().strip()
    assert "| point accuracy | trained |" in shown and "| better |" in shown
    result = json.loads((output / "comparison.json").read_text())
    assert render_comparison(result).strip() == shown.strip()
    with Image.open(output / "comparison.png") as picture:
        assert picture.size[0] > 900 and len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
