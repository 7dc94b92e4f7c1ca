"""Controls of `test_e2e_training.py`: what must not learn, and must be noticed, on the same real stack.

So nobody can lose a fix unnoticed: without pixels in the actor nothing is learnt, Agent Lightning's own batch shows a mismatch,
and a server whose caches are kept answers from its old weights.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.test_e2e_training import MODEL, NO_LIMITS, QUICK, ROOT, command, metrics_of, run

pytestmark = pytest.mark.e2e


def test_a_blind_actor_does_not_learn(tmp_path: Path) -> None:
    """The same run with black pictures in the actor only; the policy that answers still sees. In half the steps a seeing actor
    has learnt most of it (`test_the_demo_learns`)."""
    blank = ["app.blank_pixels=true", "app.sight.min_kl=null", *NO_LIMITS]
    summary = run(tmp_path / "blind", "--task", "vqa", "--max-steps", "15", *blank)
    assert summary["val_after"] - summary["val_before"] <= 0.05
    assert summary["logprob_mismatch_max"] > 0.1


def test_a_blind_actor_ends_its_run(tmp_path: Path) -> None:
    """With the mismatch limits off nothing else would: its loss and its rollouts' rewards look as they should."""
    run_dir = tmp_path / "run"
    soon = ["app.sight.every=1", "app.sight.time=1", "app.sight.patience=2", "app.sight.val_rows=0"]
    arguments = ["--task", "vqa", *QUICK, "--max-steps", "4", "app.blank_pixels=true", *soon, *NO_LIMITS]
    ended = subprocess.run(
        command(run_dir, *arguments),
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert ended.returncode != 0
    assert "step 2: the actor answers the same with black pictures" in ended.stderr + ended.stdout
    assert [line["step"] for line in metrics_of(run_dir)] == [1]
    assert metrics_of(run_dir)[0]["sight/kl"] == 0


def test_an_actor_without_pixels_shows_itself(tmp_path: Path) -> None:
    """Agent Lightning 0.3.0's own batch has none, and its trainer runs without an error; the mismatch tells."""
    summary = run(
        tmp_path / "run", "--task", "vqa", *QUICK, *NO_LIMITS, f"{MODEL}.external_lib=tests.control_no_pixels"
    )
    assert summary["steps"] == 2
    assert summary["logprob_mismatch_max"] >= 0.1


@pytest.mark.parametrize("control", [False, True], ids=["caches are emptied", "caches are kept"])
def test_pictures_that_come_again_are_seen_with_the_new_weights(control: bool, tmp_path: Path) -> None:
    """Eight pictures in every one of four steps. With all three caches on and not emptied, the server answers from
    embeddings and prefixes of its old weights."""
    keep = [f"{MODEL}.external_lib=tests.control_no_reset"] if control else []
    batch = ["app.max_train_samples=8", "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8"]
    moves = ["actor_rollout_ref.actor.optim.lr=1e-3", "actor_rollout_ref.actor.entropy_coeff=0.01"]
    summary = run(tmp_path / "run", "--task", "vqa", *QUICK, "--max-steps", "4", *batch, *moves, *NO_LIMITS, *keep)
    largest = summary["logprob_mismatch_max"]
    assert largest > 0.01 if control else largest <= 1e-4
