"""The parity matrix: for every family, whether trainer and model server compute the same log-probabilities.

    python benchmarks/parity.py                          all families, written to benchmarks/results/parity.json
    python benchmarks/parity.py --families Qwen3-VL      some of them; the other rows of the file stay
    python benchmarks/parity.py --write-docs             docs/models.md and docs/models.html from that file

A tiny model of each family is built with random weights, served by vLLM in float32 on the CPU, and asked about pictures; the
replies are recomputed by the trainer's code. No GPU and no download are needed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from vision_rl.parity.compare import Job, compare
from vision_rl.tiny.families import BUILDERS, build

RESULTS = Path(__file__).resolve().parent / "results" / "parity.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(BUILDERS), default=list(BUILDERS), metavar="NAME")
    parser.add_argument("--keep", type=Path, help="folder for checkpoints, pictures and logs (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="parity-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [
            Job(family, build(family, folder / f"{n}"), build(family, folder / f"{n}.updated", seed=1))
            for n, family in enumerate(arguments.families)
        ]
        results = compare(jobs, folder)
    for result in results:
        shown = "" if result.max is None else f"max {result.max:.1e} mean {result.mean:.1e}"
        print(f"{result.family:20} {result.cell:28} {result.verdict:8} {shown} {result.prompt_equal} {result.reason[:150]}")


if __name__ == "__main__":
    main()
