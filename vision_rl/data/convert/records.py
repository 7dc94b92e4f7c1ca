"""Read CSV, JSON, JSONL and parquet files as plain records."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from vision_rl.data.convert.refer import refer_records
from vision_rl.data.row import normalise_row
from vision_rl.data.schema import numbered_rows, open_parquet
from vision_rl.errors import UserError
from vision_rl.media.images import too_narrow

Record = dict[str, Any]
OnBad = Callable[[str], None]
Unpack = Callable[[dict[str, Any]], list[Record] | None]
Item = TypeVar("Item")
_PARQUET_BATCH = 32
# test-00000-of-00001.parquet, and train.json
_SPLIT = re.compile(r"(.+?)-\d{5}-of-\d{5}|(?:train|val|validation|test)(?=\.)")
FOLDERS = ("data", "DocVQA", "InfographicVQA", "ScienceQA-IMG")
"""Folders in which Hugging Face repositories have their parquet files."""
_PARQUET = ("*.parquet", *(f"{folder}/*.parquet" for folder in FOLDERS))
_PATTERNS = ("*.p", *_PARQUET, "*.jsonl", "*.json", "annotations/*.json", "metadata/*.json", "*.csv")


class Filled(dict[str, Any]):
    """The fields of a record that hold something; `empty` names the others."""

    def __init__(self, record: Record) -> None:
        super().__init__((key, value) for key, value in record.items() if not _is_empty(value))
        self.empty = record.keys() - self.keys()


def converted(
    items: Iterable[Item], convert: Callable[[Item], Record], on_bad: OnBad | None = None, workers: int = 1
) -> Iterator[Record]:
    """Yield `convert(item)`; the message of a `UserError` goes to `on_bad`, and is raised where there is none.

    workers: threads that convert, in the order of the items and a few ahead.
    """
    with ThreadPoolExecutor(workers) as pool:
        items = iter(items)
        while batch := [pool.submit(convert, item) for item in islice(items, 16 * workers)]:
            for future in batch:
                try:
                    row = future.result()
                except UserError as error:
                    if on_bad is None:
                        for other in batch:
                            other.cancel()
                        raise UserError(f"{error} (--skip-bad leaves such rows out and lists them)") from error
                    on_bad(str(error))
                else:
                    yield row


def checked(row: Record, where: str) -> Record:
    """The row itself if it fits the schema and models take its pictures; `UserError` starting with `where` otherwise."""
    try:
        normalise_row(row)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    for image, (width, height) in zip(row["image_paths"], row.get("image_sizes") or (), strict=False):
        if reason := too_narrow(width, height):
            raise UserError(f"{where}: {image} {reason}")
    return row


def extra_fields(record: Record, known: Collection[str]) -> Record:
    """The fields that are not the row's own, for `meta`: texts, finite numbers, and lists of them."""
    return {name: value for name, value in record.items() if name not in known and _is_plain(value)}


def source_files(source: Path, marks: Sequence[tuple[str, ...]], title: str, split: str = "") -> list[Path]:
    """The file itself, or the files of a set in a folder: the first kind of `_PATTERNS` of which there are any.

    Where they are of several splits, by their names, `split` says which to take: one file must not mix them.

    A parquet file belongs to the set if it has, of each of `marks`, one of the columns: other people's files and our own
    outputs may lie beside it. Raises `UserError` naming the folder, and why a parquet file in it was passed over.
    """
    if not source.is_dir():
        return [source]
    passed_over = ""
    for pattern in _PATTERNS:
        fitting = []
        for file in sorted(source.glob(pattern)):
            lacks = _lacking(file, marks) if file.suffix == ".parquet" else ""
            if not lacks:
                fitting.append(file)
            passed_over = passed_over or (lacks and f" ({file.name} has no column {lacks})")
        if fitting:
            return _of_split(fitting, split, source)
    raise UserError(f"{source} holds no file of {title}{passed_over}; name the file with --input")


def _of_split(files: list[Path], split: str, source: Path) -> list[Path]:
    if files[0].suffix == ".p":  # one file holds all splits, by its authors' own division of the pictures
        if len(files) > 1:
            raise UserError(f"{source} holds {' and '.join(file.name for file in files)}; name one with --input")
        return files
    by_split: dict[str, list[Path]] = {}
    for file in files:
        found = _SPLIT.match(file.name)
        by_split.setdefault((found.group(1) or found.group()) if found else "", []).append(file)
    if split and split not in by_split:
        raise UserError(f"{source} has no split {split}; it has {', '.join(filter(None, by_split)) or 'none'}")
    if not split and len(by_split) > 1:
        raise UserError(f"{source} holds the splits {', '.join(filter(None, by_split))}; choose one with --split")
    return by_split[split] if split else files


def _lacking(file: Path, marks: Sequence[tuple[str, ...]]) -> str:
    with open_parquet(file) as opened:
        columns = set(opened.schema_arrow.names)
    return next((" or ".join(names) for names in marks if columns.isdisjoint(names)), "")


def iter_records(path: str | Path, unpack: Unpack | None = None, split: str = "") -> Iterator[tuple[int, Record]]:
    """Yield (number from 0, record) of a CSV, TSV, JSON (list of objects), JSONL, parquet or refer file, by its suffix.

    `unpack` takes the list out of a JSON file that is an object, or gives None if that has none; `split` says which
    records of a refer file are meant. Empty CSV cells and NaN
    are left out of a record. Raises `UserError` for a file that is not of that kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not there, or not a file; check --input")
    readers = {
        ".csv": _csv,
        ".tsv": _csv,
        ".json": lambda file: _json(file, unpack),
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".parquet": lambda file: (record for _, record in parquet_records(file)),
        ".p": lambda file: refer_records(file, split),
    }
    if path.suffix.lower() not in readers:
        raise UserError(f"{path} has none of the known suffixes {', '.join(readers)}; export it as one of them")
    for number, record in enumerate(readers[path.suffix.lower()](path)):
        if not isinstance(record, dict):
            raise UserError(f"{path}, record {number} is not an object with named fields")
        yield number, Filled(record)


def as_list(value: Any) -> list[Any]:
    """A list from itself, from a single value, or from the JSON of a CSV cell."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            decoded = json.loads(value)
        except ValueError:
            return [value]
        return decoded if isinstance(decoded, list) else [value]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def parquet_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Yield (number from 0, row) with embedded bytes, a few rows in memory at a time."""
    with open_parquet(path) as file:
        yield from numbered_rows(file, path, batch_rows=_PARQUET_BATCH)


def read_json(path: Path) -> Any:
    """The value of a JSON file; `UserError` when it is not one."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}); check or download it again") from error


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))


def _csv(path: Path) -> Iterator[Record]:
    csv.field_size_limit(2**31 - 1)  # Python's own is 131,072 characters, less than a picture in base64
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, dialect="excel-tab" if path.suffix.lower() == ".tsv" else "excel")
            for record in reader:
                if None in record:  # cut off, an answer with a comma would be another answer
                    raise UserError(
                        f"{path}, line {reader.line_num} has more cells than the header; put a cell with a comma in "
                        "quotes"
                    )
                yield record
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a readable CSV file ({error}); save it as UTF-8 CSV") from error


def _json(path: Path, unpack: Unpack | None) -> Iterator[Any]:
    value = read_json(path)
    if isinstance(value, dict) and unpack:
        value = unpack(value)
    if not isinstance(value, list):
        raise UserError(f"{path} is not a JSON list of objects")
    yield from value


def _json_lines(path: Path) -> Iterator[Any]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise UserError(f"{path}, line {number + 1} is not JSON ({error}); correct it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a readable JSONL file ({error})") from error
