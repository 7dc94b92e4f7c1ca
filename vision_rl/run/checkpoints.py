"""Checkpoints are whole or absent: each is written beside its place, then renamed into it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vision_rl.errors import UserError
from vision_rl.files import replacing
from vision_rl.settings import Checkpoints as CheckpointSettings

BEST = "best.json"
FULL_BYTES = 2**20
_STEP = re.compile(r"global_step_(\d+)")


class Checkpoints:
    """The `global_step_N` folders of a run, as verl names them."""

    def __init__(self, folder: Path, settings: CheckpointSettings) -> None:
        self.folder = folder
        self.settings = settings

    def clear_leftovers(self) -> None:
        """Remove what a killed run was writing or deleting; call it before the first checkpoint is written."""
        for leftover in [*self.folder.glob(".partial_*"), *self.folder.glob(".old_*")]:
            shutil.rmtree(leftover, ignore_errors=True)

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """A folder to write into, which becomes `global_step_{step}` when the block ends without an exception.

        A full disk ends in a `UserError`; the checkpoints before it stay as they are.
        """
        partial = self.folder / f".partial_{step}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
        except Exception as error:
            full = self._is_full(error)
            shutil.rmtree(partial, ignore_errors=True)
            if full:
                whole = self.latest()
                raise UserError(
                    f"the disk of {self.folder} is full: checkpoint {step} was not written, "
                    f"{f'the last whole one is {whole.name}' if whole else 'there is none before it'}; "
                    "free space and go on with --resume"
                ) from error
            raise
        self._delete(self.path(step))
        os.rename(partial, self.path(step))
        self._prune()

    def _is_full(self, error: Exception) -> bool:
        """Whether a write failed for want of space. torch.save does not say so: "PytorchStreamWriter failed writing file"."""
        said = any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))
        return said or shutil.disk_usage(self.folder).free < FULL_BYTES

    def latest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        whole = self._all()
        return whole[-1] if whole else None

    @staticmethod
    def step_of(folder: Path) -> int:
        """The step in a checkpoint folder's name."""
        match = _STEP.fullmatch(folder.name)
        if match is None:
            raise UserError(f"{folder} is not a checkpoint folder (global_step_N)")
        return int(match.group(1))

    def _all(self) -> list[Path]:
        return sorted(
            (path for path in self.folder.glob("global_step_*") if _STEP.fullmatch(path.name)), key=self.step_of
        )

    def _prune(self) -> None:
        best = self.best()
        for old in self._all()[: -self.settings.keep_last]:
            if best is None or self.step_of(old) != best["step"]:
                self._delete(old)

    def _delete(self, folder: Path) -> None:
        """Out of sight first: a run that is killed meanwhile leaves no half checkpoint under a whole one's name."""
        if folder.exists():
            hidden = self.folder / f".old_{folder.name}"
            shutil.rmtree(hidden, ignore_errors=True)
            os.rename(folder, hidden)
            shutil.rmtree(hidden, ignore_errors=True)

    def best(self) -> dict[str, Any] | None:
        """What `set_best` kept: step, metric and value of the best validation, and validations since."""
        return read_best(self.folder)

    def set_best(self, record: dict[str, Any] | None) -> None:
        """Remember the best validation (None: there is none); its checkpoint is spared by pruning."""
        if record is None:
            (self.folder / BEST).unlink(missing_ok=True)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with replacing(self.folder / BEST) as temporary:
                temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"{self.folder / BEST} cannot be written ({error.strerror}); free space and go on with --resume"
            ) from error
        self._prune()

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies or would lie."""
        return self.folder / f"global_step_{step}"

    def has(self, step: int) -> bool:
        """Whether a whole checkpoint of this step exists."""
        return self.path(step).is_dir()


def read_best(folder: Path) -> dict[str, Any] | None:
    """The record of the best validation in a folder of checkpoints, None if there is none; `UserError` if it is damaged."""
    path = folder / BEST
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); delete it, --resume makes it anew from metrics.jsonl") from error
    return record
