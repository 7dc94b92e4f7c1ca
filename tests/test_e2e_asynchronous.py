"""The asynchronous variants on the real stack: they learn, say how old their samples were, and go on after a stop."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.test_e2e_training import metrics_of, run
from vision_rl.run.log import EVENTS, read_jsonl

STALENESS = "training/off_policy/trajectory_staleness"

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("variant", [pytest.param("one_step_off", marks=pytest.mark.long), "async"])
def test_an_asynchronous_run_trains_and_tells_the_age_of_its_samples(variant: str, tmp_path: Path) -> None:
    summary = run(
        tmp_path, "--task", "vqa", "--variant", variant, "--max-steps", "4", "trainer.test_freq=-1", "--overwrite"
    )
    assert summary["steps"] == 4 and summary["rollouts_failed"] == 0
    lines = [line for line in metrics_of(tmp_path) if line["step"]]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert any(line[f"{STALENESS}_worst/max"] > 0 for line in lines), "nothing was older than the weights"
    assert all(line.get("mismatch/logprob_max", 0.0) <= 1e-4 for line in lines), "samples of the current weights"


@pytest.mark.long
@pytest.mark.parametrize("variant", ["one_step_off", "async"])
def test_an_asynchronous_run_learns_as_the_synchronous_one(variant: str, tmp_path: Path) -> None:
    here = run(tmp_path / "here", "--task", "vqa", "--variant", variant)
    there = run(tmp_path / "there", "--task", "vqa")
    assert here["val_after"] >= there["val_after"] - 0.1


@pytest.mark.long
@pytest.mark.parametrize("variant", ["one_step_off", "async"])
def test_an_asynchronous_run_resumes(variant: str, tmp_path: Path) -> None:
    """What was in the queue when it was saved is finished, or asked for again."""
    options = ["--task", "vqa", "--variant", variant, "trainer.val_before_train=false", "trainer.test_freq=-1"]
    run(tmp_path / "run", *options, "--max-steps", "2")
    run(tmp_path / "run", *options, "--max-steps", "4", "--resume")
    assert [line["step"] for line in metrics_of(tmp_path / "run")] == [1, 2, 3, 4]
    assert [e["step"] for e in read_jsonl(tmp_path / "run" / EVENTS)[0] if e["kind"] == "resumed"] == [2]
