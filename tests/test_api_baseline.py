"""The API baseline: pictures within a budget, cost before and after, dry run; and baselines that look at nothing."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import evaluate_agent
from baselines import api_baseline
from baselines.budget import PictureBudget, Prices, picture_tokens
from baselines.constant import CENTRE, constant_reply
from tests.fake_openai import MODEL, error, fake_openai
from vision_rl.agent.messages import image_url
from vision_rl.answers.parsing import read_boxes
from vision_rl.data.schema import read_rows, write_rows
from vision_rl.errors import UserError
from vision_rl.tiny import write_tasks


def noise(path: Path, size: tuple[int, int]) -> Path:
    """A picture that does not compress."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("tasks")
    return {task: write_tasks(folder, task, train=40, val=1, test=12) for task in ("vqa", "grounding")}


def run(*arguments: Any) -> int:
    with pytest.raises(SystemExit) as exit_:
        api_baseline.main([str(argument) for argument in arguments])
    return int(exit_.value.code or 0)


@pytest.mark.parametrize(
    ("size", "limit", "side"), [((900, 600), 200_000, 2048), ((900, 600), 20_000, 2048), ((1600, 200), 10**9, 500)]
)
def test_pictures_are_scaled_until_they_fit(size: tuple[int, int], limit: int, side: int, tmp_path: Path) -> None:
    path = noise(tmp_path / "a.png", size)
    budget = PictureBudget(tmp_path / "small", limit, side)
    row = budget.fitted({"image_paths": [str(path)], "image_sizes": [list(size)], "boxes": [[0, 0, 1, 1]]})
    uri = image_url(row["image_paths"][0], "data")
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert len(uri) <= limit and max(picture.size) <= side
        assert picture.width / picture.height == pytest.approx(size[0] / size[1], rel=0.05)
        assert row["image_sizes"] == [list(picture.size)]
        assert min(picture.size) >= 28
    before = sorted((tmp_path / "small").iterdir())
    assert budget.fitted(row | {"image_paths": [str(path)]})["image_paths"] == row["image_paths"]
    assert sorted((tmp_path / "small").iterdir()) == before and len(before) == 1


def test_pictures_that_fit_are_left_alone(tmp_path: Path) -> None:
    path = noise(tmp_path / "a.png", (60, 40))
    assert PictureBudget(tmp_path / "small").fit(path) == path and not (tmp_path / "small").exists()


def test_a_budget_that_no_picture_meets_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--image-bytes 300"):
        PictureBudget(tmp_path, 300).fit(noise(tmp_path / "a.png", (400, 400)))


@pytest.mark.parametrize(("size", "tokens"), [((512, 512), 255), ((1024, 1024), 765), ((2048, 4096), 1105)])
def test_picture_tokens_are_those_of_openais_examples(size: tuple[int, int], tokens: int) -> None:
    assert picture_tokens(*size) == tokens


def test_prices_are_per_million_tokens() -> None:
    assert Prices(2.0, 8.0).cost(500_000, 250_000) == pytest.approx(3.0)
    assert Prices(None, None).cost(1, 1) is None


