"""The user's own commands against vLLM: the tiny model on both tasks, a training checkpoint, and the table of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[1]


def run(script: str, *arguments: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPO / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.parametrize(
    ("task", "trivial", "measure"), [("vqa", "most-common-answer", "accuracy"), ("grounding", "mean-box", "IoU")]
)
def test_the_tiny_model_is_scored_and_compared(task: str, trivial: str, measure: str, tmp_path: Path) -> None:
    model, constant = tmp_path / "model", tmp_path / "constant"
    shown = run("evaluate_agent.py", "--tiny", "--task", task, "--output", model, folder=tmp_path)
    assert "128 of 128 rows scored." in shown.stdout
    summary = json.loads((model / "summary.json").read_text())
    assert summary["failed"] == 0 and summary["usage"]["completion_tokens"] >= 128
    assert 0 < summary["metrics"][measure]["value"] < 1
    again = run("evaluate_agent.py", "--tiny", "--task", task, "--output", model, folder=tmp_path)
    assert "128 of 128 rows are done already" in again.stderr and "serving" not in again.stderr

    train = tmp_path / "data" / "synthetic" / task / task / "train.parquet"
    run(
        *("baselines/api_baseline.py", "--trivial", trivial, "--train", train),
        *("--data", train.parent / "test.parquet", "--output", constant),
        folder=tmp_path,
    )
    shown = run("baselines/compare.py", constant, model, "--output", tmp_path / "comparison", folder=tmp_path)
    assert "128 rows that all have scored" in shown.stdout and (tmp_path / "comparison" / "comparison.png").exists()
