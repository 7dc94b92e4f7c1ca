"""Compare evaluations row by row with a paired bootstrap: is the difference more than chance?

    python baselines/compare.py runs/evaluations/vqa-val-tiny runs/evaluations/vqa-val-step-100 --output runs/comparison

Each evaluation is compared with the first one. Writes comparison.json, comparison.md and comparison.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # in a checkout that is not installed
from vision_rl.errors import Parser, cli_errors  # first: it says what this Python lacks


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("evaluations", type=Path, nargs="+", help="directories of evaluate_agent.py or api_baseline.py")
    parser.add_argument("--labels", nargs="+", help="a name for each (default: the directories' names)")
    parser.add_argument("--output", type=Path, default=Path("runs") / "comparison", help="directory for the results")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    from vision_rl.evaluation.comparison import compare, draw_comparison, load, render_comparison
    from vision_rl.evaluation.results import disk_errors, write_json, write_text

    with cli_errors():
        result = compare(load(args.evaluations, args.labels))
        text = render_comparison(result)
        write_json(args.output / "comparison.json", result)
        write_text(args.output / "comparison.md", text)
        with disk_errors(args.output):
            draw_comparison(result, args.output / "comparison.png")
        print(text)


if __name__ == "__main__":
    main()
