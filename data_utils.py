"""Convert, split, sample, show and verify data sets, which are parquet files. `docs/data.md` shows every command.

Exit codes: 0 done (verify: no bad row), 1 verify found bad rows, 2 bad input or usage, 130 or 143 interrupted.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vision_rl.errors import Parser, UserError, cli_errors  # first: it says what this Python lacks

# isort: split
from vision_rl.answers.coordinates import FAMILIES, family_for
from vision_rl.data.convert.cli import add_commands, add_task, command, of_args, shown
from vision_rl.data.episodes import write_episodes
from vision_rl.data.schema import iter_rows, write_rows
from vision_rl.data.show import contact_sheet, save_sheet
from vision_rl.data.stats import as_text, summarise
from vision_rl.data.verify import Checks, Report, verify, write_good_rows
from vision_rl.files import replacing
from vision_rl.media.images import LIMIT_PIXELS
from vision_rl.tasks import TASK_HELP, get_task


def main(argv: Sequence[str] | None = None) -> None:
    args = parser().parse_args(argv)
    with cli_errors():
        try:
            if getattr(args, "task", None):
                args.task = get_task(args.task).name
            sys.exit(args.command(args))
        except KeyboardInterrupt:
            print("interrupted; nothing was written", file=sys.stderr)
            sys.exit(130)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_commands(commands)
    _add_episodes(commands)
    _add_readers(commands)
    _add_verify(commands)
    return parser


def _add_episodes(commands: Any) -> None:
    text = "write train and val parquet for a task with an environment: each row is a seed with options"
    parser = command(commands, "episodes", write_task_episodes, text)
    option = parser.add_argument
    option("task", metavar="TASK", help=f"a task with an environment: {TASK_HELP}")
    option(
        "--envs",
        nargs="+",
        default=[],
        metavar="NAME[:TURNS]",
        help="names of environments; TURNS bounds an episode's replies. Leave it out if the task has no names",
    )
    option("--train", type=int, default=256, help="number of training episodes (default: %(default)s)")
    option("--val", type=int, default=64, help="number of validation episodes (default: %(default)s)")
    option(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of every reset, repeatable; the value is JSON or text",
    )
    option("--output", type=Path, help="folder for train.parquet and val.parquet (default: data/TASK)")


def write_task_episodes(args: argparse.Namespace) -> int:
    task, options = get_task(args.task), {}
    for option in args.option:
        key, _, value = option.partition("=")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    folder = args.output or Path("data") / task.name
    for path, count in write_episodes(folder, task, args.envs, {"train": args.train, "val": args.val}, options).items():
        print(f"{path}: {count} episodes")
    return 0


def _add_readers(commands: Any) -> None:
    parser = command(commands, "sample", sample, "write a random sample of rows to parquet")
    option = parser.add_argument
    add_task(parser)
    option("--file", type=Path, required=True, help="parquet file to read")
    option("--count", type=int, required=True, help="number of rows")
    option("--seed", type=int, default=0, help="seed of the choice (default: %(default)s)")
    option("--output", type=Path, required=True, help="parquet file to write")

    parser = command(commands, "stats", stats, "print figures of a parquet file")
    option = parser.add_argument
    add_task(parser)
    option("--file", type=Path, required=True, help="parquet file to read")
    option("--json", action="store_true", help="print JSON")

    parser = command(commands, "show", show, "draw a contact sheet (PNG) of pictures with boxes, questions and answers")
    option = parser.add_argument
    add_task(parser)
    option("--file", type=Path, required=True, help="parquet file to read")
    option("--output", type=Path, default=Path("contact_sheet.png"), help="PNG to write (default: %(default)s)")
    option("--count", type=int, default=16, help="number of rows, chosen at random (default: %(default)s)")
    option("--rows", help="row numbers to show instead, separated by commas")
    option("--seed", type=int, default=0, help="seed of the choice (default: %(default)s)")
    option("--columns", type=int, default=4, help="pictures per line (default: %(default)s)")


def sample(args: argparse.Namespace) -> int:
    keep = _chosen(args)
    rows = (row for number, row in enumerate(iter_rows(args.file, task=args.task)) if number in keep)
    print(f"{args.output}: {write_rows(args.output, rows)} rows")
    return 0


def stats(args: argparse.Namespace) -> int:
    summary = summarise(iter_rows(args.file, task=args.task))
    if not summary["rows"]:
        raise _no_rows(args.file)
    print(json.dumps(summary, ensure_ascii=False, indent=2) if args.json else as_text(summary))
    return 0


def show(args: argparse.Namespace) -> int:
    try:
        keep = set(map(int, args.rows.split(","))) if args.rows else _chosen(args)
    except ValueError as error:
        raise UserError(f"--rows {args.rows} is not a list of row numbers like 3,17") from error
    if min(keep) < 0:
        raise UserError(f"--rows {args.rows} has a number below 0; rows are counted from 0")
    rows = [
        row for number, row in enumerate(islice(iter_rows(args.file, task=args.task), max(keep) + 1)) if number in keep
    ]
    if len(rows) < len(keep):
        raise UserError(f"{args.file} has no row {max(keep)}; give --rows numbers from 0 to its last")
    save_sheet(contact_sheet(rows, columns=args.columns), args.output)
    print(f"{args.output}: {len(rows)} rows")
    return 0


def _chosen(args: argparse.Namespace) -> set[int]:
    if args.count < 1:
        raise UserError(f"--count {args.count} chooses no rows; give 1 or more")
    total = sum(1 for _ in iter_rows(args.file, task=args.task))
    if not total:
        raise _no_rows(args.file)
    return set(random.Random(args.seed).sample(range(total), min(args.count, total)))


def _no_rows(file: Path) -> UserError:
    return UserError(f"{file} holds no rows; convert a data set into it")


def _add_verify(commands: Any) -> None:
    parser = command(commands, "verify", verify_file, "check every row, picture and gold answer of a parquet file")
    option = parser.add_argument
    add_task(parser)
    option("--file", type=Path, required=True, help="parquet file to read")
    option(
        "--against",
        type=Path,
        nargs="+",
        default=[],
        help="other splits, which must share no picture and no patient with --file",
    )
    option("--image-base-dir", type=Path, help="base of relative image paths (default: the file's folder)")
    option("--family", default="unit", help=f"model family or model_type: {', '.join(FAMILIES)}")
    option(
        "--answer-format",
        choices=("bbox", "click", "native"),
        help="answer format of the gold answers (default: bbox for unit, else native)",
    )
    option(
        "--min-pixels", type=int, default=Checks.min_pixels, help="the processor's smallest area (default: %(default)s)"
    )
    option(
        "--max-pixels", type=int, default=Checks.max_pixels, help="the processor's largest area (default: %(default)s)"
    )
    option(
        "--limit-pixels", type=int, default=LIMIT_PIXELS, help="refuse pictures with more pixels (default: %(default)s)"
    )
    option(
        "--min-side",
        type=int,
        default=Checks.min_side,
        help="refuse pictures with a shorter side (default: %(default)s)",
    )
    option("--no-images", action="store_true", help="do not open the pictures; leaks by content are then not found")
    option("--workers", type=int, help="threads that open pictures (default: one per core)")
    option("--strict", action="store_true", help="count a question whose annotators disagree as bad")
    option("--allow-unanswered", action="store_true", help="accept rows without answers (a test split)")
    option("--list", type=int, default=100, help="print at most this many problems (default: %(default)s)")
    option("--report", type=Path, help="write every problem as JSONL: row, id, reason")
    option("--drop-bad", type=Path, metavar="OUT", help="write the good rows to this parquet file")


def verify_file(args: argparse.Namespace) -> int:
    family = args.family if args.family in FAMILIES else family_for(args.family).name
    answer_format = args.answer_format or ("bbox" if family == "unit" else "native")
    checks = of_args(Checks, args, family=family, answer_format=answer_format, open_images=not args.no_images)
    report = verify(args.file, checks=checks, image_base_dir=args.image_base_dir, against=args.against, progress=shown)
    _print_report(args, report)
    if args.drop_bad:
        if len(report.bad_rows) == report.rows:
            raise UserError(f"every row of {args.file} is bad; {args.drop_bad} was not written")
        count = write_good_rows(args.file, args.drop_bad, report.bad_rows, args.image_base_dir)
        print(f"{args.drop_bad}: {count} rows")
    return 1 if report.problems else 0


def _print_report(args: argparse.Namespace, report: Report) -> None:
    for problem in report.problems[: args.list]:
        print(f"row {problem.row} (id {problem.id}): {problem.reason}")
    if len(report.problems) > args.list:
        print(f"... {len(report.problems) - args.list} more (--report FILE writes all)")
    for note in report.notes:
        print(f"note: {note}")
    print(f"{args.file}: {report.rows} rows, {report.images} images, {len(report.bad_rows)} bad rows")
    if args.report:
        with replacing(args.report) as temporary:
            temporary.write_text("".join(json.dumps(vars(problem)) + "\n" for problem in report.problems))


if __name__ == "__main__":
    main()
