"""One row: its columns, the names under which people give them, and every check of their values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vision_rl.answers.choices import choice_letter, choice_list, choices_of
from vision_rl.errors import UserError, near
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


def normalise_row(raw: Mapping[str, Any], *, number: int = 0, task: str | None = None) -> dict[str, Any]:
    """A raw row with aliases resolved, defaults filled in and every field checked; raises `ValueError` with the reason.

    A row that names no task is of `task`, if its truth is of that kind; else of grounding with boxes, of vqa without.
    Fields that the schema does not know are kept in `meta`, where they can serve as breakdown or filter.
    """
    fields, meta = resolve_aliases(raw)
    boxes = _boxes(fields.get("boxes"))
    choices = choice_list(_strings(choices_of(fields.get("choices")), "choices"))
    answers = _strings(fields.get("answers"), "answers")
    row: dict[str, Any] = {
        "id": str(given(fields.get("id"), number)),
        "task": given(fields.get("task"), default_task(task, boxes)),
        "metric": given(fields.get("metric"), "") or ("multiple_choice" if choices else ""),
        "image_paths": _strings(fields.get("image_paths"), "image_paths"),
        "media": given(fields.get("media"), "images"),
        "question": fields.get("question"),
        "choices": choices,
        "answers": [choice_letter(answer, choices) for answer in answers] if choices else answers,
        "boxes": boxes or [],
        "labels": _strings(fields.get("labels"), "labels") or [""] * len(boxes or []),
        "image_sizes": [_size(size) for size in given(fields.get("image_sizes"), [])],
        "source": str(given(fields.get("source"), "custom")),
        "meta": {**meta, **_meta(fields.get("meta"))},
    }
    _check(row)
    _check_text(row)
    return row


def default_task(wanted: str | None, boxes: list[list[float]] | None) -> str:
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


def resolve_aliases(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
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
    nearest = near(str(name), known)
    return f"; did you mean {nearest!r}?" if nearest else f", expected one of {', '.join(filter(None, known))}"


def given(value: Any, default: Any) -> Any:
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
