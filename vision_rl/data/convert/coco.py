"""COCO's annotation files as flat records: one for each box."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vision_rl.data.convert.records import Record
from vision_rl.errors import UserError


def coco_records(
    path: Path, coco: Record, image_field: str, question_field: str | None
) -> Iterator[tuple[str, Record]]:
    """(where, flat record) of each annotation, its box being `coco_bbox`, and of each image without one.

    question_field: of the annotations, as MS-CXR's have. Raises `UserError` for a file that is not COCO's.
    """
    names = {
        item["id"]: str(item["name"]) for item in _coco_items(path, coco, "categories", ("id", "name"), optional=True)
    }
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
        where = f"{path}, image {image['id']}"
        shared = {key: value for key, value in image.items() if key not in ("id", image_field)}
        shared |= {image_field: image[image_field], "image_id": image["id"]}
        for annotation in by_image[image["id"]]:
            if question_field and not annotation.get(question_field):
                raise UserError(
                    f"{where}: an annotation has no {question_field}; fill it in or leave out --question-field"
                )
            flat = {"label": names.get(annotation.get("category_id"), ""), "coco_bbox": annotation["bbox"]}
            yield where, shared | ({question_field: annotation[question_field]} if question_field else {}) | flat
        if not by_image[image["id"]] and not question_field:
            yield where, shared | {"label": "", "boxes": []}


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
