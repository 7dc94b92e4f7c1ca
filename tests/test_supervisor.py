"""What is decided between the steps, fed with metrics alone: the best checkpoint, the end, the way back after a collapse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vision_rl.run.checkpoints import Checkpoints
from vision_rl.run.collapse import FORMAT, REWARD
from vision_rl.run.directory import STOP_FILE
from vision_rl.run.log import EVENTS, RunLog, read_jsonl
from vision_rl.settings import AppSettings, CollapseWatch, Validation
from vision_rl.training.supervisor import Supervisor

RULE = Validation(metric="val/reward", patience=2)
QUICK = CollapseWatch(window=1, persist_steps=2)
BROKEN = {REWARD: 0.5, FORMAT: 0.1}


class Saved:
    """Writes checkpoints as the trainer does, and remembers what was there when."""

    def __init__(self, run_dir: Path, app: AppSettings, *, saves: bool = True) -> None:
        self.checkpoints = Checkpoints(run_dir / "checkpoints", app.checkpoints)
        self.supervisor = Supervisor(app, RunLog(run_dir), self.checkpoints, saves=saves)
        self.step = 0
        self.named_while_saving: list[int | None] = []
        self.restored: list[str] = []

    def save(self) -> None:
        best = self.checkpoints.best()
        self.named_while_saving.append(best["step"] if best else None)
        with self.checkpoints.writing(self.step):
            pass

    def validate(self, *values: float) -> None:
        for value in values:
            self.supervisor.judge(self.step, {"val/reward": value}, self.save)
            self.step += 1

    def train(self, metrics: dict[str, float], steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            self.supervisor.watch(self.step, metrics, lambda folder: self.restored.append(folder.name))


def test_the_best_is_saved_before_it_is_named(tmp_path: Path) -> None:
    run = Saved(tmp_path, AppSettings(validation=RULE))
    run.validate(0.1, 0.3, 0.2, 0.4)
    assert run.named_while_saving == [0, 1], "at step 1 the best was still step 0, at step 3 step 1"
    best = run.checkpoints.best()
    assert best is not None and (best["step"], best["since"]) == (3, 0) and run.checkpoints.has(3)


@pytest.mark.parametrize(
    ("values", "patience", "stops"),
    [((0.5, 0.4, 0.3), 2, True), ((0.5, 0.4, 0.6), 2, False), ((0.5, 0.5, 0.5), 2, True), ((0.5, 0.4, 0.3), 0, False)],
)
def test_patience(values: tuple[float, ...], patience: int, stops: bool, tmp_path: Path) -> None:
    run = Saved(tmp_path, AppSettings(validation=replace(RULE, patience=patience)), saves=False)
    run.validate(*values)
    assert bool(run.supervisor.stop_reason()) == stops
    assert not run.named_while_saving, "a run that saves nothing saves no best either"


@pytest.mark.parametrize(
    ("action", "has_best", "stops", "restored"),
    [
        ("warn", True, False, []),
        ("stop", True, True, []),
        ("restore_best", True, False, ["global_step_1"]),
        ("restore_best", False, True, []),
    ],
)
def test_a_collapse_that_persists_is_acted_upon(
    action: str, has_best: bool, stops: bool, restored: list[str], tmp_path: Path
) -> None:
    run = Saved(tmp_path, AppSettings(validation=RULE, collapse=replace(QUICK, action=action)))
    run.validate(0.1, 0.5) if has_best else run.validate(0.1)
    run.train(BROKEN, 1)
    assert not run.supervisor.stop_reason() and not run.restored, "the first step is only reported"
    run.train(BROKEN, 1)
    assert bool(run.supervisor.stop_reason()) == stops
    assert run.restored == restored
    kinds = [event["kind"] for event in read_jsonl(tmp_path / EVENTS)[0]]
    assert kinds.count("alarm") == 2 and kinds.count("restored") == len(restored)
    run.train({**BROKEN, FORMAT: 1.0}, 1)
    assert not run.supervisor.watcher.active


def test_the_user_may_stop_a_run(tmp_path: Path) -> None:
    run = Saved(tmp_path, AppSettings())
    assert run.supervisor.stop_reason() == ""
    (tmp_path / STOP_FILE).touch()
    assert run.supervisor.stop_reason() == "stopped by the user"


def test_a_rewound_run_forgets_the_best_that_came_later(tmp_path: Path) -> None:
    """Killed after step 3 with a checkpoint of step 2: the best of step 3 is trained for once more."""
    run = Saved(tmp_path, AppSettings(validation=RULE))
    log = RunLog(tmp_path)
    for step, value in ((0, 0.1), (2, 0.3), (3, 0.9)):
        log.metrics(step, {"val/reward": value})
    run.step = 3
    run.validate(0.9)
    run.supervisor.rewind(2)
    best = run.checkpoints.best()
    assert best is not None and (best["step"], best["value"]) == (2, 0.3)
    run.supervisor.rewind(-1)
    assert run.checkpoints.best() is None
