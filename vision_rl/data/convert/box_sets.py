"""Grounding sets of one's own: radiology findings, detection sets; COCO, CSV, JSON, JSONL or parquet.

Records are grouped into rows by picture and question. With `{label}` in the question there is one row per picture and
label ("Locate the nodule."), without it one row per picture with all its boxes. A picture without boxes becomes a "no
finding" row: an empty list of boxes, which the reward takes as an answer in its own right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vision_rl.data.convert.geometry import four_numbers, to_unit_xyxy
from vision_rl.data.convert.records import (
    OnBad,
    Record,
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
# Not w, h, width and height: those may be the picture's.
_CORNERS = {name: None for columns in _NAMED_COLUMNS for name in columns if name[0] in "xy"}
_BOX_COLUMNS = "name them " + ", or ".join(" ".join(columns) for columns in _NAMED_COLUMNS) + ", or a list `boxes`"


@dataclass(frozen=True)
class BoxOptions:
    """How to read a set. `image_field` and the like name a column where the usual names do not find it."""

    image_dir: Path
    extract_dir: Path
    space: str | None = None
    box_format: str | None = None
    question: str = DEFAULT_QUESTION
    image_field: str | None = None
    label_field: str | None = None
    question_field: str | None = None
    source: str = "boxes"
    metric: str = ""


@dataclass
class _Group:
    """One row of a COCO file in the making; boxes: (COCO's bbox, label)."""

    where: str
    image: Record
    question: str
    boxes: list[tuple[list[float], str]] = field(default_factory=list)


def iter_rows(path: str | Path, options: BoxOptions, *, on_bad: OnBad | None = None) -> Iterator[Record]:
    """Yield schema rows with absolute image paths from a COCO annotation file or a table of boxes.

    Boxes in `options.space` ("pixels" or "unit"; COCO is always pixels) are clipped to the image. A bad record (missing
    picture, box outside of it, unreadable numbers) takes its whole row with it, to `on_bad` or as `UserError`.
    """
    path = Path(path)
    coco = read_json(path) if path.suffix.lower() == ".json" else None
    if isinstance(coco, dict):
        yield from converted(_coco_groups(path, coco, options), partial(_coco_row, options), on_bad)
        return
    items = list(_keyed(path, options, on_bad))
    _require_known_fields(path, [record for _, _, record in items], options)
    groups: dict[tuple[str, str], list[tuple[int, Record]]] = {}
    for keys, number, record in items:
        for key in keys:
            groups.setdefault(key, []).append((number, record))
    yield from converted(groups.items(), partial(_table_row, path, options), on_bad)


def _coco_groups(path: Path, coco: Record, options: BoxOptions) -> Iterator[_Group]:
    names = {
        item["id"]: str(item["name"]) for item in _coco_items(path, coco, "categories", ("id", "name"), optional=True)
    }
    image_field = options.image_field or "file_name"
    images = _coco_items(path, coco, "images", ("id", image_field))
    by_image: dict[Any, list[Record]] = {image["id"]: [] for image in images}
    if len(by_image) < len(images):
        raise UserError(f"{path} gives the same id to several images; make them unique")
    for number, annotation in enumerate(_coco_items(path, coco, "annotations", ("image_id", "bbox"))):
        for key, known in (("image_id", by_image), ("category_id", names)):
            if key in annotation and annotation[key] not in known:
                raise UserError(
                    f"{path}: annotation {number} has {key} {annotation[key]}, which the file does not list"
                )
        if not annotation.get("iscrowd"):  # one box around a crowd is no target
            by_image[annotation["image_id"]].append(annotation)
    for image in images:
        labelled = [(annotation, names.get(annotation.get("category_id"), "")) for annotation in by_image[image["id"]]]
        if options.question_field:
            yield from _phrase_groups(path, image, labelled, options.question_field)
            continue
        for label in _labels_of_rows([label for _, label in labelled], options):
            group = _Group(f"{path}, image {image['id']}", image, _question(options.question, label))
            group.boxes = [(a["bbox"], name) for a, name in labelled if label is None or name == label]
            yield group


def _phrase_groups(path: Path, image: Record, labelled: list[tuple[Record, str]], field: str) -> Iterator[_Group]:
    """One group per phrase that the annotations of a picture carry, as MS-CXR's do."""
    groups: dict[str, _Group] = {}
    for annotation, label in labelled:
        where = f"{path}, image {image['id']}"
        if not annotation.get(field):
            raise UserError(f"{where}: an annotation has no {field}; fill it in or leave out --question-field")
        phrase = str(annotation[field])
        groups.setdefault(phrase, _Group(where, image, phrase)).boxes.append((annotation["bbox"], label))
    yield from groups.values()


def _coco_items(
    path: Path, coco: Record, name: str, needed: tuple[str, ...], *, optional: bool = False
) -> list[Record]:
    """The objects of one of COCO's lists, each with the fields that are needed."""
    items = coco.get(name)
    if items is None and optional:
        return []
    if not isinstance(items, list):
        raise UserError(f"{path} is neither a COCO file (images, annotations, categories) nor a list of records")
    for number, item in enumerate(items):
        missing = [key for key in needed if not isinstance(item, dict) or item.get(key) is None]
        if missing or not all(isinstance(item[key], (int, str)) for key in needed if key.endswith("id")):
            raise UserError(
                f"{path}: {name}[{number}] has no usable {' and '.join(missing or needed)}; it is not COCO's"
            )
    return items


def _labels_of_rows(labels: list[str], options: BoxOptions) -> list[str | None]:
    """One entry per row of a picture: its label, or None for a row with everything."""
    if "{label}" not in options.question or not labels:
        return [None]
    return list(dict.fromkeys(labels))


def _question(template: str, label: str | None) -> str:
    return template.replace("{label}", label or "finding")


def _coco_row(options: BoxOptions, group: _Group) -> Record:
    image = picture_file(
        group.image[options.image_field or "file_name"], options.image_dir, options.extract_dir, group.where
    )
    size = image_size(image)
    stated = (group.image.get("width", size[0]), group.image.get("height", size[1]))
    if stated != size:
        raise UserError(
            f"{group.where}: the file says {stated[0]} x {stated[1]} pixels, but {image} has {size[0]} x {size[1]}; "
            "its boxes are of another version of the picture"
        )
    boxes = [
        to_unit_xyxy(four_numbers(box, group.where), size, box_format="xywh", space="pixels", where=group.where)
        for box, _ in group.boxes
    ]
    labels = [label for _, label in group.boxes]
    row = _row(image, size, group.question, boxes, labels, options, {"image_id": group.image["id"]})
    return checked(row, group.where)


def _keyed(
    path: Path, options: BoxOptions, on_bad: OnBad | None
) -> Iterator[tuple[list[tuple[str, str]], int, Record]]:
    """(keys of its rows, number, record) of every record that names a picture; the others go to `on_bad`."""
    for number, record in iter_records(path):
        try:
            yield _group_keys(record, options, f"{path}, record {number}"), number, record
        except UserError as error:
            if on_bad is None:
                raise
            on_bad(str(error))


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
    if any(name in record for name in _LIST_FIELDS) or _named_columns(record) is not None:
        return True
    return all(label.lower() in NO_FINDING - {""} for label in _record_labels(record, options))


def _named_columns(record: Record) -> tuple[str, ...] | None:
    """The four columns of `_NAMED_COLUMNS` that a record fills in."""
    return next((columns for columns in _NAMED_COLUMNS if all(column in record for column in columns)), None)


def _group_keys(record: Record, options: BoxOptions, where: str) -> list[tuple[str, str]]:
    """(picture, question) of the rows that a record belongs to: several if it lists boxes of several labels."""
    image = _first(record, _IMAGE_FIELDS, options.image_field)
    if image is None:
        raise UserError(f"{where} names no image; its fields are {', '.join(record)}: name one with --image-field")
    key = repr(image) if isinstance(image, dict) else str(image)
    question = _first(record, _QUESTION_FIELDS, options.question_field)
    if question is not None:
        return [(key, str(question))]
    labels = [label for label in _record_labels(record, options) if label.lower() not in NO_FINDING]
    return [(key, _question(options.question, label)) for label in _labels_of_rows(labels, options)]


def _record_labels(record: Record, options: BoxOptions) -> list[str]:
    labels = record.get("labels", _first(record, _LABEL_FIELDS, options.label_field))
    return [str(label) for label in labels] if isinstance(labels, (list, tuple)) else [str(labels or "")]


def _table_row(path: Path, options: BoxOptions, item: tuple[tuple[str, str], list[tuple[int, Record]]]) -> Record:
    (_, question), records = item
    where = f"{path}, record {records[0][0]}"
    named = _first(records[0][1], _IMAGE_FIELDS, options.image_field)
    image = picture_file(named, options.image_dir, options.extract_dir, where)
    size = image_size(image)
    boxes, labels = [], []
    for number, record in records:
        where = f"{path}, record {number}"
        for box, box_format, label in _record_boxes(record, options, where):
            per_label = (
                "{label}" in options.question and _first(record, _QUESTION_FIELDS, options.question_field) is None
            )
            if per_label and _question(options.question, label) != question:
                continue
            space = options.space or _ask(where, "--space pixels or --space unit")
            boxes.append(to_unit_xyxy(box, size, box_format=box_format, space=space, where=where))
            labels.append(label)
    row = _row(image, size, question, boxes, labels, options, _extra(records[0][1]))
    return checked(row, f"{path}, record {records[0][0]}")


def _record_boxes(record: Record, options: BoxOptions, where: str) -> Iterator[tuple[list[float], str, str]]:
    """(numbers, xyxy or xywh, label) of each box of a record."""
    labels = _record_labels(record, options)
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


def _row(
    image: Path,
    size: tuple[int, int],
    question: str,
    boxes: list[list[float]],
    labels: list[str],
    options: BoxOptions,
    meta: Record,
) -> Record:
    return {
        "task": "grounding",
        "image_paths": [str(image)],
        "question": question,
        "boxes": boxes,
        "labels": labels,
        "image_sizes": [list(size)],
        "source": options.source,
        "metric": options.metric,
        "meta": meta,
    }


def _extra(record: Record) -> Record:
    """Fields that are not the row's own, kept for breakdowns."""
    used = {*_IMAGE_FIELDS, *_LABEL_FIELDS, *_QUESTION_FIELDS, *_LIST_FIELDS, "labels", "id"}
    used.update(column for columns in _NAMED_COLUMNS for column in columns)
    return extra_fields(record, used)


def _first(record: Record, names: tuple[str, ...], chosen: str | None) -> Any:
    for name in (chosen,) if chosen else names:
        if name in record:
            return record[name]
    return None


def _ask(where: str, choice: str) -> str:
    raise UserError(f"{where}: its box does not say how it is written, and nothing is guessed; add {choice}")
