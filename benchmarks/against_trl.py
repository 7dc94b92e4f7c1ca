"""The demo's training with this project and with TRL's GRPOTrainer, in turns, in one run.

    python benchmarks/against_trl.py --output benchmarks/results/against_trl.json
    python benchmarks/against_trl.py --rollouts 16 --pixels 112 --steps 6       # the smallest size, some minutes

Both train the tiny checkpoint on the same rows with the same reward, learning rate, groups of eight and rollouts per
step (`trl_demo.py` has TRL's settings). Pictures of 112 pixels a side are what the tiny model sees; those of a megapixel
are the same scenes, 1,024 pixels a side, which have to be read and shrunk to that. The newest release of TRL whose
requirements the installed packages meet is put into build/, beside them, so that both sides share torch and transformers.

Seconds per step are the time from the end of one step to the end of the next, weight transfer included: the median of
all but the first two. Memory is the largest proportional set size (shared pages are counted once) of the process and all
its descendants, looked at every two seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
GROUP, MICRO_BATCH, MAX_TOKENS, LEARNING_RATE = 8, 64, 24, 1e-4
"""As in the preset cpu."""
WARM_UP_STEPS = 2
LOOK_SECONDS = 2.0
PHASES = {"generate": "gen", "log-probs": "old_log_prob", "update": "update_actor", "weight sync": "update_weights"}
NOTE = "median seconds of a step; rollouts a second of a step; peak memory in GiB"


class MemoryWatch(threading.Thread):
    """The largest proportional set size of a process and its descendants, in GiB."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.peak = psutil.Process(pid), 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(psutil.Error):
                family = [self.process, *self.process.children(recursive=True)]
                self.peak = max(self.peak, sum(self._size(one) for one in family))
            self._over.wait(LOOK_SECONDS)

    @staticmethod
    def _size(process: psutil.Process) -> int:
        try:
            return int(process.memory_full_info().pss)
        except psutil.Error:  # it has just ended
            return 0

    def gib(self) -> float:
        self._over.set()
        self.join()
        return self.peak / 2**30


def trl_folder(version: str | None) -> tuple[Path, str]:
    """(folder for PYTHONPATH, version) of TRL, installed without its requirements, which are checked instead."""
    pip = [sys.executable, "-m", "pip"]
    if version is None:
        found = subprocess.run([*pip, "index", "versions", "trl"], capture_output=True, text=True, check=True).stdout
        version = re.findall(r"trl \(([\d.]+)\)", found)[0]
    folder = ROOT / "build" / f"trl-{version}"
    if not folder.exists():
        subprocess.run([*pip, "install", "-q", "--no-deps", "--target", str(folder), f"trl=={version}"], check=True)
    [metadata] = importlib.metadata.distributions(name="trl", path=[str(folder)])
    for text in metadata.requires or ():
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            have = importlib.metadata.version(needed.name)
            if have not in needed.specifier:
                raise SystemExit(f"TRL {version} needs {needed}, installed is {have}; name an older one with --trl")
    return folder, version


def run(command: Sequence[str], folder: Path, path: Sequence[Path]) -> tuple[str, float]:
    """(what a command printed, its peak memory in GiB)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    with open(folder / "output.txt", "w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        memory = MemoryWatch(process.pid)
        memory.start()
        code = process.wait()
        gib = memory.gib()
        output.seek(0)
        text = output.read()
    if code:
        raise SystemExit(f"{command[1]} failed:\n{text[-4000:]}")
    return text, gib


def figures(
    startup: float, seconds: Sequence[float], validation: float, memory: float, rollouts: int
) -> dict[str, Any]:
    """One side's figures of a run."""
    step = statistics.median(seconds[WARM_UP_STEPS:])
    return {
        "startup_seconds": startup,
        "step_seconds": step,
        "rollouts_per_second": rollouts / step,
        "validation": validation,
        "peak_memory_gib": memory,
    }


def with_trl(trl: Path, data: dict[str, Path], rollouts: int, steps: int, seed: int) -> dict[str, Any]:
    settings = {
        "train": str(data["train"]),
        "val": str(data["val"]),
        "rollouts": rollouts,
        "micro_batch": MICRO_BATCH,
        "group": GROUP,
        "max_tokens": MAX_TOKENS,
        "steps": steps,
        "seed": seed,
        "learning_rate": LEARNING_RATE,
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "benchmarks/trl_demo.py", json.dumps(settings)]
        printed, memory = run(command, Path(folder), [trl, ROOT])
    result = json.loads(printed.splitlines()[-1])
    return figures(result["startup_seconds"], result["step_seconds"], result["validation"], memory, rollouts)


