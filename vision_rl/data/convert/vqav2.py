"""Convert VQAv2's official question and annotation files as a stream.

Layout (visualqa.org): `v2_OpenEnded_mscoco_train2014_questions.json` holds `questions: [{image_id, question,
question_id}]`, `v2_mscoco_train2014_annotations.json` holds `annotations: [{question_type, multiple_choice_answer,
answers: [{answer, answer_confidence, answer_id}] * 10, image_id, answer_type, question_id}]`; the pictures are COCO's,
`COCO_train2014_000000262148.jpg`. All ten answers are kept: the official accuracy needs them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from vision_rl.data.convert.json_stream import iter_array
from vision_rl.data.row import SCHEMA
from vision_rl.data.schema import stored_path
from vision_rl.errors import UserError
from vision_rl.files import replacing
from vision_rl.media.images import image_size

MISSING_IMAGES = ("error", "skip", "keep")
_BATCH_ROWS = 10_000
_COCO_NAME = re.compile(r"(?P<prefix>.*?)(?P<number>\d{12})\.(?:jpg|jpeg|png)", re.IGNORECASE)
_META_FIELDS = ("question_id", "image_id", "question_type", "answer_type", "multiple_choice_answer")


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote and left out."""

    rows: int
    skipped: int


def convert(
    questions: str | Path,
    annotations: str | Path | None,
    image_dir: str | Path,
    output: str | Path,
    *,
    missing_images: str = "error",
    image_sizes: bool = True,
    max_samples: int | None = None,
    source: str = "vqav2",
    progress: Callable[[int], None] = lambda rows: None,
) -> Conversion:
    """Write the parquet file of one VQAv2 split; memory grows with the number of questions only (about 300 bytes each).

    Without `annotations` (the test splits publish none) the rows have no answers. `missing_images` says what happens to
    a question whose picture is not in `image_dir`: "error" stops, "skip" leaves the row out, "keep" writes it unseen.
    `image_sizes` reads each picture's header once. Raises `UserError` for files that are not such a split.
    """
    if missing_images not in MISSING_IMAGES:
        raise UserError(f"missing_images is {missing_images!r}; choose one of {', '.join(MISSING_IMAGES)}")
    if max_samples is not None and max_samples < 1:
        raise UserError(f"--max-samples {max_samples} leaves no rows; give 1 or more")
    images = _ImageFolder(Path(image_dir), Path(output).parent, read_sizes=image_sizes)
    items = _joined(questions, annotations)
    if max_samples is not None:
        items = islice(items, max_samples)
    kept = skipped = 0
    with replacing(output) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        while batch := list(islice(items, _BATCH_ROWS)):
            found = [item for item in batch if missing_images == "keep" or images.has(item["image_id"])]
            if missing_images == "error" and len(found) < len(batch):
                missing = next(item["image_id"] for item in batch if not images.has(item["image_id"]))
                raise UserError(
                    f"{image_dir} lacks the picture of image_id {missing}; finish the download, or pass "
                    "--missing-images skip to leave such questions out"
                )
            kept += len(found)
            skipped += len(batch) - len(found)
            writer.write_table(_table(found, images, source))
            progress(kept)
        if not kept:
            raise UserError(f"no question of {questions} can be converted; check {image_dir} and the annotation file")
    return Conversion(kept, skipped)


