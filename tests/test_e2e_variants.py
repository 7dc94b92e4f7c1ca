"""Every variant takes two real steps: rollouts, log-probabilities, its own loss or estimator, update, weight sync."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.test_e2e_training import QUICK, metrics_of, run
from vision_rl.config.resolve import CONFIG_DIR

ELSEWHERE = {"one_step_off", "async", "tools", "tiny_zoom"}
"""Trained by test_e2e_asynchronous.py and test_e2e_tools.py."""
VARIANTS = sorted({path.stem for path in (CONFIG_DIR / "variants").glob("*.yaml")} - ELSEWHERE)
SETTINGS = {"gdpo": ["algorithm.gdpo_reward_keys=[accuracy]"]}

pytestmark = [pytest.mark.e2e, pytest.mark.long]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_steps(variant: str, tmp_path: Path) -> None:
    summary = run(tmp_path, "--task", "vqa", *QUICK, "--overwrite", "--variant", variant, *SETTINGS.get(variant, []))
    assert summary["steps"] == 2 and summary["rollouts_failed"] == 0
    steps = [line for line in metrics_of(tmp_path) if line["step"]]
    assert max(line["mismatch/logprob_max"] for line in steps) <= 1e-4
    norms = [line["actor/grad_norm"] for line in steps]
    assert all(math.isfinite(norm) for norm in norms) and max(norms) > 0, "the loss moved the weights"
