"""Checkpoints that are whole or absent: written beside their place, then renamed into it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vision_rl.data.files import replacing
from vision_rl.errors import UserError
from vision_rl.settings import Checkpoints as CheckpointSettings

BEST = "best.json"
_STEP = re.compile(r"global_step_(\d+)")


class Checkpoints:
    """The `global_step_N` folders of a run, as verl names them."""

    def __init__(self, folder: Path, settings: CheckpointSettings) -> None:
        self.folder = folder
        self.settings = settings

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
            shutil.rmtree(partial, ignore_errors=True)
            if "No space left on device" in str(error):
                raise UserError(
                    f"the disk of {self.folder} is full: checkpoint {step} was not written, "
                    f"the last whole one is {self.latest()}; free space and go on with --resume"
                ) from error
            raise
        target = self.path(step)
        shutil.rmtree(target, ignore_errors=True)
        os.rename(partial, target)
        self._prune()

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
                shutil.rmtree(old)

    def best(self) -> dict[str, Any] | None:
        """What `set_best` kept: step, metric and value of the best validation, and validations since."""
        path = self.folder / BEST
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def set_best(self, record: dict[str, Any]) -> None:
        """Remember the best validation; its checkpoint is spared by pruning."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.folder / BEST) as temporary:
            temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies or would lie."""
        return self.folder / f"global_step_{step}"

    def has(self, step: int) -> bool:
        """Whether a whole checkpoint of this step exists."""
        return self.path(step).is_dir()
