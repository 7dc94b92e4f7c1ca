"""The one row schema of all tasks, and how rows are read and written.

A data set is a parquet file next to its images. Its columns are those of `SCHEMA`; `docs/data.md` describes them.
Reading also takes the shorter files that people write by hand with pandas (`id, image_path, question, answer`), through
`ALIASES`.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vision_rl.answers.choices import choice_letter, choice_list, choices_of
from vision_rl.errors import UserError
from vision_rl.files import replacing
from vision_rl.media.picture_files import picture_file
from vision_rl.rewards.metrics import METRICS
from vision_rl.tasks import Task, episode_of, get_task

MEDIA = ("images", "video")
PATIENT = "patient"
"""The field of `meta` that names the patient of a row, in sets that do: nothing of one patient may be on two sides."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("image_paths", pa.list_(pa.string()), nullable=False),
        pa.field("media", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("choices", pa.list_(pa.string()), nullable=False),
        pa.field("answers", pa.list_(pa.string()), nullable=False),
        pa.field("boxes", pa.list_(pa.list_(pa.float64())), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("image_sizes", pa.list_(pa.list_(pa.int64())), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("meta", pa.string(), nullable=False),
    ]
)

ALIASES = {
    "image_path": "image_paths",
    "image": "image_paths",
    "images": "image_paths",
    "options": "choices",
    "problem": "question",
    "answer": "answers",
    "instruction": "question",
    "bbox": "boxes",
    "ground_truth": "boxes",
}

# Coordinates are divided by the image size in float64: a box at the border may end a rounding error outside 0..1.
UNIT_TOLERANCE = 1e-6
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
            fields, _ = _resolve_aliases(raw)
            found[str(_given(fields.get("task"), _default_task(None, fields.get("boxes"))))] = None
    return list(found) or [_default_task(None, None)]


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


def normalise_row(raw: Mapping[str, Any], *, number: int = 0, task: str | None = None) -> dict[str, Any]:
    """A raw row with aliases resolved, defaults filled in and every field checked; raises `ValueError` with the reason.

    A row that names no task is of `task`, if its truth is of that kind; else of grounding with boxes, of vqa without.
    Fields that the schema does not know are kept in `meta`, where they can serve as breakdown or filter.
    """
    fields, meta = _resolve_aliases(raw)
    boxes = _boxes(fields.get("boxes"))
    choices = choice_list(_strings(choices_of(fields.get("choices")), "choices"))
    answers = _strings(fields.get("answers"), "answers")
    row: dict[str, Any] = {
        "id": str(_given(fields.get("id"), number)),
        "task": _given(fields.get("task"), _default_task(task, boxes)),
        "metric": _given(fields.get("metric"), "") or ("multiple_choice" if choices else ""),
        "image_paths": _strings(fields.get("image_paths"), "image_paths"),
        "media": _given(fields.get("media"), "images"),
        "question": fields.get("question"),
        "choices": choices,
        "answers": [choice_letter(answer, choices) for answer in answers] if choices else answers,
        "boxes": boxes or [],
        "labels": _strings(fields.get("labels"), "labels") or [""] * len(boxes or []),
        "image_sizes": [_size(size) for size in _given(fields.get("image_sizes"), [])],
        "source": str(_given(fields.get("source"), "custom")),
        "meta": {**meta, **_meta(fields.get("meta"))},
    }
    _check(row)
    _check_text(row)
    return row


def _default_task(wanted: str | None, boxes: list[list[float]] | None) -> str:
    """`wanted` if a row with these boxes (None: no such column) can be of it; an empty list is a truth of its own."""
    if wanted is not None and (boxes is not None if get_task(wanted).truth == "boxes" else not boxes):
        return wanted
    return "vqa" if boxes is None else "grounding"


def _check(row: dict[str, Any]) -> None:
    try:
        task = get_task(str(row["task"]))
    except UserError as error:
        raise ValueError(str(error)) from error
    for name, known in (("media", MEDIA), ("metric", ("", *METRICS))):
        if row[name] not in known:
            raise ValueError(f"{name} is {row[name]!r}{_suggestion(row[name], known)}")
    if task.truth == "environment":
        _check_episode(row, task)
    elif not row["image_paths"] or not all(row["image_paths"]):
        raise ValueError("it names no image; fill in image_paths (or image_path)")
    if any(path.startswith("data:") for path in row["image_paths"]):
        raise ValueError(
            "its picture is embedded as a text; data_utils.py convert custom writes such pictures to files"
        )
    if not isinstance(row["question"], str) or not row["question"].strip():
        raise ValueError("its question (or instruction) is empty")
    for column, truth, other in (
        ("boxes", "boxes", "grounding"),
        ("answers", "answers", "vqa"),
        ("choices", "answers", "vqa"),
    ):
        if row[column] and task.truth != truth:
            raise ValueError(f"a {task.name} row has {column}; set its task to {other!r} or remove them")
    if len(row["labels"]) != len(row["boxes"]):
        raise ValueError(f"{len(row['labels'])} labels for {len(row['boxes'])} boxes, expected one label per box")
    if row["image_sizes"] and len(row["image_sizes"]) != len(row["image_paths"]):
        raise ValueError(f"{len(row['image_sizes'])} image_sizes for {len(row['image_paths'])} images")


def _check_episode(row: dict[str, Any], task: Task) -> None:
    """An environment's row is a seed with options; its pictures are the environment's own."""
    seed, options = episode_of(row)
    names, env = task.environment.names, options.get("env", "")
    if names and env not in names:
        raise ValueError(f"meta.env is {env!r}{_suggestion(env, names[:20])}")
    if row["image_paths"]:
        raise ValueError(f"a {task.name} row names pictures, which its environment makes; remove them")
    row["question"] = row["question"] or f"{env or task.name}, seed {seed}"


def _check_text(row: dict[str, Any]) -> None:
    """What JSON can escape and UTF-8 cannot hold, and what is no JSON, is refused before it reaches a file."""
    try:
        texts = (
            row["id"],
            row["question"],
            row["source"],
            *row["image_paths"],
            *row["answers"],
            *row["choices"],
            *row["labels"],
        )
        for text in (*texts, json.dumps(row["meta"], ensure_ascii=False, allow_nan=False)):
            if not text.isascii():
                text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("a text of it holds half a character (a lone surrogate); write it as UTF-8") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"meta cannot be kept as JSON ({error})") from error


