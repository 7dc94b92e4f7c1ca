"""Write synthetic data sets in the real schema: parquet files beside PNG images, in three splits."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from vision_rl.data.schema import write_rows
from vision_rl.errors import UserError
from vision_rl.media.images import pixel_hash
from vision_rl.tasks import get_task
from vision_rl.tiny.scenes import COLORS, COUNTS, SHAPES, TEXT_ELEMENTS, draw_example

SPLITS = ("train", "val", "test")
PATIENCE = 500
"""Draws on end without a new picture after which a task has no more of them."""
LEAST = 20
"""Fewer different pictures than this are no data set: 12 rows to train on, 4 to validate, 4 to test."""
ANNOTATORS = 10
_STAMP = "tasks.json"
_GENERATOR_VERSION = 3
Draw = Callable[[random.Random], tuple[Image.Image, dict[str, Any]]]
_ANSWER_GROUPS = (tuple(COLORS), SHAPES, COUNTS)


def write_tasks(
    directory: str | Path, task: str, train: int = 384, val: int = 128, test: int = 128, seed: int = 0
) -> dict[str, Path]:
    """Write `directory/task/{train,val,test}.parquet` with their images and return the paths by split.

    No two rows share an image, within or across splits. Where the task draws fewer different pictures than rows are wanted,
    the splits share what there is in the same proportions, and a line on stderr says how many. Nothing is done when the same
    call has completed before with the same code; a folder from another call, from code that was edited since, or from a
    call that was cut short is written anew. Raises `UserError` for an unknown task, one without synthetic rows or with too
    few of them, one whose code fails, or a negative size.
    """
    row = get_task(task)
    draw = row.part("synthetic")
    if draw is None:
        raise UserError(
            f"--task {task} has no synthetic rows; name files with --data-path and --val-data-path, or --data"
        )
    sizes = dict(zip(SPLITS, (train, val, test), strict=True))
    if min(sizes.values()) < 0:
        raise UserError(f"the sizes of the synthetic {task} splits are {sizes}; none may be negative")
    folder = Path(directory) / task
    paths = {split: folder / f"{split}.parquet" for split in SPLITS}
    stamp = {"version": _GENERATOR_VERSION, "task": task, "seed": seed, "code": _code_digest(row.source, draw), **sizes}
    kept = _read_stamp(folder)
    if not (stamp.items() <= kept.items() and all(path.is_file() for path in paths.values())):
        (folder / _STAMP).unlink(missing_ok=True)
        kept = stamp | {"written": _write(folder, paths, task, draw, random.Random(f"{task}-{seed}"), sizes)}
        (folder / _STAMP).write_text(json.dumps(kept))
    if kept["written"] != sizes:
        shares = " / ".join(map(str, kept["written"].values()))
        print(
            f"note: the synthetic part of task {task} draws {sum(kept['written'].values())} different pictures, "
            f"{sum(sizes.values())} were wanted: {shares} rows in {' / '.join(SPLITS)}",
            file=sys.stderr,
        )
    return paths


def _write(
    folder: Path, paths: dict[str, Path], task: str, draw: Draw, rng: random.Random, sizes: dict[str, int]
) -> dict[str, int]:
    """Draw, and write rows and images; returns the sizes of the splits, smaller ones where there are too few pictures."""
    images = folder / "images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir(parents=True)
    drawn = []
    for number, (picture, fields) in enumerate(islice(_distinct(draw, rng, task), sum(sizes.values()))):
        picture.save(images / f"{number}.png", compress_level=1)
        drawn.append((images / f"{number}.png", list(picture.size), fields))
    sizes = _shares(sizes, len(drawn), task)
    rest = iter(drawn)
    for split, size in sizes.items():
        (images / split).mkdir()
        rows = []
        for number, (image, image_size, fields) in enumerate(islice(rest, size)):
            image_path = f"images/{split}/{number:05d}.png"
            image.rename(folder / image_path)
            rows.append(
                {
                    "id": f"tiny-{task}-{split}-{number:05d}",
                    "task": task,
                    "image_paths": [image_path],
                    "image_sizes": [image_size],
                    "source": "synthetic",
                    **fields,
                }
            )
        write_rows(paths[split], rows)
    return sizes


def _shares(sizes: dict[str, int], pictures: int, task: str) -> dict[str, int]:
    """The sizes of the splits where only so many different pictures can be drawn; `UserError` for fewer than `LEAST`."""
    wanted = sum(sizes.values())
    if pictures == wanted:
        return sizes
    if pictures < min(LEAST, wanted):
        raise UserError(
            f"the synthetic part of task {task} draws only {pictures} different picture{'s' * (pictures != 1)} "
            f"({PATIENCE} more draws brought no new one), and at least {min(LEAST, wanted)} are needed: let it vary "
            "positions, sizes or colours, or name files with --data-path and --val-data-path"
        )
    shares = {split: size * pictures // wanted for split, size in sizes.items()}
    shares["train"] += pictures - sum(shares.values())
    return shares


def _read_stamp(folder: Path) -> dict[str, Any]:
    try:
        stamp = json.loads((folder / _STAMP).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def _code_digest(source: str, draw: Draw) -> str:
    """Of the task's file, and of the one that draws: an edited question must not be asked in its old form."""
    files = {source, inspect.getsourcefile(inspect.unwrap(getattr(draw, "func", draw))) or ""} - {""}
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in sorted(files))).hexdigest()


def _distinct(draw: Draw, rng: random.Random, task: str) -> Iterator[tuple[Image.Image, dict[str, Any]]]:
    """Pictures with the fields of their rows, each picture once, until `PATIENCE` draws on end bring no new one."""
    seen: set[str] = set()
    repeats = 0
    while repeats < PATIENCE:
        try:
            picture, fields = draw(rng)
            digest, fields = pixel_hash(picture.convert("RGB")), dict(fields)
        except UserError:
            raise
        except Exception as error:  # whatever a user's own code raises
            line = traceback.extract_tb(error.__traceback__)[-1]
            raise UserError(
                f"the synthetic part of task {task} fails: {type(error).__name__}: {error} ({line.filename}:{line.lineno}); "
                "it must return a PIL picture and a dict with the fields of its row"
            ) from error
        if digest in seen:
            repeats += 1
            continue
        seen.add(digest)
        repeats = 0
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
    return example.image, {"question": example.question, "answers": annotate(example.answer, noise), "meta": meta}


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


def annotate(answer: str, rng: random.Random) -> list[str]:
    """Ten annotators: unanimous in five rows of six, else one or two of them wrong, in words that make sense."""
    answers = [answer] * ANNOTATORS
    if rng.random() < 1 / 6:
        others = next([word for word in group if word != answer] for group in _ANSWER_GROUPS if answer in group)
        for position in rng.sample(range(ANNOTATORS), rng.randint(1, 2)):
            answers[position] = rng.choice(others)
    return answers
