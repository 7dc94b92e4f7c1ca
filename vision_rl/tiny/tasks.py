"""Synthetic data sets in the real schema: parquet files next to PNG images, in three splits, for every task that draws some."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from vision_rl.data.schema import write_rows
from vision_rl.errors import UserError
from vision_rl.tasks import get_task
from vision_rl.tiny.scenes import COLORS, COUNTS, SHAPES, TEXT_ELEMENTS, draw_example

SPLITS = ("train", "val", "test")
ANNOTATORS = 10
_STAMP = "tasks.json"
_GENERATOR_VERSION = 3
Draw = Callable[[random.Random], tuple[Image.Image, dict[str, Any]]]
_ANSWER_GROUPS = (tuple(COLORS), SHAPES, COUNTS)


def write_tasks(
    directory: str | Path, task: str, train: int = 384, val: int = 128, test: int = 128, seed: int = 0
) -> dict[str, Path]:
    """Write `directory/task/{train,val,test}.parquet` with their images and return the paths by split.

    No two rows share an image, within or across splits. Nothing is done when the same call has completed before; a
    folder from a call with other numbers, or from one that was cut short, is written anew. Raises `UserError` for an
    unknown task, one without synthetic rows, or a negative size.
    """
    draw = get_task(task).part("synthetic")
    if draw is None:
        raise UserError(
            f"--task {task} has no synthetic rows; name files with --data-path and --val-data-path, or --data"
        )
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
    examples = _distinct(draw, random.Random(f"{task}-{seed}"))
    for split, size in sizes.items():
        (folder / "images" / split).mkdir(parents=True)
        rows = []
        for number in range(size):
            picture, fields = next(examples)
            image_path = f"images/{split}/{number:05d}.png"
            picture.save(folder / image_path, compress_level=1)
            rows.append(
                {
                    "id": f"tiny-{task}-{split}-{number:05d}",
                    "task": task,
                    "image_paths": [image_path],
                    "image_sizes": [list(picture.size)],
                    "source": "synthetic",
                    **fields,
                }
            )
        write_rows(paths[split], rows)
    (folder / _STAMP).write_text(json.dumps(stamp))
    return paths


def _read_stamp(folder: Path) -> Any:
    try:
        return json.loads((folder / _STAMP).read_text())
    except (FileNotFoundError, ValueError):
        return None


def _distinct(draw: Draw, rng: random.Random) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Pictures with the fields of their rows, each picture once."""
    seen: set[bytes] = set()
    while True:
        picture, fields = draw(rng)
        digest = hashlib.sha256(picture.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield picture, fields


def vqa_example(rng: random.Random) -> tuple[Image.Image, dict[str, Any]]:
    """A picture of shapes, and a question with the answers of ten annotators."""
    example = draw_example("vqa", rng)
    assert isinstance(example.answer, str)
    # The annotators' mistakes are a property of the picture, so that they do not change which picture is drawn next.
    noise = random.Random(hashlib.sha256(example.image.tobytes()).digest())
    meta = {
        "question_type": example.question_type,
        "answer_type": "number" if example.answer in COUNTS else "other",
        "plain": example.plain,
        "theme": example.theme,
    }
    return example.image, {
        "question": example.question,
        "answers": _annotate(example.answer, noise),
        "meta": meta,
    }


def grounding_example(rng: random.Random) -> tuple[Image.Image, dict[str, Any]]:
    """A screen, and an instruction with the box of the element that it names."""
    example = draw_example("grounding", rng)
    meta = {
        "data_type": "text" if example.question_type in TEXT_ELEMENTS else "icon",
        "platform": "desktop" if example.image.width > example.image.height else "mobile",
        "plain": example.plain,
        "theme": example.theme,
    }
    return example.image, {
        "question": example.question,
        "boxes": [list(example.answer)],
        "labels": [example.question_type],
        "meta": meta,
    }


def _annotate(answer: str, rng: random.Random) -> list[str]:
    """Ten annotators: unanimous in five rows of six, else one or two of them wrong, in words that make sense."""
    answers = [answer] * ANNOTATORS
    if rng.random() < 1 / 6:
        others = next([word for word in group if word != answer] for group in _ANSWER_GROUPS if answer in group)
        for position in rng.sample(range(ANNOTATORS), rng.randint(1, 2)):
            answers[position] = rng.choice(others)
    return answers
