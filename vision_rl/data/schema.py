"""Read rows from parquet files and write them.

A data set is a parquet file next to its images, with the columns of `vision_rl.data.row.SCHEMA`, which docs/data.md describes.
Reading also takes the shorter files that people write by hand with pandas (`id, image_path, question, answer`), through
`ALIASES`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vision_rl.data.row import ALIASES, PATIENT, SCHEMA, default_task, given, normalise_row, resolve_aliases
from vision_rl.errors import UserError
from vision_rl.files import replacing
from vision_rl.media.picture_files import picture_file
from vision_rl.tasks import get_task

_BATCH_ROWS = 2000
_EMBEDDED_BATCH_ROWS = 32


def read_rows(
    path: str | Path, *, task: str | None = None, image_base_dir: str | Path | None = None, limit: int | None = None
) -> list[dict[str, Any]]:
    """Read and validate rows as plain dicts with absolute image paths and `meta` as a dict.

    `task` keeps only the rows of that task, or reads those of one other task as it (`relabels`); `limit` stops after that
    many. Relative image paths are taken from `image_base_dir`, by default the parquet file's directory. Image files are not
    opened here (`data_utils.py verify` does that). Raises `UserError` with the file and the row number (from 0, as
    `DataFrame.iloc`) of the first bad row, and for a file without such rows.
    """
    rows = list(islice(iter_rows(path, task=task, image_base_dir=image_base_dir), limit))
    if not rows and limit != 0:
        raise UserError(_no_rows(path, task))
    return rows


def _no_rows(path: str | Path, task: str | None) -> str:
    if task is None or not open_parquet(path).metadata.num_rows:
        return f"{path} holds no rows; convert a data set into it with data_utils.py"
    there, row = " and ".join(task_names_of(path)), get_task(task)
    return (
        f"{path} holds rows of task {there}, none of {task!r}, whose rows have {row.truth}; train on them with --task "
        f"{there.split()[0]}, or give a file of {task}: data_utils.py convert custom --task {row.spec}"
    )


def relabels(path: str | Path, task: str | None) -> bool:
    """Whether the rows of a file are read as `task`, although they name another: they all name the same one, and what is
    right stands in the same column. Says so on stderr, once for each file."""
    if task is None or "task" not in open_parquet(path).schema_arrow.names:
        return False
    names = task_names_of(path)
    try:
        same = len(names) == 1 and names != [task] and get_task(names[0]).truth == get_task(task).truth
    except UserError:  # a name that nobody knows: its rows say so themselves
        return False
    if same:
        _say_once(f"note: the rows of {path} are of task {names[0]}; they are read as {task}")
    return same


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


def iter_rows(
    path: str | Path, *, task: str | None = None, image_base_dir: str | Path | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of `read_rows` one at a time, in bounded memory."""
    other = {"task": task} if relabels(path, task) else {}
    for number, raw in iter_raw_rows(path):
        try:
            raw = raw | other
            row = normalise_row(raw, number=number, task=task)
        except ValueError as error:
            raise UserError(f"{path}, row {number}: {error} (`data_utils.py verify` lists every bad row)") from error
        if task is None or row["task"] == task:
            yield with_absolute_paths(row, image_base_dir or Path(path).parent)


