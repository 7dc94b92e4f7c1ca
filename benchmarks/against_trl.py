"""The demo's training with this project and with TRL's GRPOTrainer, in turns, in one run.

    python benchmarks/against_trl.py --output benchmarks/results/against_trl.json
    python benchmarks/against_trl.py --rollouts 16 --pixels 112 --steps 6       # the smallest size, some minutes

Both train the tiny checkpoint on the same rows with the same reward, learning rate, groups of eight and rollouts per
step (`trl_demo.py` has TRL's settings, `beside.py` the work and how it is measured). The newest release of TRL whose
requirements the installed packages meet is put into build/, beside them, so that both sides share torch and transformers.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import beside
from beside import GROUP, LEARNING_RATE, MAX_TOKENS, MICRO_BATCH, ROOT, by_size, figures, run
from packaging.requirements import Requirement
from rich.console import Console
from rich.table import Table

NOTE = "median seconds of a step; rollouts a second of a step; peak memory in GiB"


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


def with_trl(trl: Path, data: Mapping[str, Path], rollouts: int, steps: int, seed: int) -> dict[str, Any]:
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
        printed, watch = run(command, Path(folder), [trl, ROOT])
    result = json.loads(printed.splitlines()[-1])
    return figures(result["startup_seconds"], result["step_seconds"], result["validation"], watch.gib, rollouts)


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


def main() -> None:
    parser = beside.parser(__doc__, rollouts=[16, 128, 512])
    parser.add_argument("--trl", metavar="VERSION", help="TRL's release (default: the newest)")
    args = beside.parsed(parser)
    trl, version = trl_folder(args.trl)
    known = beside.about(args.steps)
    known["versions"]["trl"] = version
    sides: dict[str, beside.Side] = {beside.OURS: beside.with_this_project, "TRL": partial(with_trl, trl)}
    console = Console(width=110)
    console.print(table(beside.in_turns(args, sides, known, console)))


if __name__ == "__main__":
    main()
