"""The end of a run: its summary, its report, the command that resumes it, and what --resume finds."""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from vision_rl.config.resolve import Resolved, render_resolved
from vision_rl.errors import UserError, typed
from vision_rl.files import write_text
from vision_rl.run.checkpoints import Checkpoints
from vision_rl.run.directory import CONFIG
from vision_rl.run.log import RunLog
from vision_rl.run.reader import RecordedRun, read_run

FIXED = (
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.lora_rank",
    "actor_rollout_ref.model.target_modules",
    "actor_rollout_ref.actor.strategy",
    "trainer.n_gpus_per_node",
    "trainer.nnodes",
)
"""Settings by which the tensors and files of a checkpoint go: verl loads it with these or not at all."""
OWN = ("trainer.total_training_steps", "trainer.experiment_name", "trainer.default_local_dir", "trainer.resume_mode")
"""Settings that a resumed run has of its own, by its flags and its place."""
MAX_NOTES = 12


def changes(run: RecordedRun, resolved: Resolved) -> list[str]:
    """Lines that say which settings differ from the recorded ones, for the operator to read.

    Raises `UserError` for another task and for a change that the checkpoint cannot take.
    """
    if run.task != resolved.task:
        raise UserError(f"--resume: {run.path} holds a run of --task {run.task}, not {resolved.task}")
    now = yaml.safe_load(render_resolved(resolved))  # as config.yaml holds them, so that both read alike
    found = [key for key in now if key in run.config and key not in OWN and now[key] != run.config[key]]
    for key in found:
        if key in FIXED:
            raise UserError(
                f"--resume: {run.path} was begun with {key}={json.dumps(run.config[key])}, this command has "
                f"{json.dumps(now[key])}, and its checkpoints do not fit that; give the old value, or another --run-dir"
            )
    lines = [f"{key} was {json.dumps(run.config[key])}, is {json.dumps(now[key])} from here on" for key in found]
    return lines[:MAX_NOTES] + ([f"... and {len(lines) - MAX_NOTES} more settings"] if len(lines) > MAX_NOTES else [])


def steps_done(run_dir: Path, resolved: Resolved) -> int:
    """The step of the last whole checkpoint, from which --resume goes on; 0 if there is none.

    Raises `UserError` for a file in it that is cut off, as by a machine that lost its power: torch writes zip archives.
    """
    newest = Checkpoints(run_dir / "checkpoints", resolved.app.checkpoints).latest()
    if newest is None:
        return 0
    for file in sorted(newest.rglob("*.pt")):
        if not zipfile.is_zipfile(file):
            raise UserError(f"--resume: {file} is damaged; delete {newest}, to go on from the checkpoint before it")
    return Checkpoints.step_of(newest)


def close(run_dir: Path, resolved: Resolved, step: int) -> None:
    """Leave a run that has done all its steps as its own end would have, should it have been killed just before."""
    Checkpoints(run_dir / "checkpoints", resolved.app.checkpoints).clear_leftovers()
    log = RunLog(run_dir)
    log.forget_after(step)
    log.event("resumed", step=step)
    log.event("finished", step=step, reason="all steps done")


def keep_config(run_dir: Path, resolved: Resolved) -> None:
    """Let config.yaml say what the run's steps are made with, once there is one."""
    text = render_resolved(resolved)
    if (run_dir / CONFIG).read_text(encoding="utf-8") != text:
        write_text(run_dir / CONFIG, text)


def resumable(run_dir: Path, resolved: Resolved, total: int, console: Any) -> bool:
    """Tell what has changed since the run began; False, and the run is closed, if it has no step left to do."""
    notes = changes(read_run(run_dir), resolved) if (run_dir / CONFIG).exists() else ()
    done = steps_done(run_dir, resolved)
    if done >= total:
        close(run_dir, resolved, done)
        console.print(
            f"{run_dir} has done its {done} steps; --max-steps above {done} goes on", soft_wrap=True, markup=False
        )
        return False
    for note in notes:
        console.print(f"note: {note}", style="dim", highlight=False, soft_wrap=True, markup=False)
    return True


def keep_record(run_dir: Path, summary: dict[str, Any], again: str, console: Any) -> None:
    """Write summary and report and print the closing lines, however the run ended; `again`: the command that resumes it.

    A failure of the disk is reported, and must not hide why the run ended.
    """
    from vision_rl.report import write_report
    from vision_rl.run.summary import render_summary, write_summary

    try:
        write_summary(run_dir, summary)
        write_report(run_dir)
    except OSError as error:
        console.print(f"summary and report were not written: {error.strerror}")
    console.print(render_summary(run_dir, summary, again), highlight=False, soft_wrap=True, markup=False)


def go_on(command: Sequence[str], *, done: bool) -> str:
    """The command that resumes the run that `command` (the arguments of this one) has started; done: all its steps are, so
    that it needs a new number of them."""
    kept, skip = [], False
    for argument in command:
        steps = done and argument.startswith(("--max-steps=", "trainer.total_training_steps="))
        if not (skip or steps or argument in ("--resume", "--overwrite") or (done and argument == "--max-steps")):
            kept.append(argument)
        skip = done and argument == "--max-steps"  # its value is the next one
    return f"{typed('train')} {shlex.join([*kept, '--resume'])}" + " --max-steps N" * done