@pytest.mark.slow
def test_a_run_reports_its_cost(tasks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_openai("red") as fake:
        code = run(
            *("--model", MODEL, "--base-url", fake.url, "--data", tasks["vqa"]["test"], "--limit", 8),
            *("--output", tmp_path / "out", "--price-in", 2, "--price-out", 10),
        )
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert code == 0 and summary["scored"] == 8
    assert summary["cost"] == pytest.approx((800 * 2 + 56 * 10) / 1e6)
    assert summary["cost_estimated"] > 0
    shown = capsys.readouterr()
    assert "8 rows, 8 pictures" in shown.err and f"cost {summary['cost']:.4f}" in shown.out
    assert {body["max_tokens"] for body in fake.requests} == {summary["settings"]["max_tokens"]}


def test_a_baseline_and_an_evaluation_of_one_model_keep_apart(
    tasks: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("--model", MODEL, "--data", tasks["vqa"]["test"], "--limit", 2)
    with fake_openai("red") as fake:
        with pytest.raises(SystemExit) as exit_:
            evaluate_agent.main([str(word) for word in (*asked, "--endpoint", fake.url)])
        assert not exit_.value.code and run(*asked, "--base-url", fake.url) == 0
    made = sorted(path.name for path in (tmp_path / "runs" / "evaluations").iterdir())
    assert len(made) == 2, made


def test_a_dry_run_sends_and_writes_nothing(tasks: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with fake_openai("red") as fake:
        code = run(
            *("--model", MODEL, "--base-url", fake.url, "--data", tasks["vqa"]["test"], "--dry-run"),
            *("--output", tmp_path / "out", "--price-in", 2, "--price-out", 10, "--image-bytes", 3000),
        )
    assert code == 0 and fake.requests == [] and not (tmp_path / "out").exists()
    assert "12 rows, 12 pictures" in capsys.readouterr().err


def test_pictures_over_the_budget_are_sent_smaller(tmp_path: Path) -> None:
    noise(tmp_path / "a.png", (700, 500))
    row: dict[str, Any] = {
        "id": "0",
        "task": "grounding",
        "image_paths": ["a.png"],
        "media": "images",
        "question": "Find it.",
    }
    row |= {"answers": [], "boxes": [[0.1, 0.1, 0.5, 0.5]], "labels": ["x"], "image_sizes": [[700, 500]], "meta": {}}
    write_rows(tmp_path / "data.parquet", [{**row, "source": "test"}])
    with fake_openai("<bbox>[0.1, 0.1, 0.5, 0.5]</bbox>") as fake:
        run(
            *("--model", MODEL, "--base-url", fake.url, "--data", tmp_path / "data.parquet", "--image-bytes", 60_000),
            *("--output", tmp_path / "out"),
        )
    sent = fake.requests[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert len(sent) <= 60_000
    kept = json.loads((tmp_path / "out" / "rows.jsonl").read_text())
    assert kept["components"]["iou"] == pytest.approx(1.0) and kept["image_paths"] == [str(tmp_path / "a.png")]


def test_reasoning_models_get_their_own_parameter(tasks: Any, tmp_path: Path) -> None:
    def fault(number: int, body: dict[str, Any]) -> Any:
        bad = "max_tokens" in body or "temperature" in body
        return error(400, "Unsupported parameter: use 'max_completion_tokens'") if bad else None

    with fake_openai("red", fault=fault) as fake:
        common = ("--model", MODEL, "--base-url", fake.url, "--data", tasks["vqa"]["test"], "--limit", 2)
        assert run(*common, "--output", tmp_path / "plain") == 1
        assert run(*common, "--output", tmp_path / "reasoning", "--reasoning") == 0
    assert fake.requests[-1]["max_completion_tokens"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("agent.max_tokens=9", "--model", "m", "--dry-run", "agent.rewardd=official"), "agent.reward"),
        (("--model", "m", "--price-in", "1"), "--price-in and --price-out go together"),
        (("--model", "m", "--price-in", "-1", "--price-out", "1"), "--price-in -1.0 makes no sense"),
        (("--model", "m", "--price-in", "1", "--price-out", "nan"), "--price-out nan makes no sense"),
        (("--model", "m", "--image-side", "0"), "--image-side 0 makes no sense"),
        (("--model", "m", "--image-bytes", "-5"), "--image-bytes -5 makes no sense"),
        (("--model", "m"), "OPENAI_API_KEY is not set"),
        (("--trivial", "mean-box"), "answers with boxes, but"),
        (("--trivial", "most-common-answer"), "needs --train"),
        (("--trivial", "most-common-answer", "--train", "nowhere.parquet"), "nowhere.parquet"),
    ],
)
def test_bad_command_lines(
    arguments: tuple[str, ...],
    words: str,
    tasks: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    assert run(*arguments, "--data", tasks["vqa"]["test"]) == 2
    assert words in capsys.readouterr().err and not os.listdir(tmp_path)


def test_trivial_answers_come_from_the_training_file(tasks: Any) -> None:
    rows = read_rows(tasks["grounding"]["train"])
    mean = np.mean([box for row in rows for box in row["boxes"]], axis=0)
    assert read_boxes(constant_reply("mean-box", tasks["grounding"]["train"], "bbox"), "bbox").boxes == [
        pytest.approx(tuple(mean), abs=1e-4)
    ]
    assert read_boxes(constant_reply("centre-box", None, "click"), "click").boxes == [pytest.approx(CENTRE)]
    answers = [max(row["answers"], key=row["answers"].count) for row in read_rows(tasks["vqa"]["train"])]
    assert constant_reply("most-common-answer", tasks["vqa"]["train"], "bbox") == max(answers, key=answers.count)


def test_answers_that_normalise_alike_are_one_most_common_answer(tmp_path: Path) -> None:
    rows = [
        {"id": str(n), "image_paths": ["a.png"], "question": "q", "answers": [answer]}
        for n, answer in enumerate(["Yes", "yes.", "YES", "no", "no"])
    ]
    write_rows(tmp_path / "rows.parquet", rows)
    assert constant_reply("most-common-answer", tmp_path / "rows.parquet", "bbox") == "Yes"


@pytest.mark.parametrize(
    ("kind", "task", "measure"),
    [("most-common-answer", "vqa", "accuracy"), ("centre-box", "grounding", "IoU"), ("mean-box", "grounding", "IoU")],
)
def test_trivial_baselines_are_scored_like_models(
    kind: str, task: str, measure: str, tasks: Any, tmp_path: Path
) -> None:
    files = tasks[task]
    code = run("--trivial", kind, "--train", files["train"], "--data", files["test"], "--output", tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert code == 0 and summary["scored"] == 12 and 0 <= summary["metrics"][measure]["value"] < 0.6
    records = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert {record["reply"] for record in records} == {constant_reply(kind, files["train"], "bbox")}
