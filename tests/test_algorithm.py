"""What the main process tells of an error that ended the training in a Ray actor."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayError, RayTaskError

from vision_rl.errors import UserError
from vision_rl.settings import AppSettings
from vision_rl.training.algorithm import TRACEBACK, VisionVERL


def raised(error: Exception) -> RayError:
    """As Ray brings an actor's exception: with its whole traceback as text, in a class that is both."""
    try:
        raise error
    except Exception as caught:
        found: RayError = RayTaskError("run", traceback.format_exc(), caught).as_instanceof_cause()
        return found


@pytest.fixture
def algorithm(tmp_path: Path) -> VisionVERL:
    made = VisionVERL.__new__(VisionVERL)
    context: Any = SimpleNamespace(run_dir=tmp_path, app=AppSettings())
    made.launch = SimpleNamespace(context=context)  # type: ignore[assignment]
    return made


def test_an_error_that_the_user_can_mend_is_told_as_it_is(algorithm: VisionVERL, tmp_path: Path) -> None:
    error = UserError("row 3 has no picture; add one")
    assert algorithm._in_a_sentence(raised(error)) is error
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_defect_is_one_sentence_and_its_traceback_is_kept(
    checkpoint: bool, algorithm: VisionVERL, tmp_path: Path
) -> None:
    if checkpoint:
        (tmp_path / "checkpoints" / "global_step_7").mkdir(parents=True)
    told = str(algorithm._in_a_sentence(raised(KeyError("rm_scores"))))
    assert "\n" not in told and len(told) < 500
    assert "KeyError: 'rm_scores'" in told and str(tmp_path / "logs" / TRACEBACK) in told
    assert ("--resume (from global_step_7)" in told) == checkpoint
    kept = (tmp_path / "logs" / TRACEBACK).read_text()
    assert "in raised" in kept and "KeyError: 'rm_scores'" in kept, "the lines of the code are in the file"


def test_a_full_disk_does_not_hide_the_error(
    algorithm: VisionVERL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert "ZeroDivisionError" in str(algorithm._in_a_sentence(raised(ZeroDivisionError("division by zero"))))
