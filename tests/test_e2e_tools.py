"""The tool-using tiny model on the real stack: turns merged, pictures seen, zooming learnt where it is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.test_e2e_training import metrics_of, run
from vision_rl.telemetry import DETAILS, ROLLOUTS, read_jsonl
from vision_rl.tiny.zoom import zoom_checkpoint_dir
from vision_rl.tiny.zoom_scenes import write_zoom_tasks
from vision_rl.tool_telemetry import FILES

pytestmark = [pytest.mark.e2e, pytest.mark.long]


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    data = write_zoom_tasks(tmp_path_factory.mktemp("zoom"))
    files = ["--data-path", str(data["train"]), "--val-data-path", str(data["val"])]
    return ["--task", "grounding", "--model", str(zoom_checkpoint_dir()), "--variant", "tiny_zoom", *files]


def two_turns(run_dir: Path) -> int:
    """How many training rollouts held two pictures."""
    rollouts = [r for r in read_jsonl(run_dir / ROLLOUTS)[0] if r["mode"] == "train"]
    return sum(len(r["image_refs"][-1]) == 2 for r in rollouts)


@pytest.mark.parametrize("level", ["transition", "trajectory"])
def test_both_levels_see_what_vllm_saw(level: str, arguments: list[str], tmp_path: Path) -> None:
    overrides = [f"agentlightning.trace_aggregator.level={level}", "trainer.val_before_train=false"]
    run(tmp_path / "run", *arguments, "--max-steps", "2", "trainer.test_freq=-1", *overrides)
    steps: list[dict[str, Any]] = metrics_of(tmp_path / "run")
    assert two_turns(tmp_path / "run") >= 10
    assert max(line["mismatch/logprob_max"] for line in steps) <= 1e-4
    turns = sum(line["train/turns"] * line["train/rollouts"] for line in steps)
    samples = sum(line["train/samples"] for line in steps)
    assert samples == pytest.approx(turns if level == "transition" else sum(line["train/rollouts"] for line in steps))
    assert all((tmp_path / "run" / DETAILS / f"{name}.jsonl").exists() for name in FILES[:3])


def test_it_learns_to_zoom_where_it_must_and_not_where_it_need_not(arguments: list[str], tmp_path: Path) -> None:
    run(tmp_path / "run", *arguments, "--max-steps", "30", "trainer.test_freq=30")
    lines = metrics_of(tmp_path / "run")
    first, last = lines[1], lines[-1]
    assert last["val/success_small"] >= 0.7 > 0.45 >= lines[0]["val/success_small"]
    assert last["val/success_large"] >= 0.9
    assert last["val/tools/use_rate_small"] >= 0.8 and last["val/tools/use_rate_large"] <= 0.2
    assert last["train/tools/use_rate_large"] <= first["train/tools/use_rate_large"]
