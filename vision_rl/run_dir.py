"""The directory of one run: made once, never overwritten by accident."""

from __future__ import annotations

import shutil
from pathlib import Path

from vision_rl.errors import UserError
from vision_rl.telemetry import METRICS

CONFIG = "config.yaml"
SUMMARY = "summary.json"
STOP_FILE = "stop"
"""Its presence asks the trainer to end after the current step (Ctrl-C makes it)."""


def open_run_dir(path: Path, *, resume: bool, overwrite: bool) -> Path:
    """Prepare the directory; raises `UserError` if it holds a run and neither `resume` nor `overwrite` was asked for."""
    path = path.absolute()
    holds_run = (path / CONFIG).exists() or (path / METRICS).exists()
    if resume and not holds_run:
        raise UserError(f"--resume: {path} holds no run; leave out --resume to start one there")
    if holds_run and not resume:
        if not overwrite:
            raise UserError(
                f"{path} holds a run; go on with --resume, start anew with --overwrite, or name another --run-dir"
            )
        shutil.rmtree(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"--run-dir {path} is a file; name a directory")
    path.mkdir(parents=True, exist_ok=True)
    return path
