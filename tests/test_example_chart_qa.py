"""The promise of docs/add-a-task.md, kept by its own example: one file adds a task to every command.

`test_e2e_training.py` trains, stops and resumes it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_openai import MODEL, fake_openai
from vision_rl import tasks
from vision_rl.data.schema import read_rows
from vision_rl.tasks import Task, get_task
from vision_rl.tiny import write_tasks

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = "examples/chart_qa.py"


@pytest.fixture(scope="module")
def charts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "_loaded", {})
        task = get_task(str(ROOT / EXAMPLE))
        yield write_tasks(tmp_path_factory.mktemp("charts"), task.name, train=24, val=8, test=12)


@pytest.fixture(scope="module")
def task(charts: dict[str, Path]) -> Task:
    return get_task("chart_qa")


def run(*arguments: Any, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command of the user's, from the repository."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("12", "12", True),
        ("12.5", "12", True),
        ("11.4", "12", True),
        ("12.61", "12", False),
        ("1,200", "1200", True),
        ("$12", "12", True),
        ("15 %", "15", True),
        ("-12", "12", False),
        ("0.01", "0", False),
        ("0", "0", True),
        ("Red.", "red", True),
        ("The bars are tall.\nred", "red", True),
        ("red or blue", "red", False),
        ("red", "12", False),
        ("", "red", False),
        ("1e309", "1e309", True),
        ("nan", "12", False),
        ("9" * 400, "12", False),
        ("\ud800\x00" * 1000, "12", False),
    ],
)
def test_relaxed_accuracy(reply: str, answer: str, right: bool, task: Task) -> None:
    reward = task.part("score")({"answers": [answer]}, reply)
    assert reward.value == reward.components["relaxed_accuracy"] == float(right)


@pytest.mark.slow
def test_verify_scores_its_gold_answers(charts: dict[str, Path]) -> None:
    shown = run("data_utils.py", "verify", "--task", EXAMPLE, "--file", charts["train"], "--against", charts["val"])
    assert "24 rows, 24 images, 0 bad rows" in shown.stdout


def test_a_command_that_was_not_given_the_file_says_so(charts: dict[str, Path]) -> None:
    shown = run("data_utils.py", "stats", "--file", charts["train"], code=2)
    assert "task 'chart_qa' is unknown" in shown.stderr and "--task path/to/my_task.py" in shown.stderr


@pytest.mark.slow
def test_a_file_of_the_users_own_becomes_rows_of_the_task(charts: dict[str, Path], tmp_path: Path) -> None:
    picture = next((charts["train"].parent / "images" / "train").iterdir())
    (tmp_path / "mine.csv").write_text(f"image,question,answer\n{picture},How many bars are there?,3\n")
    out = tmp_path / "mine.parquet"
    run(*("data_utils.py", "convert", "custom", "--task", EXAMPLE, "--input", tmp_path / "mine.csv", "--output", out))
    assert [row["task"] for row in read_rows(out)] == ["chart_qa"]


@pytest.mark.slow
def test_evaluation_report_and_comparison(charts: dict[str, Path], tmp_path: Path) -> None:
    data = ("--task", EXAMPLE, "--data", charts["test"])
    with fake_openai("3") as fake:
        run("evaluate_agent.py", *data, "--endpoint", fake.url, "--model", MODEL, "--output", tmp_path / "model")
        assert all("single word or phrase" in question for question in fake.questions())
    summary = json.loads((tmp_path / "model" / "summary.json").read_text())
    assert summary["task"] == "chart_qa" and summary["scored"] == 12
    assert set(summary["metrics"]) == {"relaxed_accuracy", "reward", "format ok"}
    assert set(summary["breakdowns"]["kind"]) == {"count", "extreme"}
    assert "relaxed_accuracy" in (tmp_path / "model" / "report.html").read_text()
    trivial = ("--trivial", "most-common-answer", "--train", charts["train"], "--output", tmp_path / "trivial")
    run("baselines/api_baseline.py", *trivial, *data)
    shown = run("baselines/compare.py", tmp_path / "trivial", tmp_path / "model", "--output", tmp_path / "both")
    assert "12 rows that all have scored" in shown.stdout and "relaxed_accuracy" in shown.stdout


def test_the_page_shows_the_example() -> None:
    page, example = (ROOT / "docs" / "add-a-task.md").read_text(), (ROOT / EXAMPLE).read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3 and all(block in example for block in blocks)
    fields = {field.name for field in dataclasses.fields(Task)} - {"name", "answer", "source"}
    table = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    assert [name for name in sorted(fields) if f"`{name}`" not in table] == []
