"""Rollouts per second of Agent Lightning's store, proxy and runners: stock against ours, in one run.

    python benchmarks/throughput.py [--runners 1 2 4 8] [--rollouts 200] [--memory-rollouts 10000]

The model server is a fake that answers at once, so that what is measured is everything else. Each rollout asks one
question about one picture of a megapixel that does not compress (1 MB), sent as a `data:` URI or named by path. "stock"
is Agent Lightning 0.3.0 with its own defaults (AgentOps tracer, a client per rollout as in its examples), except that
idle runners look for work every 0.1 s instead of 5 s. "alone" are rollouts without a
group, whose calls are not joined. Each line runs in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

VARIANTS = ("stock data", "ours data alone", "ours data", "ours file")
OURS_MORE = 5
"""Our lines run so many times the rollouts of stock's: they last about as long, and a p99 needs many."""
ALONE_CORES = 0.1
"""What others may use of the machine in a run that counts as undisturbed."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runners", type=int, nargs="+", default=[1, 2, 4, 8], help="parallel runner processes")
    parser.add_argument("--rollouts", type=int, default=200, help="rollouts measured per stock line")
    parser.add_argument(
        "--repeat", type=int, default=1, help="runs of a line until other programs left the machine alone, at most"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--memory-rollouts", type=int, default=0, help="also follow our memory over so many rollouts")
    parser.add_argument("--output", type=Path, help="append every line as JSON: what simulate.py --measured reads")
    return parser.parse_args()


def main() -> None:
    args = parse()
    from rich.console import Console
    from rich.table import Table

    cpu = "CPU ms/rollout (store+proxy+runners)"
    table = Table("variant", "runners", "others' cores", "rollouts/s", "p50 ms", "p99 ms", "store bytes/rollout", cpu)
    for runners in args.runners:
        for variant in args.variants:
            lines = []
            for _ in range(args.repeat):
                rollouts = args.rollouts * (1 if variant.startswith("stock") else OURS_MORE)
                lines.append(in_fresh_process(variant, runners, rollouts))
                text = json.dumps({"variant": variant, "runners": runners, "rollouts": rollouts, **lines[-1]})
                print(text, file=sys.stderr, flush=True)
                if args.output:
                    with open(args.output, "a", encoding="utf-8") as file:
                        file.write(text + "\n")
                if lines[-1]["others_cores"] < ALONE_CORES:
                    break
            line = min(lines, key=lambda one: one["others_cores"])
            table.add_row(
                variant,
                str(runners),
                f"{line['others_cores']:.1f}",
                f"{line['rate']:.1f}",
                f"{line['p50']:.0f}",
                f"{line['p99']:.0f}",
                f"{line['bytes']:,.0f}",
                f"{sum(line['cpu_ms'].values()):.0f} ({'+'.join(f'{ms:.0f}' for ms in line['cpu_ms'].values())})",
            )
    console = Console(width=120)
    console.print(table)
    if args.memory_rollouts:
        line = in_fresh_process("ours file", 2, args.rollouts, args.memory_rollouts)
        memory = Table("rollouts", "store process MB", "proxy MB", "runners MB")
        for row in line["memory"]:
            memory.add_row(*(f"{value:,.0f}" for value in row))
        console.print(memory)


def in_fresh_process(variant: str, runners: int, rollouts: int, memory_rollouts: int = 0) -> dict[str, Any]:
    script = Path(__file__).with_name("throughput_line.py")
    command = [sys.executable, str(script), variant, str(runners), str(rollouts), str(memory_rollouts)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{variant} with {runners} runners failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
