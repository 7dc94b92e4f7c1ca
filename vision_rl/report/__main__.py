"""One page about a run, an evaluation, or several runs laid over each other.

python -m vision_rl.report RUN_DIR                    # writes RUN_DIR/report.html, which needs nothing beside itself
python -m vision_rl.report RUN_A RUN_B -o both.html   # their curves in the same charts
python -m vision_rl.report RUN_DIR --serve            # a live page on this machine
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vision_rl.errors import Parser, UserError, cli_errors
from vision_rl.evaluation.report import evaluation_page
from vision_rl.evaluation.results import IDENTITY
from vision_rl.files import replacing
from vision_rl.report.index import RolloutIndex
from vision_rl.report.page import Page, render
from vision_rl.report.run import REPORT, Choice, run_page


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument(
        "directories", type=Path, nargs="+", metavar="DIR", help="--run-dir, or an evaluation's --output"
    )
    parser.add_argument("--labels", nargs="+", help="a name for each run (default: the directories' names)")
    parser.add_argument("-o", "--output", type=Path, help=f"default: {REPORT} in the first directory")
    parser.add_argument("--steps", help="training steps whose rollouts are shown, as 1,20,40 (default: a telling few)")
    parser.add_argument("--groups", type=int, default=Choice.groups, help="groups of each step (default: %(default)s)")
    parser.add_argument("--serve", action="store_true", help="serve a page that follows the run, on 127.0.0.1 only")
    parser.add_argument("--port", type=int, default=8765, help="of --serve (default: %(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page, or serve it until Ctrl-C."""
    args = parser().parse_args(argv)
    with cli_errors():
        if args.labels and len(args.labels) != len(args.directories):
            raise UserError(f"{len(args.labels)} --labels for {len(args.directories)} runs; give one each")
        choice = Choice(chosen(args.steps), args.groups, tuple(args.labels or ()))
        if args.serve:
            from vision_rl.report.serve import serve

            serve(args.directories, choice, args.port, page_of)
            return
        target = args.output or args.directories[0] / REPORT
        text = render(page_of(args.directories, choice, {}))
        with replacing(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
        print(f"wrote {target} ({len(text) / 1e6:.1f} MB, of which Plotly's script is 4.8)")


def chosen(steps: str | None) -> tuple[int, ...]:
    """The numbers of `--steps`; `UserError` for anything else."""
    try:
        return tuple(int(step) for step in steps.split(",")) if steps else ()
    except ValueError as error:
        raise UserError(f"--steps {steps} is not a list of numbers; give steps as 1,20,40") from error


def page_of(directories: Sequence[Path], choice: Choice, indexes: dict[Path, RolloutIndex]) -> Page:
    """The page of what the directories hold; `UserError` for evaluations beside something else."""
    evaluations = [path for path in directories if (path / IDENTITY).exists()]
    if not evaluations:
        return run_page(directories, choice, indexes)
    if len(directories) > 1:
        raise UserError(
            f"{evaluations[0]} is an evaluation: the page shows one alone; baselines/compare.py compares several"
        )
    return evaluation_page(evaluations[0])


if __name__ == "__main__":
    main()
