"""The demo's training with this project and with verl's own agent loop, in turns, in one run.

    python benchmarks/against_verl.py --output benchmarks/results/against_verl.json
    python benchmarks/against_verl.py --sizes 112 --steps 4           # the small pictures, a few steps

Both sides train the tiny checkpoint with verl's trainer, on this project's CPU engine and model server, with the same rows,
reward, optimiser, lengths, groups and rollouts per step (`beside.py` has the work and how it is measured). verl's side is
`verl_demo.py`: verl's `RLHFDataset` with the pictures in its parquet files, its single-turn agent loop in Ray actors, its
balancer between them and the server, its reward workers, its pass of old log-probabilities, and every rollout's own pixels in
the update. verl looks every two seconds whether a step's rollouts are done ("as shipped"); with a shorter wait, which is no
setting of verl's, what its loop itself takes is seen.

Core seconds are those of a step, by process: the whole time between the warm-up and the last step, divided by its steps.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import beside
from beside import OURS, ROOT, by_size, figures, figures_of_verl
from rich.console import Console
from rich.table import Table

SHORT_POLL = 0.05
AS_SHIPPED, SHORTENED = "verl as shipped", f"verl, poll of {SHORT_POLL} s"
WORKERS = {"agents": 2, "scorers": 1, "loaders": 0}
"""verl's processes beside trainer, rank and server. Its defaults, eight of each, are meant for more than two cores."""
NOTE = "medians over the seeds; seconds and core seconds of a step; peak memory in GiB"


def verl_rows(path: Path) -> Path:
    """The file with the same rows as verl's own examples prepare theirs: the prompt as messages, the pictures beside it."""
    import datasets

    from vision_rl.agent.prompts import vqa_text
    from vision_rl.data.schema import read_rows

    rows = [
        {
            "data_source": "vqa",
            "prompt": [{"role": "user", "content": "<image>" + vqa_text(row["question"])}],
            "images": row["image_paths"],
            "ability": "vqa",
            "reward_model": {"style": "rule", "ground_truth": row["answers"]},
            "extra_info": {"index": index},
        }
        for index, row in enumerate(read_rows(path))
    ]
    datasets.disable_progress_bars()
    made = path.with_name(f"verl_{path.name}")
    datasets.Dataset.from_list(rows).cast_column("images", [datasets.Image()]).to_parquet(made)
    return made


def with_verl(poll: float | None, data: Mapping[str, Path], rollouts: int, steps: int, seed: int) -> dict[str, Any]:
    """verl's figures of one run; poll: see `verl_side.py`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = {
            "arguments": beside.arguments(data, rollouts, steps, seed, folder / "run"),
            **{split: str(verl_rows(path)) for split, path in data.items()},
            **WORKERS,
            "poll": poll,
            "folder": name,
        }
        command = [sys.executable, "benchmarks/verl_demo.py", json.dumps(settings)]
        printed, watch = beside.run(command, folder, [ROOT])
    result = json.loads(printed.splitlines()[-1])
    lines = result["lines"]
    if any(line["rows"] != rollouts for line in lines):
        raise SystemExit(f"a step of verl's had not all its rollouts: {[line['rows'] for line in lines]}")
    parts = figures_of_verl(lines, "timing_s/testing", watch)
    [validation] = [value for name, value in lines[-1].items() if name.startswith("val-core/") and "/acc/" in name]
    mismatch = max(line["training/rollout_probs_diff_max"] for line in lines)
    whole = figures(result["startup_seconds"], parts.pop("seconds"), validation, watch.gib, rollouts)
    return {**whole, **parts, "probability_mismatch": mismatch}


def medians(runs: Sequence[Mapping[str, Any]], part: str) -> dict[str, float]:
    """The median of each value of a part of the figures, the largest first."""
    names = dict.fromkeys(name for one in runs for name in one[part])
    found = {name: statistics.median(one[part].get(name, 0.0) for one in runs) for name in names}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def table(results: Sequence[dict[str, Any]]) -> Table:
    """A row per size and side, and this project's share of verl's step."""
    parts = [*beside.PHASES, "rest"]
    heads = ["start-up s", "step s", *parts, "core s", "GiB", "validation"]
    table = Table("pixels", "rollouts", "", *heads, caption=NOTE)
    for (pixels, rollouts, side), runs in by_size(results).items():
        step = statistics.median(one["step_seconds"] for one in runs)
        phases = medians(runs, "phases")
        phases["rest"] = step - sum(phases.values())
        cells = [f"{statistics.median(one['startup_seconds'] for one in runs):.0f}", f"{step:.2f}"]
        cells += [f"{phases[name]:.2f}" for name in parts]
        cells += [f"{statistics.median(sum(one['core_seconds'].values()) for one in runs):.1f}"]
        cells += [f"{statistics.median(one['peak_memory_gib'] for one in runs):.1f}"]
        cells += [", ".join(f"{one['validation']:.3f}" for one in runs)]
        table.add_row(str(pixels), str(rollouts), side, *cells)
    return table


def comparisons(results: Sequence[dict[str, Any]]) -> list[str]:
    """This project's share of verl's step, and where the core seconds of all sides go, as lines of text."""
    lines = []
    groups = by_size(results)
    for (pixels, rollouts, side), runs in groups.items():
        used = ", ".join(
            f"{name} {value:.2f}" for name, value in medians(runs, "core_seconds").items() if value >= 0.005
        )
        lines.append(f"{pixels} px, {rollouts} rollouts, {side}: core seconds of a step: {used}")
        if side != OURS:
            pairs = zip(groups[pixels, rollouts, OURS], runs, strict=True)
            shares = [ours["step_seconds"] / theirs["step_seconds"] for ours, theirs in pairs]
            each = ", ".join(f"{share:.2f}" for share in shares)
            lines.append(f"  this project's step is {statistics.median(shares):.2f} of it ({each})")
    return lines


def main() -> None:
    parser = beside.parser(__doc__, rollouts=[128])
    args = beside.parsed(parser)
    console = Console(width=150)
    sides: dict[str, beside.Side] = {
        OURS: beside.with_this_project,
        SHORTENED: partial(with_verl, SHORT_POLL),
        AS_SHIPPED: partial(with_verl, None),
    }
    results = beside.in_turns(args, sides, {**beside.about(args.steps), "workers": WORKERS}, console)
    console.print(table(results))
    console.print("\n".join(comparisons(results)), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
