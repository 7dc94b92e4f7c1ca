"""--resume with other settings, of a run that is done, and the command that a run names to go on."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import train_agent
from vision_rl.config.resolve import Resolved, render_resolved, resolve
from vision_rl.errors import UserError
from vision_rl.run.directory import CONFIG
from vision_rl.run.log import EVENTS, METRICS, RunLog, read_jsonl
from vision_rl.run.progress import RunProgress
from vision_rl.run.reader import read_run
from vision_rl.run.summary import render_summary
from vision_rl.training import finish, prepare
from vision_rl.training.finish import MAX_NOTES, changes, steps_done

LORA = ("actor_rollout_ref.model.lora_rank=8", "actor_rollout_ref.rollout.load_format=safetensors")
BEGUN = ("trainer.test_freq=2", "actor_rollout_ref.actor.optim.lr=1e-5")


def resolved(
    *overrides: str, task: str = "vqa", steps: int = 3, model: str = "Qwen/Qwen2.5-VL-3B-Instruct"
) -> Resolved:
    flags = {"trainer.total_training_steps": steps, "trainer.resume_mode": "auto"}
    return resolve("cpu", overrides, task=task, model=model, flags=flags)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with checkpoints up to step 3, as one that was killed leaves it."""
    (tmp_path / CONFIG).write_text(render_resolved(resolved(*BEGUN)))
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.metrics(step, {"train/reward": 0.5, "timing_s/step": 1.0, "mismatch/logprob_max": 1e-6})
        (tmp_path / "checkpoints" / f"global_step_{step}" / "actor").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".partial_4").mkdir()
    log.event("phase", text="training")
    return tmp_path


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (BEGUN, []),
        ((*BEGUN, "app.collapse.window=9"), ["app.collapse.window was 5, is 9 from here on"]),
        (("trainer.test_freq=3", BEGUN[1]), ["trainer.test_freq was 2, is 3 from here on"]),
    ],
)
def test_what_has_changed_since_the_run_began_is_reported(
    overrides: tuple[str, ...], words: list[str], run_dir: Path
) -> None:
    assert changes(read_run(run_dir), resolved(*overrides, steps=9)) == words


def test_a_long_list_of_changes_is_cut(run_dir: Path) -> None:
    run = read_run(run_dir)
    other = dataclasses.replace(run, config={key: "other" if "optim" in key else run.config[key] for key in run.config})
    assert re.fullmatch(r"\.\.\. and \d+ more settings", changes(other, resolved(*BEGUN))[MAX_NOTES])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "grounding"}, "holds a run of --task vqa, not grounding"),
        ({"model": "Qwen/Qwen2.5-VL-7B-Instruct"}, "actor_rollout_ref.model.path="),
        ({"overrides": LORA}, "lora_rank=0, this command has 8"),
        ({"overrides": ("trainer.nnodes=2",)}, "trainer.nnodes=1, this command has 2"),
    ],
)
def test_what_the_checkpoint_cannot_take_is_refused_at_once(
    arguments: dict[str, Any], words: str, run_dir: Path
) -> None:
    overrides = (*BEGUN, *arguments.pop("overrides", ()))
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        changes(read_run(run_dir), resolved(*overrides, **arguments))
    assert str(run_dir) in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_that_is_done_is_closed_at_once(run_dir: Path) -> None:
    console = Console(record=True, width=200)
    assert not finish.resumable(run_dir, resolved(*BEGUN), 3, console)
    assert "has done its 3 steps; --max-steps above 3 goes on" in console.export_text()
    assert read_run(run_dir).ended == "all steps done"
    assert [event["step"] for event in read_jsonl(run_dir / EVENTS)[0] if event["kind"] == "resumed"] == [3]
    assert len(read_jsonl(run_dir / METRICS)[0]) == 3
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir())[0] == "global_step_1"


@pytest.mark.parametrize("name", ["data.pt", "actor/model_world_size_1_rank_0.pt"])
def test_a_damaged_checkpoint_is_named_before_anything_starts(run_dir: Path, name: str) -> None:
    newest = run_dir / "checkpoints" / "global_step_3"
    for file in ("data.pt", "rng.pt", "actor/model_world_size_1_rank_0.pt"):
        torch.save({"a": torch.zeros(100)}, newest / file)
    assert steps_done(run_dir, resolved()) == 3
    whole = (newest / name).read_bytes()
    (newest / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=rf"{name} is damaged; delete .*global_step_3, to go on"):
        steps_done(run_dir, resolved())


