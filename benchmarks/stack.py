"""Measure a run of the tiny model: start-up, time by phase, core seconds by process, rollouts per second, memory.

    python benchmarks/stack.py [--steps 12] [--rollouts 16]

Agent Lightning 0.3.0's stock trainer does not import on verl 0.9 (`create_rl_sampler` has moved), so it is not measured beside;
docs/benchmarks.md has the figures of 2026-11-21.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
WARM_UP_STEPS = 2
OUTPUT = "output.txt"
PHASES = {
    "generate": "timing_s/gen",
    "log-probs": "timing_s/old_log_prob",
    "advantages": "timing_s/adv",
    "update": "timing_s/update_actor",
    "weight sync": "timing_s/update_weights",
    "step": "timing_s/step",
}


class MemoryWatch(threading.Thread):
    """The largest system-wide use of memory above what was used at the start, in GiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.before = self.peak = psutil.virtual_memory().used
        self.done = False

    def run(self) -> None:
        while not self.done:
            self.peak = max(self.peak, psutil.virtual_memory().used)
            time.sleep(0.2)

    def gib(self) -> float:
        self.done = True
        return (self.peak - self.before) / 2**30


class CoreWatch(threading.Thread):
    """Core seconds of each process of a run, from the end of its warm-up to its last step."""

    def __init__(self, pid: int, metrics: Path) -> None:
        super().__init__(daemon=True)
        self.process, self.metrics = psutil.Process(pid), metrics
        self.seen: list[tuple[int, dict[int, tuple[str, float]]]] = []

    def run(self) -> None:
        while self.process.is_running():
            steps = len(self.metrics.read_text().splitlines()) if self.metrics.exists() else 0
            if steps >= WARM_UP_STEPS and (not self.seen or steps > self.seen[-1][0]):
                self.seen.append((steps, self._cores()))
            time.sleep(0.05)

    def _cores(self) -> dict[int, tuple[str, float]]:
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for one in [self.process, *self.process.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    used = one.cpu_times()
                    found[one.pid] = (" ".join(one.cmdline()[:3])[:60] or one.name(), used.user + used.system)
        return found

    def per_step(self) -> dict[str, float]:
        """Core seconds a step, by process; those of less than 0.01 are left out."""
        (first, before), (last, after) = self.seen[0], self.seen[-1]
        spent = {
            f"{name} ({pid})": (cores - before.get(pid, ("", 0.0))[1]) / (last - first)
            for pid, (name, cores) in after.items()
        }
        return dict(sorted(((k, v) for k, v in spent.items() if v >= 0.01), key=lambda item: -item[1]))


def options(rollouts: int) -> list[str]:
    """Two groups of `rollouts / 2`, no validation, no checkpoints."""
    return [
        f"actor_rollout_ref.rollout.n={rollouts // 2}",
        "data.train_batch_size=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={rollouts}",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
    ]


def measure(command: list[str], folder: Path, metrics: Path) -> tuple[float, dict[str, float]]:
    """Run a command to its end; returns the peak memory, and core seconds a step by process."""
    memory = MemoryWatch()
    memory.start()
    with open(folder / OUTPUT, "w", encoding="utf-8") as output:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        cores = CoreWatch(process.pid, metrics)
        cores.start()
        code = process.wait()
    if code:
        raise SystemExit((folder / OUTPUT).read_text()[-4000:])
    return memory.gib(), cores.per_step()


def ours(folder: Path, steps: int, rollouts: int) -> dict[str, Any]:
    run_dir = folder / "run"
    command = [
        sys.executable,
        "train_agent.py",
        "--max-steps",
        str(steps),
        "--run-dir",
        str(run_dir),
        *options(rollouts),
    ]
    memory, cores = measure(command, folder, run_dir / "metrics.jsonl")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((run_dir / "summary.json").read_text())
    found = result(lines, PHASES, summary["startup_seconds"], rollouts, memory)
    return found | {"core seconds": sum(cores.values())} | {f"  {name}": used for name, used in cores.items()}


def result(
    lines: list[dict[str, Any]], phases: dict[str, str], startup: float, rollouts: int, memory: float
) -> dict[str, Any]:
    steady = lines[WARM_UP_STEPS:]
    seconds = {name: statistics.median(line[key] for line in steady) for name, key in phases.items()}
    return {
        "startup_seconds": startup,
        **{f"{name} seconds": value for name, value in seconds.items()},
        "rollouts per second of a step": rollouts / seconds["step"],
        "peak memory GiB": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rollouts", type=int, default=16)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        measured = ours(Path(name), args.steps, args.rollouts)
    print(
        f"{datetime.date.today()}, {os.cpu_count()} cores, {platform.machine()}, {args.rollouts} rollouts a step, medians"
    )
    for key, value in measured.items():
        print(f"{key:72}{value:10.2f}")


if __name__ == "__main__":
    main()
