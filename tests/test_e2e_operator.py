"""What an operator relies on, on the real stack: a collapse that is seen and undone, an end in time, tracking, export."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_e2e_training import command, metrics_of, run
from vision_rl.report import write_report
from vision_rl.run.log import EVENTS, ROLLOUTS, read_jsonl

ROOT = Path(__file__).resolve().parents[1]
OPTIM = "actor_rollout_ref.actor.optim"
# A warm-up without end: the rate passes what learns (2e-4 at step 2) on its way to what destroys (4e-3 at step 20).
COLLAPSE = [
    f"{OPTIM}.lr=2e-2", f"{OPTIM}.lr_warmup_steps=100", "app.collapse.window=3", "app.collapse.reward_drop=0.4",
    "app.validation.samples=32", "trainer.test_freq=2", "trainer.save_freq=2", "app.checkpoints.keep_last=1",
]  # fmt: skip
LORA = [
    "actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.model.lora_alpha=16",
    "actor_rollout_ref.model.target_modules=all-linear", "actor_rollout_ref.model.exclude_modules='.*visual.*'",
    "actor_rollout_ref.rollout.load_format=safetensors", f"{OPTIM}.lr=3e-3",
]  # fmt: skip

pytestmark = [pytest.mark.e2e, pytest.mark.long]


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_jsonl(run_dir / EVENTS)[0] if event["kind"] == kind]


def best(run_dir: Path) -> dict[str, Any]:
    return dict(json.loads((run_dir / "checkpoints" / "best.json").read_text()))


def checkpoints(run_dir: Path) -> set[int]:
    return {int(path.name.rsplit("_", 1)[1]) for path in (run_dir / "checkpoints").glob("global_step_*")}


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("collapse") / "run"
    run(run_dir, "--task", "vqa", *COLLAPSE, "--max-steps", "36", "app.collapse.action=restore_best")
    return run_dir


def test_a_collapse_is_reported_and_undone(restored: Path) -> None:
    """The reward rises, falls to nothing, raises an alarm, and is back at once after the return."""
    rewards = {line["step"]: line["train/reward"] for line in metrics_of(restored) if "train/reward" in line}
    print([round(value, 2) for value in rewards.values()], best(restored))
    [alarm, *_] = [event for event in events(restored, "alarm") if event["persistent"]]
    [undone, *_] = events(restored, "restored")
    at, source = undone["step"], undone["checkpoint"]
    assert alarm["step"] == at and alarm["cures"]
    assert 0 < source < alarm["since"] <= at
    collapsed = min(rewards[step] for step in range(alarm["since"], at + 1))
    peak = sum(rewards[step] for step in range(source - 2, source + 1)) / 3
    assert collapsed < 0.6 * peak
    assert rewards[at + 1] > 0.8 * peak
    rates = {line["step"]: line["actor/lr"] for line in metrics_of(restored) if "actor/lr" in line}
    assert rates[at + 1] < rates[at]  # the optimizer's schedule went back too
    write_report(restored)
    assert "again, the best so far" in (restored / "report.html").read_text()


def test_the_last_and_the_best_checkpoint_stay(restored: Path) -> None:
    validated = {line["step"]: line["val/reward"] for line in metrics_of(restored) if "val/reward" in line}
    kept = best(restored)
    assert kept["value"] == max(validated.values()) == validated[kept["step"]]
    assert checkpoints(restored) == {36, kept["step"]}


def check_tracking(run_dir: Path) -> None:
    """verl's tracking has every step, and its files are in the run directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(run_dir / "tensorboard"))
    written.Reload()
    expected = [(line["step"], line["train/reward"]) for line in metrics_of(run_dir) if "train/reward" in line]
    shown = [(scalar.step, scalar.value) for scalar in written.Scalars("train/reward")]
    assert shown == [(step, pytest.approx(value, abs=1e-6)) for step, value in expected]
    lines = [json.loads(line) for line in (run_dir / "verl_metrics_after_0.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train/reward" in line["data"]] == [step for step, _ in expected]


def served_answers(model: Path, folder: Path) -> dict[str, str]:
    """Greedy answers of an exported folder on the validation rows, by `evaluate_agent.py` and vLLM."""
    rows = ROOT / "data" / "synthetic" / "vqa" / "vqa" / "val.parquet"
    arguments = ["--checkpoint", str(model), "--data", str(rows), "--output", str(folder)]
    done = subprocess.run(
        [sys.executable, "evaluate_agent.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return {line["id"]: line["reply"] for line in read_jsonl(folder / "rows.jsonl")[0]}


def validated_answers(run_dir: Path, step: int) -> dict[str, str]:
    lines = read_jsonl(run_dir / ROLLOUTS)[0]
    return {line["id"]: line["replies"][-1] for line in lines if line["mode"] == "val" and line["step"] == step}


def exported(run_dir: Path, output: Path, *arguments: str) -> Path:
    command = [sys.executable, "-m", "vision_rl.export", str(run_dir), "-o", str(output), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


def test_the_exported_best_answers_as_in_its_validation(restored: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    step = best(restored)["step"]
    out = exported(restored, tmp_path / "model")
    assert f"after step {step} of 36" in (out / "README.md").read_text()
    AutoModelForImageTextToText.from_pretrained(out, dtype="auto")
    expected, served = validated_answers(restored, step), served_answers(out, tmp_path / "answers")
    assert len(expected) == 32 and served.items() >= expected.items()
    first = validated_answers(restored, 0)
    assert sum(first[name] != expected[name] for name in expected) >= 5  # it is not the model it began with


def test_an_exported_adapter_run_answers_as_in_its_validation(tmp_path: Path) -> None:
    """LoRA both ways: merged weights served by vLLM, the adapter by peft; and Weights & Biases without a network."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    from vision_rl.tiny import checkpoint_dir

    run_dir = tmp_path / "run"
    options = ["--max-steps", "4", "trainer.test_freq=4", "app.validation.samples=32", "trainer.logger=[console,wandb]"]
    run(run_dir, "--task", "vqa", *LORA, *options, WANDB_MODE="offline")
    [offline] = (run_dir / "wandb").glob("offline-run-*")
    assert list(offline.glob("run-*.wandb"))
    out = exported(run_dir, tmp_path / "model", "--step", "last")
    expected, served = validated_answers(run_dir, 4), served_answers(out, tmp_path / "answers")
    assert served.items() >= expected.items()
    first = validated_answers(run_dir, 0)
    assert sum(first[name] != expected[name] for name in expected) >= 1
    tokens = torch.tensor([[5, 9, 33, 70, 12]])
    with torch.no_grad():
        merged = AutoModelForImageTextToText.from_pretrained(out, dtype="auto")(tokens).logits
        base = AutoModelForImageTextToText.from_pretrained(checkpoint_dir(), dtype=torch.float32)
        plain = base(tokens).logits
        adapted = PeftModel.from_pretrained(base, str(out / "adapter"))(input_ids=tokens).logits
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-4)
    assert (adapted - plain).abs().max() > 1e-3


def test_a_run_without_progress_ends_in_time(tmp_path: Path) -> None:
    """Patience: with a learning rate of next to nothing every validation is the first one again."""
    run_dir = tmp_path / "run"
    options = [f"{OPTIM}.lr=1e-12", "trainer.test_freq=1", "app.validation.samples=16", "app.validation.patience=2"]
    options += ["--max-steps", "20", "trainer.logger=[console,file,tensorboard]"]
    summary = run(run_dir, "--task", "vqa", *options)
    assert summary["steps"] == 2
    [ended] = events(run_dir, "finished")
    assert ended["reason"] == "val/reward has not improved for 2 validations (best at step 0)"
    assert checkpoints(run_dir) == {2}
    check_tracking(run_dir)


def test_a_collapse_ends_the_run_if_asked(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    finished = subprocess.run(
        command(run_dir, "--task", "vqa", "--max-steps", "36", *COLLAPSE, "app.collapse.action=stop"),
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    [ended] = events(run_dir, "finished")
    assert ended["reason"].startswith("collapse watch: ") and ended["step"] < 36
    assert "collapse watch: " in finished.stdout
    assert best(run_dir)["step"] in checkpoints(run_dir)
