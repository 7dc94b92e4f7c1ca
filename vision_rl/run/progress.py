"""What an operator sees of a run: the phases of the start, then a bar with reward, validation and step time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from vision_rl.run.log import EVENTS, METRICS, read_jsonl


class RunProgress:
    """Follows the run directory's files; `update` reads what is new. Use as a context manager.

    published: lines to print once the proxy listens, before which they would be of no use.
    """

    def __init__(self, run_dir: Path, total_steps: int, console: Console, published: Sequence[str] = ()) -> None:
        self.console = console
        self.run_dir = run_dir
        self.started = time.time()
        self._published = list(published)
        self._offsets = {name: read_jsonl(run_dir / name)[1] for name in (EVENTS, METRICS)}
        self._shown = -1  # a resumed run writes its metrics anew; those up to this step were there before
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("training", total=total_steps, status="starting")
        self._validation = ""
        self.stepped = False
        """Whether the last `update` has seen a training step that this process made."""

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def update(self) -> None:
        """Show what the run has written since the last call."""
        self.stepped = False
        for event in self._new(EVENTS):
            self._show_event(event)
        for metrics in self._new(METRICS):
            self._show_metrics(metrics)

    def _new(self, name: str) -> list[dict[str, Any]]:
        lines, self._offsets[name] = read_jsonl(self.run_dir / name, offset=self._offsets[name])
        return lines

    def _show_event(self, event: dict[str, Any]) -> None:
        kind, seconds = event["kind"], event["time"] - self.started
        if kind == "phase":
            self._say(f"{seconds:6.1f} s  {event['text']}", "dim")
        elif kind == "proxy":
            self._say(f"{seconds:6.1f} s  LLM proxy at {event['address']}", "dim")
            while self._published:
                self._say(self._published.pop(0))
        elif kind in ("alarm", "warning", "restored"):
            self._say(f"{kind}: {event['text']}", "yellow")
        elif kind == "resumed":
            self._say(f"{seconds:6.1f} s  resumed after step {event['step']}", "dim")
            self._bar.update(self._task, completed=event["step"])
            self._offsets[METRICS], self._shown = 0, event["step"] or -1
        elif kind == "finished" and event["reason"] != "all steps done":
            self._say(f"ended after step {event['step']}: {event['reason']}")
        elif kind == "queued" and event["mode"] == "val":
            self._bar.update(self._task, status=f"validating on {event['total']} rows {self._validation}")

    def _say(self, text: str, style: str = "") -> None:
        """One line as it is: no markup in what settings or errors hold in brackets, no break where output is a file."""
        self._bar.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    def _show_metrics(self, metrics: dict[str, Any]) -> None:
        if metrics["step"] <= self._shown:
            return
        if "val/reward" in metrics:
            self._validation = f"val {metrics['val/reward']:.3f}"
            self._say(f"  step {metrics['step']:4d}  validation reward {metrics['val/reward']:.3f}")
        if "train/reward" in metrics:
            status = f"reward {metrics['train/reward']:.3f} {self._validation} {metrics['timing_s/step']:.1f} s/step"
            self._bar.update(self._task, completed=metrics["step"], status=status)
            self.stepped = True
