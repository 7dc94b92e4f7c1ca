"""The subcommands of data_utils.py that write data sets: `convert` and its variants, `sets` and `split`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vision_rl.answers.choices import ANSWER_FORMS
from vision_rl.data.convert import box_sets, screenspot, vqav2
from vision_rl.data.convert.data_set import Source
from vision_rl.data.convert.data_set import iter_rows as iter_set
from vision_rl.data.convert.empty import with_empty
from vision_rl.data.convert.geometry import BOX_FORMATS, SPACES
from vision_rl.data.convert.sets import get_set, set_rows, sets_table
from vision_rl.data.schema import iter_rows, write_rows
from vision_rl.data.split import parse_shares, write_splits
from vision_rl.errors import UserError
from vision_rl.tasks import TASK_HELP

_NOT_COMPARABLE = (
    "note: ScreenSpot is a test set. A score on a part of it, or of a model trained on another part, "
    "is not comparable with published ScreenSpot numbers."
)


def add_commands(commands: Any) -> None:
    """`convert`, `convert-custom`, `sets`, `convert-screenspot`, `convert-boxes` and `split`, to a parser's subcommands."""
    for add in (_add_convert, _add_convert_screenspot, _add_convert_boxes, _add_split):
        add(commands)


def of_args(cls: Any, args: argparse.Namespace, **own: Any) -> Any:
    """A dataclass filled from the options that bear its fields' names, and from what is given here."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in vars(args).items() if name in names} | own)


def command(commands: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=function)
    return parser


def add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", help=f"task of rows that name none: {TASK_HELP}")


def _add_convert(commands: Any) -> None:
    text = "convert a published set by name (data_utils.py sets lists them), or your own file (custom), to parquet"
    parser = command(commands, "convert", convert, text)
    option = parser.add_argument
    option("set", nargs="?", default="vqav2", metavar="SET", help="name of the set (default: %(default)s)")
    option("--questions", type=Path, help="vqav2, ok-vqa: v2_OpenEnded_mscoco_*_questions.json")
    option("--annotations", type=Path, help="v2_mscoco_*_annotations.json; leave it out for test splits")
    option(
        "--missing-images",
        choices=vqav2.MISSING_IMAGES,
        default="error",
        help="with --questions: what to do about a missing picture",
    )
    option("--no-image-sizes", action="store_true", help="with --questions: do not read picture headers")
    _add_set_options(parser)
    parser = command(commands, "convert-custom", convert, "convert your own file: the same as convert custom")
    parser.set_defaults(set="custom", questions=None)
    _add_set_options(parser)
    parser = command(
        commands, "sets", sets, "list the sets that convert knows; with a name, print everything about one"
    )
    option = parser.add_argument
    option("set", nargs="?", metavar="SET", help="one set: its command, layout, source and licence")
    option("--json", action="store_true", help="print JSON")
    option("--markdown", action="store_true", help="print the table of docs/data.md")


def _add_set_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    add_task(parser)
    option("--input", type=Path, help="the set's file, or a folder of its files")
    option("--output", type=Path, required=True, help="parquet file to write")
    option("--image-dir", type=Path, help="folder of the named pictures (default: the folder of --input)")
    for name in ("image", "question", "answer", "choices"):
        option(f"--{name}-field", default="", help=f"column that holds the {name}, if its name is unusual")
    option(
        "--answer-as",
        choices=ANSWER_FORMS,
        default="",
        help="how the gold answer of a multiple-choice question is written",
    )
    option("--language", default="", help="slake: en or zh; screenspot-pro: en or cn")
    option("--split", default="", help="read only this split of a folder or a table, such as train or test")
    option("--question", default="", help="radiology sets: the instruction; with {label}, one row per finding")
    _add_finding_options(parser)
    option("--frames", type=int, default=8, help="pictures to take from a video (default: %(default)s)")
    option("--max-samples", type=int, help="stop after this many rows")
    option("--source", help="source name kept in every row (default: the set's name)")
    option("--allow-unanswered", action="store_true", help="accept rows without answers (a test split)")
    _add_bad_option(parser)


def _add_finding_options(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option(
        "--readers",
        default="fuse",
        help="how to combine a picture's readers: fuse (default), union, or one reader's name",
    )
    option("--empty", default="keep", help="what to do with rows without a box: keep (default), drop or share=0.1")
    option("--frame", type=int, help="frame of DICOM files with several, counted from 0")


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
    extract_dir = args.output.parent / "images"
    source = of_args(Source, args, path=args.input, extract_dir=extract_dir, name=args.source or args.set)
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
    text = "convert ScreenSpot (Hugging Face parquet, original/v2 JSON, Pro JSON) to parquet splits by image, or to one file"
    parser = command(commands, "convert-screenspot", convert_screenspot, text)
    option = parser.add_argument
    option("--input", type=Path, default=Path("data/screenspot"), help="file or folder (default: %(default)s)")
    option(
        "--image-dir", type=Path, help="folder of the pictures for JSON input (default: images, beside the JSON file)"
    )
    option(
        "--form", choices=screenspot.FORMS, default="auto", help="form of the input (auto: recognised by its fields)"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--output", type=Path, help="write everything to one parquet file, for evaluation")
    where.add_argument(
        "--output-dir",
        "--local_dir",
        type=Path,
        help="write train.parquet, validation.parquet and test.parquet to this folder",
    )
    option("--max-samples", "--max_samples", type=int, help="keep only a random sample of this size, drawn with --seed")
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
    rows = list(_not_empty(shown(rows_found, "rows"), args.output or args.output_dir, bad))
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
    text = "convert your own boxes (COCO, CSV, JSON, JSONL or parquet; radiology or any grounding set) to parquet"
    parser = command(commands, "convert-boxes", convert_boxes, text)
    option = parser.add_argument
    option("--input", type=Path, required=True, help="annotation file")
    option("--output", type=Path, required=True, help="parquet file to write")
    option("--image-dir", type=Path, help="folder of the named pictures (default: the folder of --input)")
    option("--space", choices=SPACES, help="coordinate space of the boxes, never guessed (COCO: pixels)")
    option("--box-format", choices=BOX_FORMATS, help="order of a box's four numbers (COCO: xywh)")
    option(
        "--question",
        default=box_sets.DEFAULT_QUESTION,
        help="instruction of rows without one; {label}: one row per label; {labels}: names all labels (default: %(default)s)",
    )
    option("--image-field", help="column that holds the picture, if its name is unusual")
    option("--label-field", help="column that holds the label, if its name is unusual")
    option("--question-field", help="column that holds the instruction, if its name is unusual")
    option(
        "--patient-field",
        default="patient",
        help="column that names the patient; a split keeps a patient's rows together (default: %(default)s)",
    )
    option("--reader-field", default="rad_id", help="column that names who drew a box (default: %(default)s)")
    option("--split", default="", help="read only records with this value in their column split")
    option("--source", default="boxes", help="source name kept in every row (default: %(default)s)")
    _add_finding_options(parser)
    _add_bad_option(parser)


def convert_boxes(args: argparse.Namespace) -> int:
    folders = {"image_dir": args.image_dir or args.input.parent, "extract_dir": args.output.parent / "images"}
    options = of_args(box_sets.BoxOptions, args, **folders)
    bad = _BadRows(args.skip_bad)
    rows = with_empty(box_sets.iter_rows(args.input, options, on_bad=bad.handler), args.empty)
    return _write_converted(args.output, rows, bad)


def _add_split(commands: Any) -> None:
    parser = command(
        commands, "split", split, "split a parquet file into train, validation and test, by image and patient"
    )
    add_task(parser)
    parser.add_argument("--file", type=Path, required=True, help="parquet file to split")
    parser.add_argument("--output-dir", type=Path, required=True, help="folder for the three files")
    _add_split_options(parser, max_validation=None)


def split(args: argparse.Namespace) -> int:
    _write_and_print_splits(args, lambda: iter_rows(args.file, task=args.task))
    return 0


def _add_split_options(parser: argparse.ArgumentParser, *, max_validation: int | None) -> None:
    option = parser.add_argument
    option("--shares", default="60/20/20", help="percentages of train/validation/test (default: %(default)s)")
    option("--seed", type=int, default=0, help="seed of the shuffle (default: %(default)s)")
    option(
        "--max-validation",
        type=int,
        default=max_validation,
        help="most validation rows; the rest goes to training (default: no limit)"
        if max_validation is None
        else "most validation rows; the rest goes to training (default: %(default)s)",
    )
    option(
        "--group-by",
        default="content",
        help="keep rows together that share an image's pixels (content; opens every file) or its path; meta:FIELD, such as "
        "meta:subject_id, also keeps rows with the same value together (default: %(default)s)",
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
        progress=shown,
    )
    for path, count in written.items():
        print(f"{path}: {count} rows")


def _add_bad_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave out bad records and list them (default: stop at the first)"
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
    count = write_rows(output, _not_empty(shown(rows, "rows"), output, bad))
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


def shown(items: Iterable[Any], label: str, total: int = 0) -> Iterator[Any]:
    """The items, with a progress bar on stderr where that is a terminal."""
    with _bar() as bar:
        yield from bar.track(items, total=total or None, description=label)
