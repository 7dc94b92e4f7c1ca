"""verl's tracking backends: where they write, that a resumed run goes on, and what is said where one does not start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from vision_rl.errors import UserError

TREE = {"trainer": {"wandb_proxy": None}}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """`start_tracking` sets variables for its process."""
    from vision_rl.training.tracking import places

    for name in places(tmp_path, 0, ["wandb"]):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that it is taken back afterwards
        monkeypatch.delenv(name)
    (tmp_path / "wandb_id").unlink()
    yield


def settings(*backends: str) -> SimpleNamespace:
    return SimpleNamespace(project_name="vision_rl", experiment_name="run", logger=list(backends))


def test_a_resumed_run_adds_to_its_files(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from vision_rl.training.tracking import tracking

    with pytest.MonkeyPatch.context() as patch:
        for life, steps in ((0, (1, 2)), (2, (3,))):
            patch.delenv("VERL_FILE_LOGGER_PATH", raising=False)
            with tracking(settings("file", "tensorboard"), TREE, tmp_path, life) as backends:
                for step in steps:
                    backends.log({"train/reward": step / 10}, step=step)
    lines = [json.loads(line) for path in sorted(tmp_path.glob("*.jsonl")) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    written = EventAccumulator(str(tmp_path / "tensorboard"))
    written.Reload()
    assert [scalar.step for scalar in written.Scalars("train/reward")] == [1, 2, 3]


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path: Path) -> None:
    from vision_rl.training.tracking import places

    first, second = (places(tmp_path, step, ["console", "wandb"]) for step in (0, 30))
    assert first["WANDB_RUN_ID"] == second["WANDB_RUN_ID"] and second["WANDB_RESUME"] == "allow"
    assert first["VERL_FILE_LOGGER_PATH"] != second["VERL_FILE_LOGGER_PATH"]


@pytest.mark.parametrize(
    ("backends", "kept"),
    [((), False), (("console",), False), (("file", "tensorboard"), False), (("console", "wandb"), True)],
)
def test_only_weights_and_biases_leaves_its_id(tmp_path: Path, backends: tuple[str, ...], kept: bool) -> None:
    from vision_rl.training.tracking import places

    found = places(tmp_path, 0, backends)
    assert (tmp_path / "wandb_id").exists() is kept
    assert ("WANDB_RUN_ID" in found) is kept and "TENSORBOARD_DIR" in found


def test_what_the_user_has_set_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vision_rl.training.tracking import tracking

    monkeypatch.setenv("TENSORBOARD_DIR", str(tmp_path / "mine"))
    with tracking(settings("tensorboard"), TREE, tmp_path, 0):
        pass
    assert list((tmp_path / "mine").iterdir()) and not (tmp_path / "tensorboard").exists()


@pytest.mark.slow
def test_a_backend_that_does_not_start_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    from vision_rl.training.tracking import tracking

    def refused(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured. Use `wandb login` to log in.\nMore lines")

    monkeypatch.setattr(wandb, "init", refused)
    with (
        pytest.raises(UserError, match=r"does not start: No API key configured.*WANDB_MODE=offline") as caught,
        tracking(settings("console", "wandb"), TREE, tmp_path, 0),
    ):
        raise AssertionError("it started")
    assert "\n" not in str(caught.value)
