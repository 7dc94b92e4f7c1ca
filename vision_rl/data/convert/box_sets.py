"""Boxes by picture: radiology findings, detection sets, one's own; COCO, CSV, JSON, JSONL or parquet.

Every file becomes flat records (one box, or a list of them, or a statement that there is none), and a picture's records
become rows by question. With `{label}` in the question there is one row per picture and label ("Locate the nodule."), without
it one row per picture with all its boxes. A picture without boxes becomes a "no finding" row: an empty list of boxes, which
the reward takes as an answer in its own right. What several readers say of a picture is brought together first.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vision_rl.data.convert.coco import coco_records
from vision_rl.data.convert.geometry import four_numbers, scaled_size, to_unit_xyxy
from vision_rl.data.convert.readers import fuse
from vision_rl.data.convert.records import (
    OnBad,
    Record,
    Unpack,
    checked,
    converted,
    extra_fields,
    iter_records,
    read_json,
)
from vision_rl.errors import UserError
from vision_rl.media.images import image_size
from vision_rl.media.picture_files import picture_file

DEFAULT_QUESTION = "Locate every finding in this image."
NO_FINDING = {"no finding", "no findings", "normal", "none", ""}
_IMAGE_FIELDS = ("image_path", "file_name", "img_filename", "filename", "image", "path", "image_id", "dicom_id")
_LABEL_FIELDS = ("label", "class_name", "category_name", "category", "class", "finding")
_QUESTION_FIELDS = ("question", "instruction", "label_text", "sentence", "phrase")
_LIST_FIELDS = ("boxes", "bboxes", "bbox", "box", "ground_truth")
# Four columns whose names tell the format; `box_format` is asked for only where a list of numbers does not.
_NAMED_COLUMNS: dict[tuple[str, ...], str] = {
    ("x_min", "y_min", "x_max", "y_max"): "xyxy",
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("x", "y", "w", "h"): "xywh",
    ("x", "y", "width", "height"): "xywh",
}
# The size of the picture that the boxes were drawn on; dim0 and dim1 are those of the Kaggle copies of VinDr-CXR.
_SIZE_COLUMNS = (("image_width", "image_height"), ("width", "height"), ("dim1", "dim0"))
# Not w, h, width and height: those may be the picture's.
_CORNERS = {name: None for columns in _NAMED_COLUMNS for name in columns if name[0] in "xy"}
_BOX_COLUMNS = "name them " + ", or ".join(" ".join(columns) for columns in _NAMED_COLUMNS) + ", or a list `boxes`"


@dataclass(frozen=True)
class BoxOptions:
    """How to read a set. `image_field` and the like name a column where the usual names do not find it.

    question may hold {label} (a row for each) and {labels} (the names of all in the file). reader_field: who drew a box;
    readers: "fuse" (see `readers.fuse`), "union" or the name of one. split_column: records name their split, and one must be
    chosen. unfold: flat records of one as published.
    """

    image_dir: Path
    extract_dir: Path
    space: str | None = None
    box_format: str | None = None
    question: str = DEFAULT_QUESTION
    image_field: str | None = None
    label_field: str | None = None
    question_field: str | None = None
    patient_field: str = "patient"
    reader_field: str = "rad_id"
    readers: str = "fuse"
    split: str = ""
    split_column: bool = False
    source: str = "boxes"
    metric: str = ""
    frame: int | None = None
    unpack: Unpack | None = None
    unfold: Callable[[Record], Iterable[Record]] | None = None


@dataclass(frozen=True)
class _Flat:
    """A flat record and where it stands; boxes have one format and space throughout."""

    where: str
    record: Record
    image: Any
    question: str | None
    labels: list[str]
    reader: str

    @property
    def findings(self) -> list[str]:
        return [label for label in self.labels if label.lower() not in NO_FINDING]


@dataclass(frozen=True)
class _Group:
    """One row in the making. label: take only boxes of this one; readers: how many looked at the picture; asked: the
    finding that its question names."""

    flats: list[_Flat]
    question: str
    label: str | None
    readers: int
    asked: str = ""


def iter_rows(path: str | Path, options: BoxOptions, *, on_bad: OnBad | None = None) -> Iterator[Record]:
    """Yield schema rows with absolute image paths from a COCO annotation file or a table of boxes.

    Boxes in `options.space` ("pixels" or "unit"; COCO is always pixels) are clipped to the image; pixels are those of the
    size that a record states, else the picture's. A bad record (missing picture, box outside of it, unreadable numbers)
    takes its whole row with it, to `on_bad` or as `UserError`.
    """
    path = Path(path)
    flats = list(_flats(path, options, on_bad))
    _require_known_fields(path, [flat.record for flat in flats], options)
    flats = _of_reader(path, flats, options)
    # DICOM takes a second a picture, most of it outside of the interpreter's lock.
    yield from converted(_groups(flats, options), partial(_row, options), on_bad, workers=os.cpu_count() or 1)


def _flats(path: Path, options: BoxOptions, on_bad: OnBad | None) -> Iterator[_Flat]:
    """The flat records of a file; one that names no picture goes to `on_bad`."""
    coco = read_json(path) if path.suffix.lower() == ".json" and options.unpack is None else None
    if isinstance(coco, dict):
        records = coco_records(path, coco, options.image_field or "file_name", options.question_field)
    else:
        records = ((f"{path}, record {number}", record) for number, record in iter_records(path, options.unpack))
    splits: dict[str, None] = {}  # in the order of the file
    for where, record in records:
        try:
            for flat in options.unfold(record) if options.unfold else (record,):
                splits[str(flat.get("split", ""))] = None
                if not options.split or str(flat.get("split", "")) == options.split:
                    yield _flat(where, flat, options)
        except UserError as error:
            reason = str(error) if str(error).startswith(where) else f"{where}: {error}"
            if on_bad is None:
                raise UserError(f"{reason} (--skip-bad leaves such rows out and lists them)") from error
            on_bad(reason)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{where} is not in the layout of {options.source} ({error!r}); docs/data.md has it"
            ) from error
    _check_split(path, splits, options)


def _check_split(path: Path, splits: Iterable[str], options: BoxOptions) -> None:
    known = ", ".join(filter(None, splits)) or "none"
    if options.split and options.split not in splits:
        raise UserError(f"{path} has no split {options.split}; it has {known}")
    if options.split_column and not options.split and "," in known:
        raise UserError(f"{path} holds the splits {known}; choose one with --split")


def _flat(where: str, record: Record, options: BoxOptions) -> _Flat:
    image = _first(record, _IMAGE_FIELDS, options.image_field)
    if image is None:
        raise UserError(f"{where} names no image; its fields are {', '.join(record)}: name one with --image-field")
    question = _first(record, _QUESTION_FIELDS, options.question_field)
    labels = record.get("labels", _first(record, _LABEL_FIELDS, options.label_field))
    labels = [str(label) for label in labels] if isinstance(labels, (list, tuple)) else [str(labels or "")]
    reader = str(record.get(options.reader_field, ""))
    return _Flat(where, record, image, None if question is None else str(question), labels, reader)


def _require_known_fields(path: Path, records: Sequence[Record], options: BoxOptions) -> None:
    """`UserError` where a field of the options is in no record, or no record says anything about boxes.

    A misspelt field would leave labels out, and a table whose box columns have other names would be a set without any
    finding.
    """
    names = dict.fromkeys(name for record in records for name in record)
    for option in ("label_field", "question_field"):
        chosen = getattr(options, option)
        if records and chosen and chosen not in names:
            raise UserError(f"no record of {path} has --{option.replace('_', '-')} {chosen}; it has {', '.join(names)}")
    if records and not any(_speaks_of_boxes(record, options) for record in records):
        raise UserError(f"no record of {path} has a box in a known column; it has {', '.join(names)}: {_BOX_COLUMNS}")


def _speaks_of_boxes(record: Record, options: BoxOptions) -> bool:
    """Whether a record has a box, an empty list of them, or a label that says that there is none."""
    if any(name in record for name in (*_LIST_FIELDS, "coco_bbox")) or _named_columns(record) is not None:
        return True
    label = record.get("labels", _first(record, _LABEL_FIELDS, options.label_field))
    return str(label or "").lower() in NO_FINDING - {""}


def _named_columns(record: Record) -> tuple[str, ...] | None:
    """The four columns of `_NAMED_COLUMNS` that a record fills in."""
    return next((columns for columns in _NAMED_COLUMNS if all(column in record for column in columns)), None)


def _of_reader(path: Path, flats: list[_Flat], options: BoxOptions) -> list[_Flat]:
    if options.readers in ("fuse", "union"):
        return flats
    names = dict.fromkeys(flat.reader for flat in flats)
    if options.readers not in names:
        known = ", ".join(filter(None, names)) or f"none (column {options.reader_field})"
        raise UserError(
            f"no record of {path} is of --readers {options.readers}; its readers are {known}, or fuse or union"
        )
    return [flat for flat in flats if flat.reader == options.readers]


def _groups(flats: Sequence[_Flat], options: BoxOptions) -> Iterator[_Group]:
    """The rows of every picture, in the order of the file."""
    known = sorted({label for flat in flats for label in flat.findings})
    template = options.question.replace("{labels}", ", ".join(known) or "any")
    pictures: dict[str, list[_Flat]] = {}
    for flat in flats:
        pictures.setdefault(repr(flat.image), []).append(flat)
    for key, of_picture in pictures.items():
        readers = len({flat.reader for flat in of_picture})
        asked: dict[str, list[_Flat]] = {}
        for flat in of_picture:
            if flat.question is not None:
                asked.setdefault(flat.question, []).append(flat)
        yield from (_Group(own, question, None, readers) for question, own in asked.items())
        unasked = [flat for flat in of_picture if flat.question is None]
        labels: list[str | None] = list(dict.fromkeys(label for flat in unasked for label in flat.findings))
        if not unasked:
            continue
        if "{label}" not in template:
            yield _Group(unasked, template, None, readers)
            continue
        for label in labels:
            own = [flat for flat in unasked if label in flat.labels]
            yield _Group(own, template.replace("{label}", str(label)), label, readers, str(label))
        if not labels:
            # A question that only pictures without a finding get would give the answer away.
            drawn = known[zlib.crc32(key.encode()) % len(known)] if known else "finding"
            yield _Group(unasked, template.replace("{label}", drawn), None, readers, drawn)


def _row(options: BoxOptions, group: _Group) -> Record:
    first = group.flats[0]
    image = picture_file(first.image, options.image_dir, options.extract_dir, first.where, options.frame)
    size = image_size(image)
    found: list[tuple[tuple[float, float, float, float], str, str]] = []
    shapes: list[list[float]] = []
    for flat in group.flats:
        stated = _stated_size(flat, size, image)
        for index, (box, box_format, label) in enumerate(_boxes_of(flat, options)):
            if group.label is not None and label != group.label:
                continue
            space = "pixels" if "coco_bbox" in flat.record else options.space
            space = space or _ask(flat.where, "--space pixels or --space unit")
            x1, y1, x2, y2 = to_unit_xyxy(box, stated, box_format=box_format, space=space, where=flat.where)
            found.append(((x1, y1, x2, y2), label, flat.reader))
            if "polygons" in flat.record:
                corners = [float(number) for point in flat.record["polygons"][index] for number in point]
                sides = stated if space == "pixels" else (1, 1)
                shapes.append([number / sides[place % 2] for place, number in enumerate(corners)])
    meta = _extra(first.record, options) | ({"finding": group.asked} if group.asked else {})
    if options.readers == "fuse" and group.readers > 1:
        fused = fuse(found)
        found, meta["readers"] = [(box, label, "") for box, label, _ in fused], [count for _, _, count in fused]
    if found and len(shapes) == len(found):
        meta["polygons"] = shapes
    row = {
        "task": "grounding",
        "image_paths": [str(image)],
        "question": group.question,
        "boxes": [list(box) for box, _, _ in found],
        "labels": [label for _, label, _ in found],
        "image_sizes": [list(size)],
        "source": options.source,
        "metric": options.metric,
        "meta": meta,
    }
    return checked(row, first.where)


def _stated_size(flat: _Flat, size: tuple[int, int], image: Path) -> tuple[int, int]:
    """(width, height) of the picture that the boxes were drawn on: what the record says, else that of the file."""
    used = _named_columns(flat.record) or ()
    for names in _SIZE_COLUMNS:
        if all(name in flat.record and name not in used for name in names):
            width, height = (flat.record[name] for name in names)
            return scaled_size(width, height, size, f"{flat.where}", image)
    return size


def _boxes_of(flat: _Flat, options: BoxOptions) -> Iterator[tuple[list[float], str, str]]:
    """(numbers, xyxy or xywh, label) of each box of a record."""
    record, labels, where = flat.record, flat.labels, flat.where
    if "coco_bbox" in record:
        yield four_numbers(record["coco_bbox"], where), "xywh", labels[0]
        return
    if columns := _named_columns(record):
        yield four_numbers([record[column] for column in columns], where), _NAMED_COLUMNS[columns], labels[0]
        return
    boxes = _first(record, _LIST_FIELDS, None)
    if boxes is None:
        _require_no_finding(record, labels, where)
        return
    boxes = _as_list(boxes, where)
    if boxes and len(labels) not in (1, len(boxes)):
        raise UserError(f"{where} has {len(labels)} labels for {len(boxes)} boxes, expected one each")
    for index, box in enumerate(boxes):
        label = labels[index] if len(labels) == len(boxes) else labels[0]
        if isinstance(box, dict):
            columns = _named_columns(box)
            if columns is None:
                raise UserError(f"{where}: box {box} has none of the known keys: {_BOX_COLUMNS}")
            yield four_numbers([box[column] for column in columns], where), _NAMED_COLUMNS[columns], label
        else:
            box_format = options.box_format or _ask(where, "--box-format xyxy or --box-format xywh")
            yield four_numbers(box, where), box_format, label


def _as_list(boxes: Any, where: str) -> list[Any]:
    """A list of boxes from itself, from a single box, or from the JSON of a CSV cell."""
    if isinstance(boxes, str):
        try:
            boxes = json.loads(boxes)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: boxes {boxes!r} are not a JSON list of numbers") from error
    if isinstance(boxes, dict):
        return [boxes]
    if not isinstance(boxes, (list, tuple)):
        raise UserError(f"{where}: boxes {boxes!r} are not a list of boxes")
    return list(boxes) if not boxes or isinstance(boxes[0], (list, tuple, dict)) else [list(boxes)]


def _require_no_finding(record: Record, labels: Sequence[str], where: str) -> None:
    """A record without a box is "no finding" only if nothing in it says otherwise."""
    left = [name for name in _CORNERS if name in record]
    if left:
        raise UserError(f"{where} fills in only a part of its box ({', '.join(left)}); complete or remove it")
    if not all(label.lower() in NO_FINDING for label in labels):
        raise UserError(
            f"{where} has the label {labels[0]!r} and no box; fill it in, label it 'No finding', or give it an empty list"
        )


def _extra(record: Record, options: BoxOptions) -> Record:
    """Fields that are not the row's own, kept for breakdowns; the patient under the name that splits look for."""
    used = {*_IMAGE_FIELDS, *_LABEL_FIELDS, *_QUESTION_FIELDS, *_LIST_FIELDS, "labels", "id", "coco_bbox", "polygons"}
    used.update(column for columns in (*_NAMED_COLUMNS, *_SIZE_COLUMNS) for column in columns)
    used -= {"image_id"} if "coco_bbox" in record or "file_name" in record else set()
    patient = record.get(options.patient_field)
    return extra_fields(record, used) | ({} if patient is None else {"patient": str(patient)})


def _first(record: Record, names: tuple[str, ...], chosen: str | None) -> Any:
    return next((record[name] for name in ((chosen,) if chosen else names) if name in record), None)


def _ask(where: str, choice: str) -> str:
    raise UserError(f"{where}: its box does not say how it is written, and nothing is guessed; add {choice}")
