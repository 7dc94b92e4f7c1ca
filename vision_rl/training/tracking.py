"""verl's tracking (console, file, TensorBoard, Weights & Biases, ...), with its files in the run directory."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from verl.utils.tracking import Tracking

from vision_rl.errors import UserError

TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id"
WANDB_BACKENDS = frozenset({"wandb", "vemlp_wandb"})


def places(run_dir: Path, step: int, backends: Collection[str]) -> dict[str, str]:
    """The environment variables by which the backends find their places; `step` is the one that the run goes on from.

    verl would write below the working directory, and its file logger would empty the file of a run that is resumed.
    """
    return {
        "TENSORBOARD_DIR": str(run_dir / TENSORBOARD),
        "VERL_FILE_LOGGER_PATH": str(run_dir / f"verl_metrics_after_{step}.jsonl"),
        **(_wandb_places(run_dir) if WANDB_BACKENDS.intersection(backends) else {}),
    }


def _wandb_places(run_dir: Path) -> dict[str, str]:
    """Those of Weights & Biases; the id is kept in the run directory, so that a resumed run goes on with the same one."""
    kept = run_dir / WANDB_ID
    if not kept.exists():
        kept.write_text(uuid.uuid4().hex[:12] + "\n", encoding="utf-8")
    return {
        "WANDB_DIR": str(run_dir),
        "WANDB_DATA_DIR": str(run_dir / "wandb"),  # else what waits to be uploaded lies in the home directory
        "WANDB_RUN_ID": kept.read_text(encoding="utf-8").strip(),
        "WANDB_RESUME": "allow",
        "WANDB_SILENT": "true",
    }


@contextmanager
def tracking(trainer: Any, tree: dict[str, Any], run_dir: Path, step: int) -> Iterator[Tracking]:
    """The backends of `trainer.logger`, closed at the end; `tree` is the whole configuration. The user's environment wins.

    verl leaves closing to `Tracking.__del__`, which a Ray actor never comes to: TensorBoard would lack the last two minutes.
    Raises `UserError` where a backend does not start: no network, no key.
    """
    for name, value in places(run_dir, step, trainer.logger).items():
        os.environ.setdefault(name, value)
    backends = _start(trainer, tree)
    try:
        yield backends
    finally:
        for backend in backends.logger.values():
            with contextlib.suppress(OSError):  # a full disk must not hide why the run ended
                getattr(backend, "finish", lambda: None)()
        backends.logger.clear()


def _start(trainer: Any, tree: dict[str, Any]) -> Tracking:
    try:
        return Tracking(trainer.project_name, trainer.experiment_name, list(trainer.logger), tree)
    except Exception as error:  # whatever a backend raises: each has its own classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"trainer.logger={list(trainer.logger)} does not start: {reason}; without a network WANDB_MODE=offline keeps "
            "Weights & Biases' files in the run directory (`wandb sync` sends them later), or take the backend out"
        ) from error