def with_this_project(data: dict[str, Path], rollouts: int, steps: int, seed: int) -> dict[str, Any]:
    prompts = rollouts // GROUP
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "train_agent.py", "--task", "vqa", "--preset", "cpu", "--seed", str(seed)]
        command += ["--data-path", str(data["train"]), "--val-data-path", str(data["val"])]
        command += ["--run-dir", str(run_dir), "--max-steps", str(steps), f"actor_rollout_ref.rollout.n={GROUP}"]
        command += [f"data.train_batch_size={prompts}", f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}"]
        command += [f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={min(rollouts, MICRO_BATCH)}"]
        command += [f"actor_rollout_ref.actor.optim.lr={LEARNING_RATE}", f"data.max_response_length={MAX_TOKENS}"]
        command += ["trainer.val_before_train=false", f"trainer.test_freq={steps}", "trainer.save_freq=-1"]
        _, memory = run(command, Path(folder), [ROOT])
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    ends = [line["time"] for line in lines]
    [validation] = [line["val/accuracy"] for line in lines if "val/accuracy" in line]
    # The first step's beginning is not known by the lines; it is one of the warm-up, which does not count.
    seconds = [lines[0]["timing_s/step"], *(end - start for start, end in itertools.pairwise(ends))]
    seconds[-1] -= lines[-1].get("timing_s/validate", 0.0)
    phases = {
        name: statistics.median(line[f"timing_s/{key}"] for line in lines[WARM_UP_STEPS:])
        for name, key in PHASES.items()
    }
    return {**figures(summary["startup_seconds"], seconds, validation, memory, rollouts), "phases": phases}


def tasks(folder: Path, pixels: int) -> dict[str, Path]:
    """The synthetic VQA rows with pictures of `pixels` a side."""
    from PIL import Image

    from vision_rl.data.schema import read_rows, write_rows
    from vision_rl.tiny import write_tasks

    paths = {split: path for split, path in write_tasks(folder, "vqa").items() if split != "test"}
    for path in paths.values():
        rows = read_rows(path)
        for row in rows:
            [file] = row["image_paths"]
            with Image.open(file) as picture:
                picture.convert("RGB").resize((pixels, pixels), Image.Resampling.NEAREST).save(file)
            row["image_sizes"] = [[pixels, pixels]]
        write_rows(path, rows)
    return paths


def table(results: Sequence[dict[str, Any]]) -> Table:
    """One row per size and side: the best of its runs, by the seconds of a step."""
    table = Table(
        "pixels", "rollouts a step", "", "start-up s", "step s", "rollouts/s", "validation", "GiB", caption=NOTE
    )
    for (pixels, rollouts, side), runs in by_size(results).items():
        best = min(runs, key=lambda one: float(one["step_seconds"]))
        cells = [f"{best['startup_seconds']:.1f}", f"{best['step_seconds']:.2f}", f"{best['rollouts_per_second']:.0f}"]
        cells += [f"{best['validation']:.3f}", f"{best['peak_memory_gib']:.1f}"]
        table.add_row(f"{pixels} x {pixels}", str(rollouts), side, *cells)
    return table


def by_size(results: Sequence[dict[str, Any]]) -> dict[tuple[int, int, str], list[dict[str, Any]]]:
    groups: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for one in results:
        groups.setdefault((one["pixels"], one["rollouts"], one["side"]), []).append(one)
    return groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, nargs="+", default=[16, 128, 512], help="rollouts a step, by eight")
    parser.add_argument("--pixels", type=int, nargs="+", default=[112, 1024], help="sides of the pictures")
    parser.add_argument("--steps", type=int, default=12, help="steps of a run (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each; the table shows the best")
    parser.add_argument("--trl", metavar="VERSION", help="TRL's release (default: the newest)")
    parser.add_argument("--output", type=Path, help="write all figures as JSON, after every run")
    args = parser.parse_args()
    if args.steps <= WARM_UP_STEPS:
        parser.error(f"--steps must be above the {WARM_UP_STEPS} steps that do not count")
    if any(rollouts % GROUP or rollouts < GROUP for rollouts in args.rollouts):
        parser.error(f"--rollouts must be multiples of {GROUP}")
    trl, version = trl_folder(args.trl)
    console, results = Console(width=110), []
    named = ("torch", "transformers", "verl", "vllm")
    about = {
        "date": str(datetime.date.today()),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "steps": args.steps,
        "versions": {"trl": version, **{name: importlib.metadata.version(name) for name in named}},
    }
    with tempfile.TemporaryDirectory() as folder:
        data = {pixels: tasks(Path(folder) / str(pixels), pixels) for pixels in args.pixels}
        for pixels, rollouts, seed in itertools.product(args.pixels, args.rollouts, range(args.repeat)):
            for side in ("this project", "TRL"):
                size = (data[pixels], rollouts, args.steps, seed)
                found = with_trl(trl, *size) if side == "TRL" else with_this_project(*size)
                results.append({"pixels": pixels, "rollouts": rollouts, "seed": seed, "side": side, **found})
                console.print(
                    f"{pixels} px, {rollouts} rollouts, {side}: start-up {found['startup_seconds']:.0f} s, "
                    f"{found['step_seconds']:.2f} s a step"
                )
                if args.output:
                    args.output.write_text(json.dumps({**about, "runs": results}, indent=1) + "\n", encoding="utf-8")
    console.print(table(results))


if __name__ == "__main__":
    main()
