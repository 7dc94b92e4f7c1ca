"""A run's folder: made once, never overwritten by accident."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path
from typing import IO

from vision_rl.errors import UserError
from vision_rl.run.log import DETAILS, EVENTS, METRICS, ROLLOUTS, read_jsonl

CONFIG = "config.yaml"
SUMMARY = "summary.json"
STOP_FILE = "stop"
"""Its presence asks the trainer to end after the current step (Ctrl-C makes it)."""


LOCK = ".lock"
_kept: list[IO[str]] = []
WRITTEN = (
    *(
        LOCK,
        CONFIG,
        SUMMARY,
        STOP_FILE,
        METRICS,
        ROLLOUTS,
        EVENTS,
        DETAILS,
        "checkpoints",
        "logs",
        "pictures",
        "*.html",
    ),
    *("tensorboard", "wandb", "wandb_id", "verl_metrics_after_*.jsonl", ".*.tmp"),
)
"""Patterns of what a run, its backends and its reports leave in the directory: all that --overwrite may delete."""


def check_run_dir(path: Path, *, resume: bool, overwrite: bool) -> Path:
    """The absolute path, if `open_run_dir` may have it; changes nothing.

    A run that ended before its first step may be started again as it was. Raises `UserError` if the directory holds
    another run and neither `resume` nor `overwrite` was asked for, if there is none to resume, if files that no run wrote
    would go with `overwrite`, and if another process runs there.
    """
    path = path.absolute()
    if resume and overwrite:
        raise UserError("--resume goes on with the run that --overwrite would delete; give one of the two")
    if path.exists() and not path.is_dir():
        raise UserError(f"--run-dir {path} is a file; name a directory")
    if resume and not _holds_run(path):
        raise UserError(f"--resume: {path} holds no run; leave out --resume to start one there")
    if _holds_run(path) and not resume and not overwrite and not _failed_to_start(path):
        raise UserError(
            f"{path} holds a run; go on with --resume, start anew with --overwrite, or name another --run-dir"
        )
    if _holds_run(path) and overwrite:
        _check_nothing_foreign(path)
    if (path / LOCK).exists():
        with contextlib.suppress(OSError):  # `open_run_dir` tells of one that cannot be written
            _lock(path)
    return path


def open_run_dir(path: Path, *, resume: bool, overwrite: bool) -> Path:
    """Prepare the directory, without the run that may be deleted (`check_run_dir`); returns its absolute path.

    It is readable by its owner only, and so is whatever this process and its children write from now on: pictures,
    replies, checkpoints.

    Raises `UserError` for what `check_run_dir` refuses, and if the directory cannot be written.
    """
    path = check_run_dir(path, resume=resume, overwrite=overwrite)
    os.umask(0o077)
    try:
        if _holds_run(path) and not resume:
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        _lock(path)
    except OSError as error:
        raise UserError(
            f"--run-dir {path} cannot be written ({error.strerror}); name a directory that you may write to"
        ) from error
    return path


def _holds_run(path: Path) -> bool:
    return (path / CONFIG).exists() or (path / METRICS).exists()


def _failed_to_start(path: Path) -> bool:
    """Whether the directory is a run's, with nothing of anybody else's, and the run has done no step."""
    if not (path / LOCK).exists() or _foreign(path) or any(path.glob("checkpoints/global_step_*")):
        return False
    return not any(line.get("step", 1) for line in read_jsonl(path / METRICS)[0])


def _lock(path: Path) -> None:
    """Keep the directory for this process until it ends, however it does; `UserError` if another one has it.

    A record lock, which children do not inherit: runners that outlive a killed trainer for a moment do not hold it. A file
    system without locks goes without.
    """
    file = open(path / LOCK, "w")  # noqa: SIM115 (closing it would give the lock back)
    _kept.append(file)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise UserError(
            f"{path} belongs to a run that is still going on; wait for its end, stop it, or name another --run-dir"
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise


def _check_nothing_foreign(path: Path) -> None:
    """Raise `UserError` if there is more than a run in the directory: a project may have a config.yaml too."""
    foreign = _foreign(path)
    if foreign:
        raise UserError(
            f"--overwrite would delete {', '.join(foreign[:3])}{' and more' if len(foreign) > 3 else ''} in {path}, which no "
            "run wrote; move them away or name another --run-dir"
        )


def _foreign(path: Path) -> list[str]:
    """What is in a directory that no run wrote."""
    return sorted(entry.name for entry in path.iterdir() if not any(fnmatch(entry.name, name) for name in WRITTEN))
