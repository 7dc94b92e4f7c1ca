"""Measure the start-up of a run, until its first rollout: by phase, by process and by import.

    python benchmarks/startup.py [--imports] [--output FILE] [key=value ...]

Trains the tiny model for one step and looks ten times a second at the processor time of all processes of the run. The
phases are the events of the run's own log (events.jsonl); a phase that keeps fewer cores busy than the machine has is
waiting for something. `--imports` runs it once more under `-X importtime`, which is slower, and says which packages each
process spends its imports on. Arguments of the form key=value are handed to train_agent.py.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from processes import Watched, name_of
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


from vision_rl.run.log import EVENTS, read_jsonl  # noqa: E402

LOOK_SECONDS = 0.1
TO_THE_FIRST_STEP = [
    "--max-steps",
    "1",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
]
_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\S+)")


def watch(run: subprocess.Popen[bytes], run_dir: Path, started: float) -> dict[int, Watched]:
    """Look at the run's processes until its first rollouts are queued. Raises `SystemExit` if it ends before."""
    seen: dict[int, Watched] = {}
    root = psutil.Process(run.pid)
    while not any(event["kind"] == "queued" for event in read_jsonl(run_dir / EVENTS)[0]):
        if run.poll() is not None:
            raise SystemExit(f"the run ended before its first rollout, with exit code {run.returncode}")
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                name, now = name_of(process, run.pid), time.time() - started
                one = seen.setdefault(process.pid, Watched(name, process.create_time() - started))
                one.name = name  # Ray's workers are renamed when they get their actor
                one.looks.append((now, sum(process.cpu_times()[:2])))
                one.peak_mib = max(one.peak_mib, process.memory_info().rss / 2**20)
        time.sleep(LOOK_SECONDS)
    return seen


def phases(run_dir: Path, started: float) -> list[tuple[str, float, float]]:
    """(what happens, start, end) from the process' start to the first queued rollouts."""
    marks = [("imports, data, configuration; store; runners; Ray", 0.0)]
    for event in read_jsonl(run_dir / EVENTS)[0]:
        now = event["time"] - started
        if event["kind"] == "phase":
            marks.append((event["text"], now))
        elif event["kind"] == "proxy":
            marks.append(("the proxy serves; queueing the first rollouts", now))
        elif event["kind"] == "queued":
            marks.append(("", now))
            break
    return [(text, start, end) for (text, start), (_, end) in itertools.pairwise(marks)]


def measure(settings: Sequence[str], *, imports: bool = False) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """(figures, import seconds by process and package) of one start."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir, output = Path(folder) / "run", Path(folder) / "output.txt"
        command = [sys.executable, "train_agent.py", "--run-dir", str(run_dir), *TO_THE_FIRST_STEP, *settings]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        if imports:
            environment["PYTHONPROFILEIMPORTTIME"] = "1"
        started = time.time()
        with open(output, "w", encoding="utf-8") as file:
            run = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
            try:
                seen = watch(run, run_dir, started)
                run.wait(300)
            finally:
                run.kill()
        found = phases(run_dir, started)
        texts = {name: log.read_text(errors="replace") for name, log in logs(run_dir, seen)} if imports else {}
        texts["main"] = output.read_text(errors="replace") if imports else ""
    return figures(found, seen), {name: packages(text) for name, text in texts.items() if text}


def logs(run_dir: Path, seen: dict[int, Watched]) -> list[tuple[str, Path]]:
    """(process, what it wrote to its standard error) of Ray's workers; the file's name ends with the process id."""
    files = [(int(path.stem.rsplit("-", 1)[1]), path) for path in (run_dir / "logs").glob("worker-*.err")]
    return [(seen[pid].name, path) for pid, path in files if pid in seen]


def packages(text: str) -> dict[str, float]:
    """Seconds of imports by top-level package, from what `-X importtime` prints (microseconds)."""
    seconds: dict[str, float] = defaultdict(float)
    for micros, module in _IMPORT.findall(text):
        seconds[module.split(".")[0]] += int(micros) / 1e6
    return dict(sorted(seconds.items(), key=lambda one: -one[1]))


def figures(found: list[tuple[str, float, float]], seen: dict[int, Watched]) -> dict[str, Any]:
    names = sorted({one.name for one in seen.values()})
    end = found[-1][2]

    def by_process(start: float, stop: float) -> dict[str, float]:
        used = {name: sum(one.used(start, stop) for one in seen.values() if one.name == name) for name in names}
        return {name: round(value, 2) for name, value in sorted(used.items(), key=lambda one: -one[1]) if value >= 0.05}

    return {
        "date": str(datetime.date.today()),
        "cores": os.cpu_count(),
        "startup_seconds": end,
        "phases": [
            {"phase": text, "start": start, "seconds": stop - start, "core_seconds": by_process(start, stop)}
            for text, start, stop in found
        ],
        "processes": {
            name: {
                "count": sum(one.name == name for one in seen.values()),
                "began": min(one.began for one in seen.values() if one.name == name),
                "core_seconds": seconds,
                "peak_mib": sum(one.peak_mib for one in seen.values() if one.name == name),
            }
            for name, seconds in by_process(0.0, end).items()
        },
    }


def show(result: dict[str, Any], imports: dict[str, dict[str, float]], console: Console) -> None:
    table = Table("from", "phase", "seconds", "busy cores", "core seconds by process")
    for phase in result["phases"]:
        used = phase["core_seconds"]
        cores = sum(used.values()) / max(phase["seconds"], 1e-9)
        spent = ", ".join(f"{name} {seconds:.1f}" for name, seconds in used.items())
        table.add_row(f"{phase['start']:.1f}", phase["phase"], f"{phase['seconds']:.1f}", f"{cores:.1f}", spent)
    console.print(table)
    table = Table("process", "how many", "began at s", "core seconds", "peak MiB", "imports, in seconds")
    for name, one in result["processes"].items():
        heavy = [f"{package} {seconds:.1f}" for package, seconds in imports.get(name, {}).items()][:8]
        cells = [f"{one['began']:.1f}", f"{one['core_seconds']:.1f}", f"{one['peak_mib']:.0f}", ", ".join(heavy)]
        table.add_row(name, str(one["count"]), *cells)
    console.print(table)
    console.print(f"first rollout after {result['startup_seconds']:.1f} s on {result['cores']} cores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    parser.add_argument("--imports", action="store_true", help="also ask which packages the imports go to")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    console = Console(width=150)
    result, _ = measure(args.settings)
    show(result, {}, console)
    write(args.output, result)
    if args.imports:
        _, imports = measure(args.settings, imports=True)
        show(result, imports, console)
        write(args.output, {**result, "imports": imports})


def write(output: Path | None, result: dict[str, Any]) -> None:
    if output:
        output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
