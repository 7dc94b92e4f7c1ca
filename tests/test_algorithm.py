"""What the main process tells of an error that ended the training in a Ray actor."""

from __future__ import annotations

import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from tests.trainers import new_context
from vision_rl.config.resolve import resolve
from vision_rl.errors import UserError
from vision_rl.run.directory import STOP_FILE
from vision_rl.run.last_words import TRACEBACK, to_user_error
from vision_rl.tiny import checkpoint_dir
from vision_rl.training.algorithm import Launch, VisionVERL


def raised(error: Exception) -> RayError:
    """As Ray brings an actor's exception: with its whole traceback as text, in a class that is both."""
    try:
        raise error
    except Exception as caught:
        found: RayError = RayTaskError("run", traceback.format_exc(), caught).as_instanceof_cause()
        return found


@pytest.fixture
def algorithm(tmp_path: Path) -> VisionVERL:
    resolved = resolve("cpu", [], task="vqa", model=str(checkpoint_dir()))
    return VisionVERL(Launch(resolved, new_context(tmp_path), environment={}, cpu=True, watch=lambda: None))


def message_of(algorithm: VisionVERL, error: RayError) -> UserError:
    """As the algorithm tells of an error."""
    return to_user_error(error, algorithm.launch.context.run_dir / "logs", algorithm._how_to_go_on())


def test_an_error_that_the_user_can_mend_is_reported_as_it_is(algorithm: VisionVERL, tmp_path: Path) -> None:
    error = UserError("row 3 has no picture; add one")
    assert message_of(algorithm, raised(error)) is error
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_defect_is_one_sentence_and_its_traceback_is_kept(
    checkpoint: bool, algorithm: VisionVERL, tmp_path: Path
) -> None:
    if checkpoint:
        (tmp_path / "checkpoints" / "global_step_7").mkdir(parents=True)
    message = str(message_of(algorithm, raised(KeyError("rm_scores"))))
    assert "\n" not in message and len(message) < 500
    assert "KeyError: 'rm_scores'" in message and str(tmp_path / "logs" / TRACEBACK) in message
    assert ("--resume (from global_step_7)" in message) == checkpoint
    kept = (tmp_path / "logs" / TRACEBACK).read_text()
    assert "in raised" in kept and "KeyError: 'rm_scores'" in kept, "the lines of the code are in the file"


def test_a_request_that_is_longer_than_the_model_names_the_setting(algorithm: VisionVERL) -> None:
    """As `--variant tools` with the tiny model; the sentence is verl's own."""
    said = "max_model_len ({}) should be less than or equal to max_position_embeddings ({})"
    message = str(message_of(algorithm, raised(ValueError(said.format(6168, 4096)))))
    assert "6168 tokens" in message and "4096 positions" in message and "lower data.max_prompt_length" in message
    assert "defect" not in message
    [folder] = find_spec("verl").submodule_search_locations  # type: ignore[union-attr, misc]
    server = (Path(folder) / "workers" / "rollout" / "vllm_rollout" / "vllm_async_server.py").read_text()
    assert all(part in server for part in (") should be less than or equal to ", '"max_position_embeddings ('))


def test_a_full_disk_does_not_hide_the_error(
    algorithm: VisionVERL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: Any, **_kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert "ZeroDivisionError" in str(message_of(algorithm, raised(ZeroDivisionError("division by zero"))))


def test_a_killed_worker_is_reported_as_one_and_not_as_a_defect(algorithm: VisionVERL, tmp_path: Path) -> None:
    message = str(message_of(algorithm, ActorDiedError()))
    assert "died: killed, most often for want of main memory" in message and str(tmp_path / "logs") in message
    assert "there is no checkpoint yet" in message and "defect" not in message


def test_a_worker_that_a_signal_ended_with_the_run_does_not_blame_memory(algorithm: VisionVERL, tmp_path: Path) -> None:
    (tmp_path / STOP_FILE).write_text("")
    message = str(message_of(algorithm, ActorDiedError()))
    assert "was stopped (SIGTERM or Ctrl-C)" in message and "memory" not in message


def test_a_server_that_does_not_start_is_reported_as_that(algorithm: VisionVERL) -> None:
    error = raised(ValueError("no such dtype"))
    named = RayTaskError("run", f"await server.launch_server()\n{error}", ValueError("no such dtype"))
    message = str(message_of(algorithm, named))
    assert message.startswith("the model server did not start: ValueError: no such dtype") and "--doctor" in message