def _resolve_aliases(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    fields: dict[str, Any] = {}
    meta: dict[str, Any] = {}
    for name, value in raw.items():
        target = ALIASES.get(name, name)
        if target not in SCHEMA.names:
            if value is None or isinstance(value, (str, int, float, bool)):
                meta[name] = None if isinstance(value, float) and not math.isfinite(value) else value
        elif target != name and raw.get(target) is not None:
            meta[name] = value  # both spellings are filled in: the schema's own counts
        else:
            fields[target] = value
    return fields, meta


def _suggestion(name: Any, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f", expected one of {', '.join(filter(None, known))}"


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _strings(value: Any, name: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)):
        if isinstance(value, (bool, int, float)) and name == "answers":
            return [str(value)]
        raise ValueError(f"{name} is {value!r}, expected a list of strings")
    if not all(isinstance(item, str) for item in value):
        raise ValueError(f"{name} is {list(value)!r}, expected only strings")
    return list(value)


def _boxes(value: Any) -> list[list[float]] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"boxes is {value!r}, expected a list of [x1, y1, x2, y2]")
    if value and all(isinstance(number, (int, float)) for number in value):
        value = [value]
    return [_box(box) for box in value]


def _box(value: Any) -> list[float]:
    if isinstance(value, Mapping) and {"x", "y", "width", "height"} <= value.keys():
        x, y, width, height = (value[key] for key in ("x", "y", "width", "height"))
        value = [x, y, x + width, y + height]
    if not isinstance(value, (list, tuple)) or len(value) != 4 or not all(isinstance(n, (int, float)) for n in value):
        raise ValueError(f"box {value!r} is not four numbers x1, y1, x2, y2")
    box = [float(number) for number in value]
    if not all(math.isfinite(number) for number in box):
        raise ValueError(f"box {box} is not finite")
    if not all(-UNIT_TOLERANCE <= number <= 1 + UNIT_TOLERANCE for number in box):
        raise ValueError(f"box {box} is outside 0..1; pixel boxes need data_utils.py convert-boxes --space pixels")
    x1, y1, x2, y2 = (min(max(number, 0.0), 1.0) for number in box)
    if x1 > x2 or y1 > y2:
        raise ValueError(f"box {box} has its corners swapped, expected x1 <= x2 and y1 <= y2")
    return [x1, y1, x2, y2]


def _size(value: Any) -> list[int]:
    if not isinstance(value, (list, tuple)) or len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
        raise ValueError(f"image size {value!r} is not [width, height] in pixels")
    return list(value)


def _meta(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value, parse_constant=lambda name: None) if value else {}  # NaN is no JSON
        except (ValueError, RecursionError) as error:
            raise ValueError(f"meta is not JSON ({error})") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"meta is {value!r}, expected a JSON object")
    return value


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(kind.field(index).type) for index in range(kind.num_fields))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