def _joined(questions: str | Path, annotations: str | Path | None) -> Iterator[dict[str, Any]]:
    """Annotations with their question's text, joined by question_id; the two files need not be in the same order."""
    asked: dict[int, tuple[int, str]] = {}
    for number, item in enumerate(iter_array(questions, "questions")):
        try:
            question_id = item["question_id"]
            if question_id in asked:
                raise UserError(f"{questions}, question {number}: question_id {question_id} occurs twice")
            image_id, text = item["image_id"], item["question"]
            if not isinstance(image_id, int) or not isinstance(text, str):
                raise TypeError("image_id is no whole number, or question no text")
            asked[question_id] = (image_id, text)
        except KeyError as error:
            raise UserError(f"{questions}, question {number} has no {error}; this is not a VQAv2 file") from error
        except TypeError as error:
            raise UserError(f"{questions}, question {number} is not VQAv2's ({error}); download it again") from error
    if annotations is None:
        for question_id, (image_id, text) in asked.items():
            yield {"question_id": question_id, "image_id": image_id, "question": text, "answers": []}
        return
    for number, item in enumerate(iter_array(annotations, "annotations")):
        try:
            item["image_id"], item["question"] = asked.pop(item["question_id"])
        except KeyError as error:
            raise UserError(
                f"{annotations}, annotation {number}: no unanswered question {error} in {questions}; "
                "take both files from the same split"
            ) from error
        except TypeError as error:
            raise UserError(
                f"{annotations}, annotation {number} is not VQAv2's ({error}); download it again"
            ) from error
        yield item
    if asked:
        raise UserError(
            f"{annotations} has no annotation for {len(asked)} questions of {questions} (first: {next(iter(asked))}); "
            "take both files from the same split"
        )


def _table(items: list[dict[str, Any]], images: _ImageFolder, source: str) -> pa.Table:
    try:
        columns: dict[str, list[Any]] = {
            "id": [str(item["question_id"]) for item in items],
            "task": ["vqa"] * len(items),
            "metric": ["vqa"] * len(items),
            "image_paths": [[images.stored(item["image_id"])] for item in items],
            "media": ["images"] * len(items),
            "question": [item["question"] for item in items],
            "choices": [[]] * len(items),
            "answers": [[answer["answer"] for answer in item["answers"]] for item in items],
            "boxes": [[]] * len(items),
            "labels": [[]] * len(items),
            "image_sizes": [images.sizes(item["image_id"]) for item in items],
            "source": [source] * len(items),
            "meta": [orjson.dumps({key: item[key] for key in _META_FIELDS if key in item}).decode() for item in items],
        }
        return pa.table(columns, schema=SCHEMA)
    except (KeyError, TypeError, ValueError, pa.ArrowInvalid, pa.ArrowTypeError) as error:
        first = items[0].get("question_id")
        raise UserError(
            f"an annotation after question_id {first} is not in VQAv2's layout ({error!r}); download the file again"
        ) from error


class _ImageFolder:
    """COCO pictures by image_id, found by the 12-digit number in their names with one reading of the directory."""

    def __init__(self, directory: Path, output_dir: Path, *, read_sizes: bool) -> None:
        if not directory.is_dir():
            raise UserError(
                f"image directory {directory} does not exist; run download_data.sh vqav2 or fix --image-dir"
            )
        self._directory = os.path.abspath(directory)
        self._read_sizes = read_sizes
        self._names: dict[int, str] = {}
        for name in os.listdir(directory):
            if found := _COCO_NAME.fullmatch(name):
                self._names[int(found["number"])] = name
        self._prefix = _split_prefix(directory, self._names)
        self._stored = stored_path(self._directory, output_dir)
        self._sizes: dict[int, list[list[int]]] = {}

    def has(self, image_id: int) -> bool:
        return image_id in self._names

    def stored(self, image_id: int) -> str:
        name = self._names.get(image_id) or f"{self._prefix}{image_id:012d}.jpg"
        return f"{self._stored}/{name}"

    def sizes(self, image_id: int) -> list[list[int]]:
        if not self._read_sizes or image_id not in self._names:
            return []
        if image_id not in self._sizes:
            self._sizes[image_id] = [list(image_size(os.path.join(self._directory, self._names[image_id])))]
        return self._sizes[image_id]


def _split_prefix(directory: Path, names: dict[int, str]) -> str:
    """`COCO_train2014_`: from the pictures that are there, else from the directory's own name."""
    if names and (found := _COCO_NAME.fullmatch(next(iter(names.values())))):
        return found["prefix"]
    return f"COCO_{directory.resolve().name}_"
