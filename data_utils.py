"""Data sets as parquet files: convert, split, sample, look at and verify them. `docs/data.md` shows every command.

Exit codes: 0 done (verify: no bad row), 1 verify found bad rows, 2 bad input or usage, 130 or 143 interrupted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vision_rl.errors import Parser, UserError, cli_errors  # first: it says what this Python lacks

# isort: split
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vision_rl.answers.choices import ANSWER_FORMS
from vision_rl.answers.coordinates import FAMILIES, family_for
from vision_rl.data.convert import box_sets, screenspot, vqav2
from vision_rl.data.convert.data_set import Source
from vision_rl.data.convert.data_set import iter_rows as iter_set
from vision_rl.data.convert.empty import with_empty
from vision_rl.data.convert.geometry import BOX_FORMATS, SPACES
from vision_rl.data.convert.sets import get_set, set_rows, sets_table
from vision_rl.data.episodes import write_episodes
from vision_rl.data.schema import iter_rows, write_rows
from vision_rl.data.show import contact_sheet, save_sheet
from vision_rl.data.split import parse_shares, write_splits
from vision_rl.data.stats import as_text, summarise
from vision_rl.data.verify import Checks, Report, verify, write_good_rows
from vision_rl.files import replacing
from vision_rl.media.images import LIMIT_PIXELS
from vision_rl.tasks import TASK_HELP, get_task

_NOT_COMPARABLE = (
    "note: ScreenSpot is a test set. A score on a part of it, or of a model trained on another part, "
    "is not comparable with published ScreenSpot numbers."
)


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
    _add_convert(commands)
    _add_convert_screenspot(commands)
    _add_convert_boxes(commands)
    _add_split(commands)
    _add_episodes(commands)
    _add_readers(commands)
    _add_verify(commands)
    return parser


def _command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=function)
    return parser


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", help=f"the task of the rows, which need not name it then: {TASK_HELP}")


def _add_convert(commands: Any) -> None:
    text = "a published set by its name (data_utils.py sets lists them), or a file of your own (custom) -> parquet"
    parser = _command(commands, "convert", convert, text)
    parser.add_argument("set", nargs="?", default="vqav2", metavar="SET", help="name of the set (default: %(default)s)")
    parser.add_argument("--questions", type=Path, help="vqav2, ok-vqa: v2_OpenEnded_mscoco_*_questions.json")
    parser.add_argument("--annotations", type=Path, help="v2_mscoco_*_annotations.json; none for the test splits")
    parser.add_argument(
        "--missing-images", choices=vqav2.MISSING_IMAGES, default="error", help="with --questions: what to do then"
    )
    parser.add_argument("--no-image-sizes", action="store_true", help="with --questions: do not read picture headers")
    _add_set_options(parser)
    parser = _command(commands, "convert-custom", convert, "the same as convert custom")
    parser.set_defaults(set="custom", questions=None)
    _add_set_options(parser)
    parser = _command(commands, "sets", sets, "the sets that convert knows; with a name all that is known of that one")
    parser.add_argument("set", nargs="?", metavar="SET", help="one set: its command, layout, source and licence")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/data.md")


def _add_set_options(parser: argparse.ArgumentParser) -> None:
    _add_task(parser)
    parser.add_argument("--input", type=Path, help="file of the set, or a folder of them")
    parser.add_argument("--output", type=Path, required=True, help="parquet file to write")
    parser.add_argument("--image-dir", type=Path, help="where the named pictures are (default: beside --input)")
    for name in ("image", "question", "answer", "choices"):
        parser.add_argument(f"--{name}-field", default="", help=f"column of the {name}, if it has an unusual name")
    parser.add_argument(
        "--answer-as", choices=ANSWER_FORMS, default="", help="what the answer to a question with choices is written as"
    )
    parser.add_argument("--language", default="", help="slake: en or zh; screenspot-pro: en or cn")
    parser.add_argument("--split", default="", help="of a folder or a table with several, such as train or test")
    parser.add_argument("--question", default="", help="radiology sets: the instruction; {label}: a row per finding")
    _add_finding_options(parser)
    parser.add_argument("--frames", type=int, default=8, help="pictures to take of a video (default: %(default)s)")
    parser.add_argument("--max-samples", type=int, help="stop after this many rows")
    parser.add_argument("--source", help="name kept in every row (default: that of the set)")
    parser.add_argument("--allow-unanswered", action="store_true", help="rows without answers (a test split) are fine")
    _add_bad_option(parser)


def _add_finding_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--readers", default="fuse", help="of a picture: fuse (default), union, or the name of one")
    parser.add_argument("--empty", default="keep", help="rows without a box: keep (default), drop or share=0.1")
    parser.add_argument("--frame", type=int, help="of DICOM files with several: which one, from 0")


def convert(args: argparse.Namespace) -> int:
    data_set = get_set(args.set)
    if args.task:
        data_set = dataclasses.replace(data_set, task=args.task)
    if args.questions:
        return convert_vqav2(args)
    if args.input is None:
        option = "--questions (and --annotations) or --input" if args.set == "vqav2" else "--input"
        raise UserError(
            f"{data_set.about.title} is read from {option}: {data_set.about.layout}; get it: {data_set.about.get}"
        )
    if args.max_samples is not None and args.max_samples < 1:
        raise UserError(f"--max-samples {args.max_samples} leaves no rows; give 1 or more")
    source = Source(
        path=args.input,
        image_dir=args.image_dir,
        extract_dir=args.output.parent / "images",
        name=args.source or args.set,
        image_field=args.image_field,
        question_field=args.question_field,
        answer_field=args.answer_field,
        choices_field=args.choices_field,
        answer_as=args.answer_as,
        language=args.language,
        split=args.split,
        frames=args.frames,
        frame=args.frame,
        question=args.question,
        readers=args.readers,
        allow_unanswered=args.allow_unanswered,
    )
    bad = _BadRows(args.skip_bad)
    rows = with_empty(islice(iter_set(data_set, source, on_bad=bad.handler), args.max_samples), args.empty)
    return _write_converted(args.output, rows, bad)


def sets(args: argparse.Namespace) -> int:
    rows = [row for row in set_rows() if not args.set or row["set"] == args.set]
    if args.markdown:
        print(sets_table())
    elif args.json:
        print(json.dumps(rows, indent=2))
    elif args.set:
        get_set(args.set)
        print("\n".join(f"{name + ':':18}{value}" for name, value in rows[0].items()))
    else:
        table = Table("set", "rows", "metric", "licence, account", box=None, header_style="bold")
        for row in rows:
            table.add_row(*(row[str(column.header)] for column in table.columns))
        Console(highlight=False, markup=False).print(table)
        print("data_utils.py sets SET says how one is read")
    return 0


def convert_vqav2(args: argparse.Namespace) -> int:
    if args.set not in ("vqav2", "ok-vqa") or args.image_dir is None:
        raise UserError("--questions is for vqav2 and ok-vqa, and needs --image-dir with COCO's pictures")
    with _bar() as bar:
        task = bar.add_task("questions", total=args.max_samples)
        result = vqav2.convert(
            args.questions,
            args.annotations,
            args.image_dir,
            args.output,
            missing_images=args.missing_images,
            image_sizes=not args.no_image_sizes,
            max_samples=args.max_samples,
            source=args.source or args.set,
            progress=lambda rows: bar.update(task, completed=rows),
        )
    print(
        f"{args.output}: {result.rows} rows" + (f", {result.skipped} without picture left out" * bool(result.skipped))
    )
    return 0


def _add_convert_screenspot(commands: Any) -> None:
    text = "ScreenSpot (Hugging Face parquet, original/v2 JSON, Pro JSON) -> parquet splits by image, or one file"
    parser = _command(commands, "convert-screenspot", convert_screenspot, text)
    parser.add_argument("--input", type=Path, default=Path("data/screenspot"), help="file or directory (%(default)s)")
    parser.add_argument("--image-dir", type=Path, help="pictures of the JSON forms (default: images beside the JSON)")
    parser.add_argument("--form", choices=screenspot.FORMS, default="auto", help="default: by the file's fields")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", type=Path, help="one parquet file with everything, for evaluation")
    where.add_argument("--output-dir", "--local_dir", type=Path, help="train, validation and test.parquet go here")
    parser.add_argument("--max-samples", "--max_samples", type=int, help="a random sample (by --seed) of this size")
    _add_split_options(parser, max_validation=240)
    _add_bad_option(parser)


def convert_screenspot(args: argparse.Namespace) -> int:
    target: Path = args.output.parent if args.output else args.output_dir
    bad = _BadRows(args.skip_bad)
    rows_found = screenspot.iter_rows(
        args.input, image_dir=args.image_dir, extract_dir=target / "images", form=args.form, on_bad=bad.handler
    )
    if args.max_samples is not None and args.max_samples < 1:
        raise UserError(f"--max-samples {args.max_samples} leaves no rows; give 1 or more")
    rows = list(_not_empty(_shown(rows_found, "rows"), args.output or args.output_dir, bad))
    if args.max_samples is not None and args.max_samples < len(rows):
        keep = sorted(random.Random(args.seed).sample(range(len(rows)), args.max_samples))
        rows = [rows[index] for index in keep]
    bad.report()
    if args.output:
        print(f"{args.output}: {write_rows(args.output, rows)} rows")
    else:
        _write_and_print_splits(args, lambda: iter(rows))
        print(_NOT_COMPARABLE)
    return 0


def _add_convert_boxes(commands: Any) -> None:
    text = "boxes of your own (COCO, CSV, JSON, JSONL, parquet; radiology or any grounding set) -> parquet"
    parser = _command(commands, "convert-boxes", convert_boxes, text)
    parser.add_argument("--input", type=Path, required=True, help="annotation file")
    parser.add_argument("--output", type=Path, required=True, help="parquet file to write")
    parser.add_argument("--image-dir", type=Path, help="where the named pictures are (default: beside --input)")
    parser.add_argument("--space", choices=SPACES, help="of the boxes' numbers; COCO is pixels; never guessed")
    parser.add_argument("--box-format", choices=BOX_FORMATS, help="of lists of four numbers; COCO is xywh")
    parser.add_argument(
        "--question",
        default=box_sets.DEFAULT_QUESTION,
        help="instruction where the data has none; with {label} one row per label, {labels} names all (default: %(default)s)",
    )
    parser.add_argument("--image-field", help="column of the picture, if it has an unusual name")
    parser.add_argument("--label-field", help="column of the label, likewise")
    parser.add_argument("--question-field", help="column of the instruction, likewise")
    parser.add_argument(
        "--patient-field", default="patient", help="column of the patient, whose rows a split keeps together"
    )
    parser.add_argument("--reader-field", default="rad_id", help="column of who drew a box (default: %(default)s)")
    parser.add_argument("--split", default="", help="only the records whose column split says so")
    parser.add_argument("--source", default="boxes", help="name of the set, kept in every row (default: %(default)s)")
    _add_finding_options(parser)
    _add_bad_option(parser)


def convert_boxes(args: argparse.Namespace) -> int:
    options = box_sets.BoxOptions(
        image_dir=args.image_dir or args.input.parent,
        extract_dir=args.output.parent / "images",
        space=args.space,
        box_format=args.box_format,
        question=args.question,
        image_field=args.image_field,
        label_field=args.label_field,
        question_field=args.question_field,
        patient_field=args.patient_field,
        reader_field=args.reader_field,
        readers=args.readers,
        split=args.split,
        source=args.source,
        frame=args.frame,
    )
    bad = _BadRows(args.skip_bad)
    rows = with_empty(box_sets.iter_rows(args.input, options, on_bad=bad.handler), args.empty)
    return _write_converted(args.output, rows, bad)


def _add_split(commands: Any) -> None:
    parser = _command(commands, "split", split, "one parquet file -> train, validation and test, by image and patient")
    _add_task(parser)
    parser.add_argument("--file", type=Path, required=True, help="parquet file to split")
    parser.add_argument("--output-dir", type=Path, required=True, help="where the split files go")
    _add_split_options(parser, max_validation=None)


def split(args: argparse.Namespace) -> int:
    _write_and_print_splits(args, lambda: iter_rows(args.file, task=args.task))
    return 0


def _add_split_options(parser: argparse.ArgumentParser, *, max_validation: int | None) -> None:
    parser.add_argument("--shares", default="60/20/20", help="train/validation/test (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default: %(default)s)")
    parser.add_argument(
        "--max-validation",
        type=int,
        default=max_validation,
        help="cap of the validation rows, what is over goes to training (default: %(default)s)",
    )
    parser.add_argument(
        "--group-by",
        default="content",
        help="what makes two images one: their pixels (content, opens every file) or their path; or meta:FIELD, such as "
        "meta:subject_id: rows that share it stay together as well, as those of a patient do (default: %(default)s)",
    )


def _write_and_print_splits(args: argparse.Namespace, rows: Any) -> None:
    kind, _, field = args.group_by.partition(":")
    if args.group_by not in ("content", "path") and not (kind == "meta" and field):
        raise UserError(f"--group-by {args.group_by} is neither content, path nor meta:FIELD")
    written = write_splits(
        rows,
        args.output_dir,
        parse_shares(args.shares),
        seed=args.seed,
        max_validation=args.max_validation,
        by_content=args.group_by != "path",
        group_by=field,
        progress=_shown,
    )
    for path, count in written.items():
        print(f"{path}: {count} rows")


def _add_episodes(commands: Any) -> None:
    text = "rows for a task with an environment: a seed with options each -> train and val parquet"
    parser = _command(commands, "episodes", write_task_episodes, text)
    parser.add_argument("task", metavar="TASK", help=f"{TASK_HELP}; one with an environment")
    parser.add_argument("--envs", nargs="+", default=[], metavar="NAME[:TURNS]", help="which of its environments")
    parser.add_argument("--train", type=int, default=256, help="training episodes (default: %(default)s)")
    parser.add_argument("--val", type=int, default=64, help="validation episodes (default: %(default)s)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="of every reset; JSON or text"
    )
    parser.add_argument("--output", type=Path, help="folder of train.parquet and val.parquet (default: data/TASK)")


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
    parser = _command(commands, "sample", sample, "a random sample of rows -> parquet")
    _add_task(parser)
    parser.add_argument("--file", type=Path, required=True, help="parquet file")
    parser.add_argument("--count", type=int, required=True, help="number of rows")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    parser.add_argument("--output", type=Path, required=True, help="parquet file to write")

    parser = _command(commands, "stats", stats, "what a parquet file holds, in numbers")
    _add_task(parser)
    parser.add_argument("--file", type=Path, required=True, help="parquet file")
    parser.add_argument("--json", action="store_true", help="print JSON")

    parser = _command(commands, "show", show, "a contact sheet (PNG) of pictures with boxes, questions and answers")
    _add_task(parser)
    parser.add_argument("--file", type=Path, required=True, help="parquet file")
    parser.add_argument("--output", type=Path, default=Path("contact_sheet.png"), help="PNG to write (%(default)s)")
    parser.add_argument("--count", type=int, default=16, help="number of rows, chosen at random (default: %(default)s)")
    parser.add_argument("--rows", help="these row numbers instead, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: %(default)s)")
    parser.add_argument("--columns", type=int, default=4, help="pictures in a line (default: %(default)s)")


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
    parser = _command(commands, "verify", verify_file, "check every row, picture and gold answer of a parquet file")
    _add_task(parser)
    parser.add_argument("--file", type=Path, required=True, help="parquet file")
    parser.add_argument(
        "--against", type=Path, nargs="+", default=[], help="other splits: no picture and no patient may be in both"
    )
    parser.add_argument(
        "--image-base-dir", type=Path, help="where relative paths start (default: the file's directory)"
    )
    parser.add_argument("--family", default="unit", help=f"model family or model_type: {', '.join(FAMILIES)}")
    parser.add_argument(
        "--answer-format", choices=("bbox", "click", "native"), help="default: bbox for unit, else the family's native"
    )
    parser.add_argument("--min-pixels", type=int, default=Checks.min_pixels, help="of the processor (%(default)s)")
    parser.add_argument("--max-pixels", type=int, default=Checks.max_pixels, help="of the processor (%(default)s)")
    parser.add_argument("--limit-pixels", type=int, default=LIMIT_PIXELS, help="refuse larger pictures (%(default)s)")
    parser.add_argument("--min-side", type=int, default=Checks.min_side, help="refuse smaller ones (%(default)s)")
    parser.add_argument("--no-images", action="store_true", help="do not open the pictures (finds no leaks by content)")
    parser.add_argument("--workers", type=int, help="threads that open pictures (default: one per core)")
    parser.add_argument("--strict", action="store_true", help="a question whose annotators disagree is bad too")
    parser.add_argument("--allow-unanswered", action="store_true", help="rows without answers (a test split) are fine")
    parser.add_argument("--list", type=int, default=100, help="print at most this many problems (default: %(default)s)")
    parser.add_argument("--report", type=Path, help="write every problem as JSONL: row, id, reason")
    parser.add_argument("--drop-bad", type=Path, metavar="OUT", help="write the good rows to this parquet file")


def verify_file(args: argparse.Namespace) -> int:
    family = args.family if args.family in FAMILIES else family_for(args.family).name
    checks = Checks(
        family=family,
        answer_format=args.answer_format or ("bbox" if family == "unit" else "native"),
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        limit_pixels=args.limit_pixels,
        min_side=args.min_side,
        open_images=not args.no_images,
        workers=args.workers,
        strict=args.strict,
        allow_unanswered=args.allow_unanswered,
        task=args.task,
    )
    report = verify(args.file, checks=checks, image_base_dir=args.image_base_dir, against=args.against, progress=_shown)
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


def _add_bad_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave bad records out and list them, instead of stopping"
    )


class _BadRows:
    """Collects the reasons of records that were left out; without --skip-bad the first one stops the conversion."""

    def __init__(self, skip: bool) -> None:
        self.reasons: list[str] = []
        self.handler = self.reasons.append if skip else None

    def report(self) -> None:
        for reason in self.reasons:
            print(f"left out: {reason}", file=sys.stderr)


def _write_converted(output: Path, rows: Iterator[dict[str, Any]], bad: _BadRows) -> int:
    count = write_rows(output, _not_empty(_shown(rows, "rows"), output, bad))
    bad.report()
    print(f"{output}: {count} rows" + f", {len(bad.reasons)} left out" * bool(bad.reasons))
    return 0


def _not_empty(rows: Iterable[dict[str, Any]], output: Path, bad: _BadRows) -> Iterator[dict[str, Any]]:
    count = 0
    for row in rows:
        count += 1
        yield row
    if not count:
        why = f" (the first one: {bad.reasons[0]})" if bad.reasons else ""
        raise UserError(f"no record could be converted{why}; {output} was not written")


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Where there is no terminal to draw on, rich would still leave an empty line.
    return Progress(*columns, console=Console(stderr=True, quiet=not sys.stderr.isatty()), transient=True)


def _shown(items: Iterable[Any], label: str, total: int = 0) -> Iterator[Any]:
    """The items, with a progress bar on stderr where that is a terminal."""
    with _bar() as bar:
        yield from bar.track(items, total=total or None, description=label)


if __name__ == "__main__":
    main()
