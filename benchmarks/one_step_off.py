"""Would it pay to sample the next step's rollouts while the current one is trained on? An upper bound, from a real run.

    python benchmarks/one_step_off.py RUN_DIR [--steps 12]

Trains the tiny model and looks four times a second at the processor time of all its processes. A step is then cut into what
needs the model server (sampling) and what needs the trainer (log-probabilities and update). Done side by side, both together
take at least as long as the longer of them, and at least as long as the machine needs for their work on all of its cores.
Nothing is assumed to be lost by doing so, neither time to a second copy of the weights nor steps to stale rollouts.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from vision_rl.run.log import METRICS, read_jsonl  # noqa: E402

SAMPLING, TRAINING = ("weight_sync", "generate", "batch", "sleep"), ("old_log_prob", "adv", "update_actor")
LOOK_SECONDS = 0.25
FAMILY_SECONDS = 5.0
WARM_UP_STEPS = 2


def work_done(stop: threading.Event) -> list[tuple[float, float]]:
    """(time, core seconds that this process's descendants have used until then), until told to stop."""
    looks: list[tuple[float, float]] = []
    family: list[psutil.Process] = []
    seconds: dict[int, float] = {}
    looked = 0.0
    while not stop.wait(LOOK_SECONDS):
        if time.monotonic() > looked + FAMILY_SECONDS:
            looked, family = time.monotonic(), psutil.Process().children(recursive=True)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended; what it used stays counted
                seconds[process.pid] = sum(process.cpu_times()[:2])
        looks.append((time.time(), sum(seconds.values())))
    return looks


def used(looks: list[tuple[float, float]], start: float, end: float) -> float:
    """Core seconds between two moments, which may lie between two looks."""
    times, work = zip(*looks, strict=True)
    first, last = np.interp([start, end], times, work)
    return float(last - first)


def phases(line: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """(start, end) of sampling and training of a step without validation; its line is written at its end."""
    seconds = {
        name: sum(line.get(f"timing_s/{part}", 0.0) for part in parts)
        for name, parts in (("sampling", SAMPLING), ("training", TRAINING))
    }
    end = line["time"]
    middle = end - seconds["training"]
    return {"sampling": (middle - seconds["sampling"], middle), "training": (middle, end)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    command = [sys.executable, "train_agent.py", "--run-dir", str(args.run_dir.absolute()), "--overwrite"]
    command += ["--max-steps", str(args.steps), "trainer.val_before_train=false", "trainer.test_freq=-1"]
    looks: list[tuple[float, float]] = []
    stop = threading.Event()
    watcher = threading.Thread(target=lambda: looks.extend(work_done(stop)))
    watcher.start()
    try:
        subprocess.run([*command, "trainer.save_freq=-1"], cwd=ROOT, check=True, stdout=sys.stderr)
    finally:
        stop.set()
        watcher.join()
    lines = read_jsonl(args.run_dir / METRICS)[0][WARM_UP_STEPS:]
    table = Table("phase", "seconds a step", "core seconds a step", "busy cores")
    seconds, work = {}, {}
    for name in ("sampling", "training"):
        spans = [phases(line)[name] for line in lines]
        seconds[name] = statistics.median(end - start for start, end in spans)
        work[name] = statistics.median(used(looks, start, end) for start, end in spans)
        figures = [seconds[name], work[name], work[name] / seconds[name]]
        table.add_row(name, *(f"{figure:.2f}" for figure in figures))
    cores = psutil.cpu_count() or 1
    now = sum(seconds.values())
    least = max(*seconds.values(), sum(work.values()) / cores)
    console = Console()
    console.print(table)
    console.print(
        f"one after the other {now:.2f} s; side by side at least {least:.2f} s on {cores} cores: "
        f"{now / least:.2f} times as fast at most"
    )


if __name__ == "__main__":
    main()