def task_names_of(path: str | Path) -> list[str]:
    """The tasks of a file's rows, each once, in order; of a row that names none, as `normalise_row` decides."""
    found: dict[str, None] = {}
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        columns = [name for name in names if name == "task" or ALIASES.get(name, name) == "boxes"]
        for _, raw in numbered_rows(file, path, batch_rows=_BATCH_ROWS, columns=columns) if columns else ():
            fields, _ = resolve_aliases(raw)
            found[str(given(fields.get("task"), default_task(None, fields.get("boxes"))))] = None
    return list(found) or [default_task(None, None)]


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write rows atomically (the target appears complete or not at all) and return how many there were.

    Absolute image paths are stored relative to the parquet file's directory; relative ones are taken to be so already.
    `meta` may be a dict or a JSON string. Raises `UserError` for a row that does not fit the schema.
    """
    return write_row_sets({Path(path): rows})[Path(path)]


def write_row_sets(sets: Mapping[Path, Iterable[Mapping[str, Any]]]) -> dict[Path, int]:
    """`write_rows` for several files that belong together: none of them is replaced before all are complete."""
    with contextlib.ExitStack() as stack:
        return {path: _write(stack.enter_context(replacing(path)), path, rows) for path, rows in sets.items()}


def _write(temporary: Path, path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for number, raw in enumerate(rows):
            try:
                row = normalise_row(raw, number=number)
            except ValueError as error:
                raise UserError(f"cannot write row {number} to {path}: {error}") from error
            row["image_paths"] = [stored_path(image, path.parent) for image in row["image_paths"]]
            row["meta"] = json.dumps(row["meta"], ensure_ascii=False)
            batch.append(row)
            count += 1
            if len(batch) == _BATCH_ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
    return count


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """Open a parquet file, or raise `UserError` that says why not."""
    if not Path(path).is_file():
        state = "is not a file" if Path(path).exists() else "does not exist"
        raise UserError(f"{path} {state}; create one with data_utils.py convert")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is not a readable parquet file ({error}); convert it again") from error


def iter_raw_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 0, columns as plain Python values) in bounded memory; nothing is validated.

    Pictures that a column embeds (Hugging Face's bytes, one or a list) are written into `images` beside the file, each
    once, where no other column names them. Other columns with bytes are left out.
    """
    with open_parquet(path) as file:
        columns = [field.name for field in file.schema_arrow if not _holds_bytes(field.type)]
        embedded = [field.name for field in file.schema_arrow if _holds_bytes(field.type)]
        pictures = next((name for name in embedded if ALIASES.get(name, name) == "image_paths"), None)
        if pictures is None or "image_paths" in {ALIASES.get(name, name) for name in columns}:
            _require_columns(path, columns)
            yield from numbered_rows(file, path, batch_rows=_BATCH_ROWS, columns=columns)
            return
        _require_columns(path, [*columns, pictures])
        for number, row in numbered_rows(file, path, batch_rows=_EMBEDDED_BATCH_ROWS, columns=[*columns, pictures]):
            value, folder = row.pop(pictures), Path(path).parent
            items = value if isinstance(value, list) else [value]
            where = f"{path}, row {number}"
            yield (
                number,
                {**row, "image_paths": [str(picture_file(i, folder, folder / "images", where)) for i in items]},
            )


def numbered_rows(
    file: pq.ParquetFile, path: str | Path, *, batch_rows: int, columns: list[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(row number from 0, row) of an open file, `batch_rows` in memory at a time; `UserError` where it is damaged."""
    number = 0
    try:
        for batch in file.iter_batches(batch_size=batch_rows, columns=columns):
            for row in batch.to_pylist():
                yield number, row
                number += 1
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged after row {number} ({error}); convert or download it again") from error


def _require_columns(path: str | Path, columns: Sequence[str]) -> None:
    have = {ALIASES.get(name, name) for name in columns}
    for name in ("image_paths", "question"):
        if name not in have and "seed" not in have:  # an environment's rows need no more than a seed
            names = " or ".join([name, *(alias for alias, target in ALIASES.items() if target == name)])
            raise UserError(
                f"{path} has no column {names}; its columns are {', '.join(columns) or 'none'}: "
                "data_utils.py converts other layouts"
            )


def group_of(row: Mapping[str, Any], field: str = "") -> str | None:
    """What keeps rows together beside their pictures: the patient (`meta.patient`, within its source), or another field."""
    value = row["meta"].get(field or PATIENT)
    return None if value is None else f"{field or PATIENT} {value} of {row['source']}"


def with_absolute_paths(row: dict[str, Any], base_dir: str | Path) -> dict[str, Any]:
    """The same row with `image_paths` made absolute from `base_dir`."""
    base = os.path.abspath(base_dir)
    return {**row, "image_paths": [os.path.normpath(os.path.join(base, image)) for image in row["image_paths"]]}


def stored_path(image: str, directory: str | Path) -> str:
    """How an image path is written into a parquet file of `directory`: relative, so that the folder can be moved.

    A file that shares nothing but the root with the directory keeps its absolute path.
    """
    if not os.path.isabs(image):
        return Path(image).as_posix()
    directory = os.path.abspath(directory)
    if os.path.commonpath([directory, image]) == os.path.sep:
        return image
    return Path(os.path.relpath(image, directory)).as_posix()


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
