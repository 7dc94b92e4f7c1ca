"""Decisions between steps: which validation is the best, when to stop, how to react to a collapse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from vision_rl.run.best import best_of, judged
from vision_rl.run.checkpoints import Checkpoints
from vision_rl.run.collapse import CollapseWatcher, episodes, restored_steps
from vision_rl.run.directory import STOP_FILE
from vision_rl.run.log import EVENTS, METRICS, RunLog, read_jsonl
from vision_rl.settings import AppSettings


class Supervisor:
    """Reads metrics, acts on checkpoints; knows nothing of models. `saves`: whether the run writes checkpoints at all."""

    def __init__(self, app: AppSettings, log: RunLog, checkpoints: Checkpoints, *, saves: bool) -> None:
        self.app = app
        self.log = log
        self.checkpoints = checkpoints
        self.saves = saves
        self.early_stop = ""
        self.watcher = CollapseWatcher(app.collapse)

    def stop_reason(self) -> str:
        """Why the run should end before its last step, or ""."""
        return "stopped by the user" if (self.log.run_dir / STOP_FILE).exists() else self.early_stop

    def judge(self, step: int, metrics: Mapping[str, float], save: Callable[[], None]) -> None:
        """Keep the best validation and its checkpoint; stop after `patience` validations without improvement."""
        rule = self.app.validation
        best = judged(self.checkpoints.best(), step, metrics, rule)
        if self.saves and self.app.checkpoints.keep_best and best["step"] == step > 0:
            save()  # before it is called the best: a run that is killed in between must not name what is not there
        self.checkpoints.set_best(best)
        if rule.patience and best["since"] >= rule.patience:
            self.early_stop = (
                f"{rule.metric} has not improved for {rule.patience} validations (best at step {best['step']})"
            )

    def watch(self, step: int, metrics: Mapping[str, float], restore: Callable[[Path], None]) -> None:
        """Tell alarms of the collapse watch; once one persists, act as `app.collapse.action` says.

        `restore` loads weights and optimizer of a checkpoint.
        """
        action = self.app.collapse.action
        for alarm in self.watcher.update(step, metrics):
            text = f"{alarm.name} since step {alarm.since}: {alarm.seen}. Usual cures: {'; '.join(alarm.cures)}"
            self.log.event("alarm", step=step, text=text, **dataclasses.asdict(alarm))
            if not alarm.persistent or action == "warn":
                continue
            best = self.checkpoints.best()
            if action == "restore_best" and best is not None and self.checkpoints.has(best["step"]):
                restore(self.checkpoints.path(best["step"]))
                self.watcher = CollapseWatcher(self.app.collapse)
                back = f"weights and optimizer are those of step {best['step']} again, the best so far"
                text = f"{alarm.name} at step {step}: {back}"
                self.log.event("restored", step=step, checkpoint=best["step"], text=text)
            else:
                self.early_stop = f"collapse watch: {text}"
            return

    def rewind(self, step: int) -> None:
        """Forget what came after `step` (-1: everything) in the files, the best validation and the collapse watch."""
        self.log.forget_after(step)
        self.log.event("resumed", step=max(step, 0))
        lines, events = (read_jsonl(self.log.run_dir / name)[0] for name in (METRICS, EVENTS))
        self.checkpoints.set_best(best_of(lines, self.app.validation))
        self.watcher, _ = episodes(self.app.collapse, lines, restored_steps(events))
