"""--resume against what the run directory holds: what must be as it was, what has changed, and whether the run is done."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import yaml

from vision_rl.config.resolve import Resolved, render_resolved
from vision_rl.errors import UserError
from vision_rl.run.checkpoints import Checkpoints
from vision_rl.run.log import RunLog
from vision_rl.run.reader import RecordedRun

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
