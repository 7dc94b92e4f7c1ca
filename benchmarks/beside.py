"""What the comparisons with other trainers share: the work, this project's side of it, and the figures of a run.

The work is the demo's: the tiny checkpoint, synthetic questions, groups of eight. Pictures of 112 pixels a side are what the
tiny model sees; those of a megapixel are the same scenes, 1,024 pixels a side, which have to be read and shrunk to that.

Seconds per step are the time from the end of one step to the end of the next, weight transfer included: the median of
all but the first two. Memory is that of a process and all its descendants (`processes.py`).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from processes import RunWatch
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
GROUP, MICRO_BATCH, MAX_TOKENS, LEARNING_RATE = 8, 64, 24, 1e-4
"""As in the preset cpu."""
WARM_UP_STEPS = 2
OURS = "this project"
Side = Callable[[Mapping[str, Path], int, int, int], dict[str, Any]]
"""Its figures of one run, by the data's files, the rollouts of a step, the steps, and the seed."""
PHASES = {"generate": "gen", "log-probs": "old_log_prob", "update": "update_actor", "weight sync": "update_weights"}


def run(command: Sequence[str], folder: Path, path: Sequence[Path]) -> tuple[str, RunWatch]:
    """(what a command printed, what its processes used)."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))}
    with open(folder / "output.txt", "w+", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        watch = RunWatch(process.pid)
        watch.start()
        code = process.wait()
        watch.stop()
        output.seek(0)
        text = output.read()
    if code:
        raise SystemExit(f"{command[1]} failed:\n{text[-4000:]}")
    return text, watch


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


def figures_of_verl(lines: Sequence[Mapping[str, Any]], validating: str, watch: RunWatch) -> dict[str, Any]:
    """The parts of a step, its core seconds by process and what was learnt, from the metrics that verl's trainer makes.

    lines: of each step, its last with a validation. validating: the metric of that one's seconds. The last step's core
    seconds are not known without it, so that they do not count.
    """
    ends = [line["time"] for line in lines]
    # The first step's beginning is not known by the lines; it is one of the warm-up, which does not count.
    seconds = [lines[0]["timing_s/step"], *(end - start for start, end in itertools.pairwise(ends))]
    seconds[-1] -= lines[-1].get(validating, 0.0)
    counted = lines[WARM_UP_STEPS:]
    stretch = ends[WARM_UP_STEPS - 1], ends[-2]
    steps = len(counted) - 1
    return {
        "seconds": seconds,
        "phases": {
            name: statistics.median(line[f"timing_s/{key}"] for line in counted) for name, key in PHASES.items()
        },
        "core_seconds": {name: value / steps for name, value in watch.core_seconds(*stretch).items()},
        "others_core_seconds": watch.others(*stretch) / steps,
        "rewards": [line["critic/score/mean"] for line in lines],
        "prompt_tokens": statistics.mean(line["prompt_length/mean"] for line in lines),
        "reply_tokens": statistics.mean(line["response_length/mean"] for line in lines),
    }


def arguments(data: Mapping[str, Path], rollouts: int, steps: int, seed: int, run_dir: Path) -> list[str]:
    """The arguments of `train_agent.py` for this work."""
    prompts = rollouts // GROUP
    return [
        *("--task", "vqa", "--preset", "cpu", "--seed", str(seed), "--max-steps", str(steps)),
        *("--data-path", str(data["train"]), "--val-data-path", str(data["val"]), "--run-dir", str(run_dir)),
        f"actor_rollout_ref.rollout.n={GROUP}",
        f"data.train_batch_size={prompts}",
        f"actor_rollout_ref.actor.ppo_mini_batch_size={prompts}",
        f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={min(rollouts, MICRO_BATCH)}",
        f"actor_rollout_ref.actor.optim.lr={LEARNING_RATE}",
        f"data.max_response_length={MAX_TOKENS}",
        *("trainer.val_before_train=false", f"trainer.test_freq={steps}", "trainer.save_freq=-1"),
    ]


def with_this_project(data: Mapping[str, Path], rollouts: int, steps: int, seed: int) -> dict[str, Any]:
    """This project's figures of one run."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "train_agent.py", *arguments(data, rollouts, steps, seed, run_dir)]
        _, watch = run(command, Path(folder), [ROOT])
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    [validation] = [line["val/accuracy"] for line in lines if "val/accuracy" in line]
    parts = figures_of_verl(lines, "timing_s/validate", watch)
    whole = figures(summary["startup_seconds"], parts.pop("seconds"), validation, watch.gib, rollouts)
    return {**whole, **parts}


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


def by_size(results: Sequence[dict[str, Any]]) -> dict[tuple[int, int, str], list[dict[str, Any]]]:
    """The runs of each size of pictures, rollouts a step and side."""
    groups: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for one in results:
        groups.setdefault((one["pixels"], one["rollouts"], one["side"]), []).append(one)
    return groups


def about(steps: int) -> dict[str, Any]:
    """When and where the figures were made, and with which releases."""
    return {
        "date": str(datetime.date.today()),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "steps": steps,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "verl", "vllm")},
    }


def parser(description: str | None, rollouts: Sequence[int]) -> argparse.ArgumentParser:
    """The command line of a comparison; rollouts: the default of `--rollouts`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollouts", type=int, nargs="+", default=rollouts, help="rollouts a step, by eight")
    parser.add_argument("--pixels", "--sizes", type=int, nargs="+", default=[112, 1024], help="sides of the pictures")
    parser.add_argument("--steps", type=int, default=12, help="steps of a run (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each, with seeds of their own")
    parser.add_argument("--output", type=Path, help="write all figures as JSON, after every run")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments; ends the command where a size is not one of this work."""
    args = parser.parse_args()
    if args.steps < WARM_UP_STEPS + 2:
        parser.error(
            f"--steps must be at least {WARM_UP_STEPS + 2}: the first {WARM_UP_STEPS} do not count, nor all the last"
        )
    if any(number % GROUP or number < GROUP for number in args.rollouts):
        parser.error(f"--rollouts must be multiples of {GROUP}")
    return args


def in_turns(
    args: argparse.Namespace, sides: Mapping[str, Side], known: Mapping[str, Any], console: Console
) -> list[dict[str, Any]]:
    """The figures of every run: each size and seed on all sides, one after the other. known: what stands above them."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = {pixels: tasks(Path(folder) / str(pixels), pixels) for pixels in args.pixels}
        for pixels, rollouts, seed in itertools.product(args.pixels, args.rollouts, range(args.repeat)):
            for side, measured in sides.items():
                found = measured(data[pixels], rollouts, args.steps, seed)
                results.append({"pixels": pixels, "rollouts": rollouts, "seed": seed, "side": side, **found})
                console.print(
                    f"{pixels} px, {rollouts} rollouts, {side}: start-up {found['startup_seconds']:.0f} s, "
                    f"{found['step_seconds']:.2f} s a step"
                )
                if args.output:
                    args.output.write_text(json.dumps({**known, "runs": results}, indent=1) + "\n", encoding="utf-8")
    return results
