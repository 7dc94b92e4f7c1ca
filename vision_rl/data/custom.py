"""Question-answer-image sets of one's own: CSV, TSV, JSON, JSONL or parquet; one image, several, or a video.

Fields: `question` (or `instruction`); `answer` or `answers`; and one of `image`, `image_path`, `images`, `image_paths`
(several pictures in order), `frames` (pictures that are a video's frames) or `video` (a file, or a folder of frames, to
take frames of).
In CSV a list is written as JSON, `["a.png", "b.png"]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vision_rl.data.images import image_size
from vision_rl.data.picture_files import picture_file
from vision_rl.data.records import (
    OnBad,
    Record,
    checked,
    converted,
    extra_fields,
    iter_records,
)
from vision_rl.data.video import sample_frames
from vision_rl.errors import UserError

_IMAGE_FIELDS = ("image_paths", "images", "image_path", "image", "frames")
_QUESTION_FIELDS = ("question", "instruction")
_ANSWER_FIELDS = ("answers", "answer")
_KNOWN = {*_IMAGE_FIELDS, *_QUESTION_FIELDS, *_ANSWER_FIELDS, "video", "id"}


@dataclass(frozen=True)
class CustomOptions:
    """Where pictures are, where embedded ones and video frames go, and how many frames a video becomes."""

    image_dir: Path
    extract_dir: Path
    frames: int = 8
    source: str = "custom"


def iter_rows(path: str | Path, options: CustomOptions, *, on_bad: OnBad | None = None) -> Iterator[Record]:
    """Yield schema rows with absolute image paths; fields that are not known go into `meta`.

    A record without question, answer or usable picture goes to `on_bad`, or raises `UserError` without one.
    """
    yield from converted(iter_records(path), partial(_row, Path(path), options), on_bad)


def _row(path: Path, options: CustomOptions, numbered: tuple[int, Record]) -> Record:
    number, record = numbered
    where = f"{path}, record {number}"
    images, media = _pictures(record, options, where)
    row = {
        "id": str(record.get("id", f"{path.stem}-{number}")),
        "task": "vqa",
        "image_paths": [str(image) for image in images],
        "media": media,
        "question": _required(record, _QUESTION_FIELDS, where),
        "answers": _answers(record, where),
        "image_sizes": [list(image_size(image)) for image in images],
        "source": options.source,
        "meta": extra_fields(record, _KNOWN),
    }
    return checked(row, where)


def _answers(record: Record, where: str) -> list[str]:
    answers = _as_list(_required(record, _ANSWER_FIELDS, where))
    if not answers or not all(isinstance(answer, (str, int, float)) for answer in answers):
        raise UserError(f"{where}: answers {answers!r} are not texts; give one text or a list of texts")
    return [str(answer) for answer in answers]


def _pictures(record: Record, options: CustomOptions, where: str) -> tuple[list[Path], str]:
    source = record.get("video", record.get("frames"))
    if "video" in record or (isinstance(source, str) and (options.image_dir / source).is_dir()):
        return sample_frames(options.image_dir / str(source), options.extract_dir, options.frames), "video"
    value = _required(record, _IMAGE_FIELDS, where)
    images = [picture_file(item, options.image_dir, options.extract_dir, where) for item in _as_list(value)]
    if not images:
        raise UserError(f"{where} has an empty list of images; fill in a picture or remove it")
    return images, "video" if "frames" in record else "images"


def _required(record: Record, names: tuple[str, ...], where: str) -> Any:
    for name in names:
        if name in record:
            return record[name]
    raise UserError(f"{where} has no {' or '.join(names)}; its fields are {', '.join(record)}")


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            decoded = json.loads(value)
        except ValueError:
            return [value]
        return decoded if isinstance(decoded, list) else [value]
    return list(value) if isinstance(value, (list, tuple)) else [value]
