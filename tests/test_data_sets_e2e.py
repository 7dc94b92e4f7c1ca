"""Every published set from its own file to a gradient: converted, trained on for two steps, validated and evaluated.

One run has the rows of all sets, so that it also shows what a mixed run is for: each row its own task, agent and metric,
files in proportion, figures per source.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import data_utils
from tests.data_samples import SAMPLES, write_vqav2
from vision_rl.data.convert.sets import SETS
from vision_rl.data.schema import read_rows, write_rows
from vision_rl.run.log import METRICS, ROLLOUTS, read_jsonl

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [pytest.mark.e2e, pytest.mark.long]


def run(*arguments: object, cwd: Path = ROOT) -> str:
    """A command of ours; its output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Set -> its converted file, made by the user's command from a file in the set's published layout."""
    folder = tmp_path_factory.mktemp("sets")
    found = {name: folder / "converted" / f"{name}.parquet" for name in SETS}
    for name, output in found.items():
        if name == "vqav2":
            paths = write_vqav2(folder / name, images=1, per_image=2)
            given: list[object] = [part for key, path in paths.items() for part in (f"--{key.replace('_', '-')}", path)]
        else:
            given = list(SAMPLES[name].write(folder / name))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["data_utils.py", "convert", name, "--output", str(output), *map(str, given)])
            with pytest.raises(SystemExit) as exit_info:
                data_utils.main()
        assert not exit_info.value.code, name
    return found


@pytest.fixture(scope="module")
def trained(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two steps over all rows of all sets; SLAKE's come twice as often as others'."""
    run_dir = tmp_path_factory.mktemp("run") / "run"
    counts = {name: len(read_rows(path)) for name, path in files.items()}
    # An even number of rows, so that two whole batches have each of them.
    twice = {"slake"} if sum(counts.values()) % 2 else {"slake", "custom"}
    weighted = [f"{path}:{counts[name] * (1 + (name in twice))}" for name, path in files.items()]
    batch = (sum(counts.values()) + len(twice)) // 2
    # The same rows in other files: one file for training and validation is refused.
    validation = [shutil.copy(path, path.with_suffix(".val.parquet")) for path in files.values()]
    run(
        *("train_agent.py", "--preset", "cpu", "--run-dir", run_dir, "--max-steps", 2),
        *("--data-path", *weighted, "--val-data-path", *validation),
        *(f"data.train_batch_size={batch}", f"actor_rollout_ref.actor.ppo_mini_batch_size={batch}"),
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={batch}",
        *("actor_rollout_ref.rollout.n=2", "data.max_prompt_length=512", "trainer.save_freq=-1"),
    )
    return run_dir


def test_every_set_trains_and_validates_by_its_own_metric(trained: Path, files: dict[str, Path]) -> None:
    rollouts = read_jsonl(trained / ROLLOUTS)[0]
    assert not [rollout["reason"] for rollout in rollouts if rollout["failure"]]
    by_source: dict[str, list[dict[str, Any]]] = {}
    for rollout in rollouts:
        if rollout["mode"] == "train":
            by_source.setdefault(rollout["source"], []).append(rollout)
    assert set(by_source) == set(SETS), "rows of every set were trained on"
    assert all("advantage" in rollout for found in by_source.values() for rollout in found)
    metrics = read_jsonl(trained / METRICS)[0]
    assert {line["step"] for line in metrics if "train/reward" in line} == {1, 2}
    last = metrics[-1]
    for name, path in files.items():
        rows = read_rows(path)
        assert {row["task"] for row in rows} == {rollout["task"] for rollout in by_source[name]}
        assert last[f"val/{name}/rollouts"] == len(rows)
        for metric in {row["metric"] for row in rows} - {"", "vqa"}:
            component = "point" if metric == "point_in_box" else metric
            earned = [rollout["reward"] for rollout in by_source[name]]  # a set's rows may have several metrics
            assert any(component in reward or "task" in reward for reward in earned), (name, metric, earned)
        assert f"val/{name}/{'iou' if SETS[name].task == 'grounding' else 'accuracy'}" in last
    assert [len(by_source[name]) for name in ("slake", "vqa-rad")] == [4, 2]  # two rollouts of each prompt


def test_the_run_is_summed_up_and_shown(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["task"], summary["metric"], summary["rollouts_failed"]) == ("vqa+grounding", "reward", 0)
    assert summary["val_before"] is not None and summary["logprob_mismatch_max"] <= 1e-3
    page = (trained / "report.html").read_text()
    assert "vqa+grounding" in page


def test_a_mixed_file_is_evaluated_source_by_source(files: dict[str, Path], tmp_path: Path) -> None:
    rows = [{**row, "id": f"{name}-{row['id']}"} for name, path in files.items() for row in read_rows(path)]
    write_rows(tmp_path / "all.parquet", rows)
    run("evaluate_agent.py", "--tiny", "--data", tmp_path / "all.parquet", "--output", tmp_path / "out")
    seen = set()
    for task in ("vqa", "grounding"):
        summary = json.loads((tmp_path / "out" / task / "summary.json").read_text())
        assert summary["failed"] == 0
        for source, figures in summary["by_source"].items():
            assert SETS[source].task == task
            wanted = {row["metric"] for row in rows if row["source"] == source} - {""}
            assert wanted <= {"point_in_box" if name == "point" else name for name in figures}
            seen.add(source)
    assert seen == set(SETS)