def test_a_run_with_steps_left_goes_on(run_dir: Path) -> None:
    console = Console(record=True, width=200)
    assert finish.resumable(run_dir, resolved("trainer.test_freq=5"), 4, console)
    assert "note: trainer.test_freq was 2, is 5 from here on" in console.export_text()
    assert len(read_jsonl(run_dir / EVENTS)[0]) == 1


@pytest.mark.parametrize(
    ("command", "done", "again"),
    [
        ([], True, "python train_agent.py --resume --max-steps N"),
        (["--max-steps", "3", "--overwrite"], True, "python train_agent.py --resume --max-steps N"),
        (["--max-steps", "3", "--overwrite"], False, "python train_agent.py --max-steps 3 --resume"),
        (
            ["--max-steps=3", "--task", "vqa", "--resume"],
            True,
            "python train_agent.py --task vqa --resume --max-steps N",
        ),
        (
            ["--max-steps=3", "--task", "vqa", "--resume"],
            False,
            "python train_agent.py --max-steps=3 --task vqa --resume",
        ),
        (
            ["a.b=1", "--data-path", "my rows.parquet", "trainer.total_training_steps=5", "trainer.logger=[console]"],
            True,
            "python train_agent.py a.b=1 --data-path 'my rows.parquet' 'trainer.logger=[console]' --resume --max-steps N",
        ),
    ],
)
def test_the_command_to_go_on_has_the_settings_of_the_run(
    command: list[str], done: bool, again: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finish.go_on(command, done=done) == again
    monkeypatch.setattr("sys.argv", ["vision-rl train"])
    assert finish.go_on(command, done=done) == again.replace("python train_agent.py", "vision-rl train")


@pytest.mark.parametrize("known", [{}, {"startup_seconds": 4.0}, {"val_after": 0.5, "val_before": 0.25}])
def test_a_summary_is_rendered_whatever_a_run_came_to(known: dict[str, float]) -> None:
    """A resumed run that is stopped before its first rollout has steps of before, and no start-up."""
    summary = dict.fromkeys(("startup_seconds", "val_before", "val_after", "share_of_limit"))
    figures = {
        "steps": 3,
        "rollouts": 6,
        "rollouts_failed": 0,
        "step_seconds_median": 1.5,
        "logprob_mismatch_max": 1e-6,
    }
    text = render_summary(Path("run"), {**summary, **figures, "metric": "accuracy", **known}, "python ...")
    assert "\nreport: python -m vision_rl.report run\n" in text
    assert "median step 1.50 s" in text and text.endswith("go on: python ...")
    assert ("start-up" in text) is ("startup_seconds" in known) and ("validation" in text) is ("val_after" in known)


def test_the_data_files_are_in_the_kept_configuration() -> None:
    arguments = ["--preset", "cpu", "--data-path", "train.parquet", "--val-data-path", "/data/val.parquet"]
    args = train_agent.parser().parse_intermixed_args(arguments)
    kept = render_resolved(prepare.configure(args, True, media_root="/"))
    for key, path in (("train_files", Path("train.parquet").absolute()), ("val_files", "/data/val.parquet")):
        assert re.search(rf"^data\.{key}: {re.escape(json.dumps(str(path)))} +# flag$", kept, re.MULTILINE)


def test_config_says_what_the_steps_were_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume that is stopped before its first step leaves the settings, and the data, of the steps that there are."""
    log = RunLog(tmp_path)
    (tmp_path / CONFIG).write_text("data.train_files: old.parquet\n")
    for step in (1, 2):
        log.metrics(step, {"train/reward": 0.5, "timing_s/step": 1.0})
    monkeypatch.setattr(finish, "render_resolved", lambda resolved: f"data.train_files: {resolved}\n")
    progress = RunProgress(tmp_path, 4, Console(file=io.StringIO()))
    log.event("resumed", step=2)
    progress.update()
    assert not progress.stepped
    log.metrics(3, {"val/reward": 0.5})
    progress.update()
    assert not progress.stepped, "a validation is no step"
    log.metrics(3, {"train/reward": 0.5, "timing_s/step": 1.0})
    progress.update()
    assert progress.stepped
    finish.keep_config(tmp_path, "new.parquet")  # type: ignore[arg-type]
    assert (tmp_path / CONFIG).read_text() == "data.train_files: new.parquet\n"


@pytest.mark.parametrize(("variant", "near"), [("dpao", "dapo"), ("papoo", "papo")])
def test_swapped_letters_are_the_nearest_variant(variant: str, near: str) -> None:
    with pytest.raises(UserError, match=f"--variant {variant} does not exist; did you mean {near}?"):
        resolve("cpu", (), task="vqa", model="m", variants=[variant])
