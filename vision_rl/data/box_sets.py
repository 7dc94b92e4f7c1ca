"""Grounding sets of one's own: radiology findings, detection sets; COCO, CSV, JSON, JSONL or parquet.

Records are grouped into rows by picture and question. With `{label}` in the question there is one row per picture and
label ("Locate the nodule."), without it one row per picture with all its boxes. A picture without boxes becomes a "no
finding" row: an empty list of boxes, which the reward takes as an answer in its own right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from vision_rl.data.geometry import to_unit_xyxy
from vision_rl.data.images import image_size
from vision_rl.data.records import OnBad, Record, converted, extract_image, find_image, iter_records, read_json
from vision_rl.errors import UserError

DEFAULT_QUESTION = "Locate every finding in this image."
NO_FINDING = {"no finding", "no findings", "normal", "none", ""}
_IMAGE_FIELDS = ("image_path", "file_name", "img_filename", "filename", "image", "path", "image_id", "dicom_id")
_LABEL_FIELDS = ("label", "class_name", "category_name", "category", "class", "finding")
_QUESTION_FIELDS = ("question", "instruction", "label_text", "sentence", "phrase")
_LIST_FIELDS = ("boxes", "bboxes", "bbox", "box", "ground_truth")
# Four columns whose names tell the format; `box_format` is asked for only where a list of numbers does not.
_NAMED_COLUMNS = {
    ("x_min", "y_min", "x_max", "y_max"): "xyxy",
    ("xmin", "ymin", "xmax", "ymax"): "xyxy",
    ("x1", "y1", "x2", "y2"): "xyxy",
    ("x", "y", "w", "h"): "xywh",
    ("x", "y", "width", "height"): "xywh",
}


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


@dataclass
class _Group:
    """One row in the making."""

    where: str
    image: Path
    question: str
    boxes: list[tuple[list[float], str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    meta: Record = field(default_factory=dict)


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
    groups: dict[tuple[str, str], list[tuple[int, Record]]] = {}
    for number, record in iter_records(path):
        for key in _group_keys(record, options, f"{path}, record {number}"):
            groups.setdefault(key, []).append((number, record))
    yield from converted(groups.items(), partial(_table_row, path, options), on_bad)


def _coco_groups(path: Path, coco: Record, options: BoxOptions) -> Iterator[_Group]:
    if not isinstance(coco.get("images"), list) or not isinstance(coco.get("annotations"), list):
        raise UserError(f"{path} is neither a COCO file (images, annotations, categories) nor a list of records")
    names = {item["id"]: str(item["name"]) for item in coco.get("categories", [])}
    by_image: dict[Any, list[Record]] = {}
    for annotation in coco["annotations"]:
        if not annotation.get("iscrowd"):  # one box around a crowd is no target
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    for image in coco["images"]:
        found = by_image.get(image["id"], [])
        where = f"{path}, image {image['id']}"
        labelled = [(annotation, names.get(annotation.get("category_id"), "")) for annotation in found]
        for label in _labels_of_rows([label for _, label in labelled], options):
            group = _Group(where, Path(image["file_name"]), _question(options.question, label))
            group.boxes = [(a["bbox"], name) for a, name in labelled if label is None or name == label]
            group.meta = {"image_id": image["id"]}
            yield group


def _labels_of_rows(labels: list[str], options: BoxOptions) -> list[str | None]:
    """One entry per row of a picture: its label, or None for a row with everything."""
    if "{label}" not in options.question or not labels:
        return [None]
    return list(dict.fromkeys(labels))


def _question(template: str, label: str | None) -> str:
    return template.replace("{label}", label or "finding")


def _coco_row(options: BoxOptions, group: _Group) -> Record:
    image = find_image(str(group.image), options.image_dir, group.where)
    size = image_size(image)
    boxes = [
        to_unit_xyxy(_four(box, group.where), size, box_format="xywh", space="pixels", where=group.where)
        for box, _ in group.boxes
    ]
    return _row(image, size, group.question, boxes, [label for _, label in group.boxes], options.source, group.meta)


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
    if isinstance(named, (dict, bytes)):
        image = extract_image(named, options.extract_dir, where)
    else:
        image = find_image(str(named), options.image_dir, where)
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
    return _row(image, size, question, boxes, labels, options.source, _extra(records[0][1]))


def _record_boxes(record: Record, options: BoxOptions, where: str) -> Iterator[tuple[list[float], str, str]]:
    """(numbers, xyxy or xywh, label) of each box of a record."""
    labels = _record_labels(record, options)
    for columns, box_format in _NAMED_COLUMNS.items():
        if all(column in record for column in columns):
            yield _four([record[column] for column in columns], where), box_format, labels[0]
            return
    boxes = _first(record, _LIST_FIELDS, None) or []
    if isinstance(boxes, str):  # a CSV cell
        try:
            boxes = json.loads(boxes)
        except ValueError as error:
            raise UserError(f"{where}: boxes {boxes!r} are not a JSON list of numbers") from error
    if boxes and not isinstance(boxes[0], (list, tuple, dict)):
        boxes = [boxes]
    if boxes and len(labels) not in (1, len(boxes)):
        raise UserError(f"{where} has {len(labels)} labels for {len(boxes)} boxes, expected one each")
    for index, box in enumerate(boxes):
        label = labels[index] if len(labels) == len(boxes) else labels[0]
        if isinstance(box, dict):
            yield from ((numbers, form, label) for numbers, form, _ in _record_boxes(box, options, where))
        else:
            box_format = options.box_format or _ask(where, "--box-format xyxy or --box-format xywh")
            yield _four(box, where), box_format, label


def _row(
    image: Path,
    size: tuple[int, int],
    question: str,
    boxes: list[list[float]],
    labels: list[str],
    source: str,
    meta: Record,
) -> Record:
    return {
        "task": "grounding",
        "image_paths": [str(image)],
        "question": question,
        "boxes": boxes,
        "labels": labels,
        "image_sizes": [list(size)],
        "source": source,
        "meta": meta,
    }


def _extra(record: Record) -> Record:
    """Scalar fields that are not the row's own, kept for breakdowns."""
    used = {*_IMAGE_FIELDS, *_LABEL_FIELDS, *_QUESTION_FIELDS, *_LIST_FIELDS, "labels", "id"}
    used.update(column for columns in _NAMED_COLUMNS for column in columns)
    return {k: v for k, v in record.items() if k not in used and isinstance(v, (str, int, float, bool))}


def _first(record: Record, names: tuple[str, ...], chosen: str | None) -> Any:
    for name in (chosen,) if chosen else names:
        if name in record:
            return record[name]
    return None


def _four(numbers: Any, where: str) -> list[float]:
    try:
        box = [float(number) for number in numbers]
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: box {numbers!r} is not four numbers") from error
    if len(box) != 4:
        raise UserError(f"{where}: box {numbers!r} is not four numbers")
    return box


def _ask(where: str, choice: str) -> str:
    raise UserError(f"{where}: its box does not say how it is written, and nothing is guessed; add {choice}")
