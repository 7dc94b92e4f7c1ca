"""Synthetic data sets in the real schema: parquet files next to PNG images, for both tasks and three splits."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vision_rl.data.schema import write_rows
from vision_rl.errors import UserError
from vision_rl.tiny.scenes import COLORS, COUNTS, SHAPES, TASKS, TEXT_ELEMENTS, Example, draw_example

SPLITS = ("train", "val", "test")
ANNOTATORS = 10
_STAMP = "tasks.json"
_GENERATOR_VERSION = 2
_ANSWER_GROUPS = (tuple(COLORS), SHAPES, COUNTS)


def write_tasks(
    directory: str | Path, task: str, train: int = 384, val: int = 128, test: int = 128, seed: int = 0
) -> dict[str, Path]:
    """Write `directory/task/{train,val,test}.parquet` with their images and return the paths by split.

    No two rows share an image, within or across splits. Nothing is done when the same call has completed before; a
    folder from a call with other numbers, or from one that was cut short, is written anew. Raises `UserError` for an
    unknown task or a negative size.
    """
    if task not in TASKS:
        raise UserError(f"there are no synthetic tasks {task!r}; choose one of {', '.join(TASKS)}")
    sizes = dict(zip(SPLITS, (train, val, test), strict=True))
    if min(sizes.values()) < 0:
        raise UserError(f"the sizes of the synthetic {task} splits are {sizes}; none may be negative")
    folder = Path(directory) / task
    paths = {split: folder / f"{split}.parquet" for split in SPLITS}
    stamp = {"version": _GENERATOR_VERSION, "task": task, "seed": seed, **sizes}
    if _read_stamp(folder) == stamp and all(path.is_file() for path in paths.values()):
        return paths
    (folder / _STAMP).unlink(missing_ok=True)
    shutil.rmtree(folder / "images", ignore_errors=True)
    pictures = _distinct_pictures(task, random.Random(f"{task}-{seed}"))
    for split, size in sizes.items():
        (folder / "images" / split).mkdir(parents=True)
        answer_rng = random.Random(f"{task}-{seed}-{split}-answers")
        rows = []
        for number in range(size):
            example, png = next(pictures)
            image_path = f"images/{split}/{number:05d}.png"
            (folder / image_path).write_bytes(png)
            rows.append(_row(task, f"{split}-{number:05d}", image_path, example, answer_rng))
        write_rows(paths[split], rows)
    (folder / _STAMP).write_text(json.dumps(stamp))
    return paths


def _read_stamp(folder: Path) -> Any:
    try:
        return json.loads((folder / _STAMP).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _distinct_pictures(task: str, rng: random.Random) -> Iterator[tuple[Example, bytes]]:
    """Examples with their PNG files, each picture once."""
    seen: set[bytes] = set()
    while True:
        example = draw_example(task, rng)
        digest = hashlib.sha256(example.image.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield example, _png(example.image)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _row(task: str, name: str, image_path: str, example: Example, rng: random.Random) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": f"tiny-{task}-{name}",
        "task": task,
        "image_paths": [image_path],
        "media": "images",
        "question": example.question,
        "answers": [],
        "boxes": [],
        "labels": [],
        "image_sizes": [list(example.image.size)],
        "source": "synthetic",
    }
    if isinstance(example.answer, str):
        row["answers"] = _annotate(example.answer, rng)
        answer_type = "number" if example.answer in COUNTS else "other"
        row["meta"] = {
            "question_type": example.question_type,
            "answer_type": answer_type,
            "plain": example.plain,
            "theme": example.theme,
        }
    else:
        row["boxes"] = [list(example.answer)]
        row["labels"] = [example.question_type]
        data_type = "text" if example.question_type in TEXT_ELEMENTS else "icon"
        platform = "desktop" if example.image.width > example.image.height else "mobile"
        row["meta"] = {"data_type": data_type, "platform": platform, "plain": example.plain, "theme": example.theme}
    return row


def _annotate(answer: str, rng: random.Random) -> list[str]:
    """Ten annotators: unanimous in five rows of six, else one or two of them wrong, in words that make sense."""
    answers = [answer] * ANNOTATORS
    if rng.random() < 1 / 6:
        others = next([word for word in group if word != answer] for group in _ANSWER_GROUPS if answer in group)
        for position in rng.sample(range(ANNOTATORS), rng.randint(1, 2)):
            answers[position] = rng.choice(others)
    return answers
