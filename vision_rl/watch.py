"""A live view of a run directory in the terminal: progress, metrics, alarms, the last rollouts.

    python -m vision_rl.watch RUN_DIR [--once]

Only reads files, so any number may look at a run, from another machine as well. Ends with the run or on Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vision_rl.errors import cli_errors
from vision_rl.recorded import RecordedRun, read_run
from vision_rl.report_charts import series
from vision_rl.telemetry import EVENTS, METRICS, ROLLOUTS, parsed, read_jsonl

REFRESH_SECONDS = 1.0
TAIL_BYTES = 200_000
"""Of rollouts.jsonl, which grows to gigabytes, only the end is read."""
ROLLOUTS_SHOWN = 8
_BARS = "▁▂▃▄▅▆▇█"
_CURVES = (("reward", "train/reward"), ("length", "train/response_length"), ("entropy", "actor/entropy"))
_FIGURES = (
    ("reward", "train/reward", "{:.3f}"),
    ("reply length", "train/response_length", "{:.1f} tokens"),
    ("entropy", "actor/entropy", "{:.3f} nats"),
    ("KL to reference", "train/kl", "{:.4f} nats"),
    ("groups without spread", "train/groups_equal", "{:.0%}"),
    ("replies that parse", "train/format/ok", "{:.0%}"),
    ("rollouts failed", "train/rollouts_failed", "{:.0f}"),
    ("gradient norm", "actor/grad_norm", "{:.2f}"),
    ("log-prob mismatch", "mismatch/logprob_max", "{:.1e} nats"),
    ("step", "timing_s/step", "{:.1f} s"),
    ("rollouts of it", "timing_s/generate", "{:.1f} s"),
    ("update of it", "timing_s/update_actor", "{:.1f} s"),
    ("throughput", "perf/throughput", "{:.0f} tokens/s"),
    ("GPU memory", "perf/max_memory_reserved_gb", "{:.1f} GB"),
    ("main memory", "perf/cpu_memory_used_gb", "{:.1f} GB"),
)


def sparkline(values: Sequence[float], width: int) -> str:
    """The values as bars of eight heights, at most `width` characters; neighbours share a bar by their mean."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [round(i * len(values) / count) for i in range(count + 1)]
    means = [statistics.fmean(values[start:end]) for start, end in pairwise(edges)]
    low, spread = min(means), max(means) - min(means)
    return "".join(_BARS[round((mean - low) / spread * (len(_BARS) - 1)) if spread else 0] for mean in means)


def last_rollouts(path: Path, count: int = ROLLOUTS_SHOWN) -> list[dict[str, Any]]:
    """The last lines of a run's rollouts.jsonl, the newest first."""
    file = path / ROLLOUTS
    size = file.stat().st_size if file.exists() else 0
    start = max(0, size - TAIL_BYTES)
    with contextlib.suppress(FileNotFoundError), open(file, "rb") as opened:
        opened.seek(start)
        lines = opened.read().split(b"\n")[1 if start else 0 : -1]
        return [parsed(line, file) for line in reversed(lines[-count:])]
    return []


def view(run: RecordedRun, width: int, now: float) -> RenderableType:
    """The whole picture of a run; `now` in Unix seconds."""
    parts = [_head(run, now), _bar(run, width), "", _figures(run, width), _curves(run, width)]
    watcher, _ = run.alarms()
    for alarm in watcher.active.values():
        style = "bold red" if alarm.persistent else "yellow"
        parts.append(Text(f"! {alarm.name} since step {alarm.since}: {alarm.seen}", style))
        parts.append(Text(f"  try: {alarm.cures[0]}", "dim"))
    for event in [event for event in run.events if event["kind"] in ("warning", "restored", "error")][-2:]:
        parts.append(Text(f"{event['kind']}: {event['text']}", "yellow"))
    parts += ["", _rollouts(run)]
    return Group(*parts)


def _head(run: RecordedRun, now: float) -> Text:
    name = run.path.absolute().name
    text = Text.assemble((f"{run.task} ", "bold"), (name, "bold cyan"), f"  {run.model}  ")
    if run.ended:
        return text.append(f"ended: {run.ended}", "green")
    written = [line["time"] for lines in (run.metrics, run.events) for line in lines[-1:]]
    if not written:
        return text.append("nothing is written yet", "yellow")
    silent = max(0.0, now - max(written))
    phase = _doing(run)
    return text.append(f"{phase}, last sign {silent:.0f} s ago", "yellow" if silent > _patience(run) else "green")


def _patience(run: RecordedRun) -> float:
    """Seconds without a sign that are usual: three steps, at least a minute."""
    seconds = series(run.metrics, "timing_s/step")[1]
    return max(60.0, 3 * statistics.median(seconds)) if seconds else 300.0


def _doing(run: RecordedRun) -> str:
    """What the last event says that the run is at."""
    for event in reversed(run.events):
        if event["kind"] == "collected":
            return f"{event['done']} of {event['total']} rollouts"
        if event["kind"] == "queued":
            return (
                f"validating on {event['total']} rows"
                if event["mode"] == "val"
                else f"{event['total']} rollouts queued"
            )
        if event["kind"] in ("phase", "warning", "alarm"):
            return str(event["text"]) if event["kind"] == "phase" else "training"
    return "starting"


def _bar(run: RecordedRun, width: int) -> RenderableType:
    steps = run.steps()
    done, total = (steps[-1]["step"] if steps else 0), run.total_steps
    if not total:
        return Text(f"{done} steps")
    table = Table.grid(padding=(0, 2))
    left = ""
    seconds = [line["timing_s/step"] for line in steps if line.get("timing_s/step") is not None]
    if seconds and done < total and not run.ended:
        minutes = statistics.median(seconds) * (total - done) / 60
        left = f"about {minutes:.0f} min left" if minutes < 120 else f"about {minutes / 60:.1f} h left"
    table.add_row(ProgressBar(total=total, completed=done, width=min(50, width // 2)), f"{done}/{total} steps", left)
    return table


def _figures(run: RecordedRun, width: int) -> Table:
    """Last values in columns, validation first."""
    cells = []
    validation = series(run.metrics, f"val/{run.metric}")[1]
    if validation:
        cells.append((f"validation {run.metric}", f"{validation[-1]:.3f} (first {validation[0]:.3f})"))
    last = run.steps()[-1] if run.steps() else {}
    known = [(label, last[name], form) for label, name, form in _FIGURES if last.get(name) is not None]
    # On a CPU verl reports a GPU of no memory.
    cells += [(label, form.format(value)) for label, value, form in known if value or label != "GPU memory"]
    table = Table.grid(padding=(0, 1))
    columns = max(1, min(3, width // 42))
    for start in range(0, len(cells), columns):
        row: list[RenderableType] = []
        for label, value in cells[start : start + columns]:
            row += [Text(label, "dim", no_wrap=True), Text(f"{value}   ", "bold", no_wrap=True)]
        table.add_row(*row)
    return table


def _curves(run: RecordedRun, width: int) -> Table:
    table = Table.grid(padding=(0, 1))
    for label, name in _CURVES:
        values = series(run.metrics, name)[1]
        if len(values) > 1:
            bars = sparkline(values, max(10, width - 40))
            table.add_row(Text(label, "dim"), Text(bars, "cyan"), f"{min(values):.3g} to {max(values):.3g}")
    return table


def _rollouts(run: RecordedRun) -> Table:
    table = Table(box=None, padding=(0, 1), expand=True, header_style="dim")
    for name, ratio in (("step", None), ("reward", None), ("question", 4), ("truth", 2), ("last reply", 4)):
        table.add_column(
            name, ratio=ratio, no_wrap=True, overflow="ellipsis", justify="right" if ratio is None else "left"
        )
    for line in last_rollouts(run.path):
        reward = Text(line["failure"], "red") if line["failure"] else Text(f"{line['reward']['reward']:.3f}")
        mode = f"{line['step']} {line['mode']}"
        table.add_row(
            mode, reward, _flat(line["question"]), _truth(line), _flat(line["replies"][-1] if line["replies"] else "")
        )
    return table


def _truth(line: Mapping[str, Any]) -> Text:
    answers = line["answers"]
    if answers:
        return _flat(max(dict.fromkeys(answers), key=answers.count))
    return _flat("; ".join(", ".join(f"{number:.2f}" for number in box) for box in line["boxes"]) or "nothing")


def _flat(text: str) -> Text:
    """Text of a model as one line without control characters: it must not steer the terminal."""
    return Text("".join(character if character.isprintable() else " " for character in text))


def refreshed(run: RecordedRun) -> RecordedRun:
    """The run with the lines that are there now; config.yaml does not change."""
    return dataclasses.replace(run, metrics=read_jsonl(run.path / METRICS)[0], events=read_jsonl(run.path / EVENTS)[0])


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m vision_rl.watch", description=__doc__.partition("\n")[0])
    parser.add_argument("run_dir", type=Path, help="--run-dir of train_agent.py")
    parser.add_argument("--once", action="store_true", help="print once and end, as it does where there is no terminal")
    args = parser.parse_args(argv)
    console = Console()
    with cli_errors():
        run = read_run(args.run_dir)
        if args.once or not console.is_terminal:
            console.print(view(run, console.width, time.time()))
            return
        with contextlib.suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False, screen=False) as live:
            while True:
                live.update(view(run, console.width, time.time()), refresh=True)
                if run.ended:
                    break
                time.sleep(REFRESH_SECONDS)
                run = refreshed(run)


if __name__ == "__main__":
    main(sys.argv[1:])
