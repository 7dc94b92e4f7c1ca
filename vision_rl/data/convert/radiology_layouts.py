"""Records of published radiology sets as the flat records that `box_sets` reads: image, label, boxes, patient, split.

docs/radiology.md says where each layout is published. Run lengths become boxes and polygons, one for each connected part.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_rl.data.convert.data_set import Source
from vision_rl.data.convert.layouts import said
from vision_rl.data.convert.records import Record
from vision_rl.errors import UserError

Unfold = Callable[[Record], Iterable[Record]]
SIIM_SIDE = 1024
SPECK = 16
"""Pixels. A smaller part of a mask is an artefact of drawing."""


def ms_cxr(record: Record) -> list[Record]:
    """The patient stands in the path: files/p10/p10000032/s50414267/....jpg."""
    parts = [part for part in str(record.get("path", "")).split("/") if part[:1] == "p" and len(part) == 9]
    patient = record.get("subject_id") or (parts[0][1:] if parts else None)
    return [record | ({} if patient is None else {"patient": str(patient)})]


def padchest_gr(source: Source) -> Unfold:
    """A study's sentences, those with boxes (shares of the sides); patient and split are in master_table.csv beside it."""
    table = (source.path if source.path.is_dir() else source.path.parent) / "master_table.csv"
    sentence = f"sentence_{source.language or 'en'}"

    @cache
    def studies() -> dict[str, tuple[str, str]]:
        try:
            with open(table, encoding="utf-8-sig", newline="") as file:
                return {row["StudyID"]: (row["PatientID"], row["split"]) for row in csv.DictReader(file)}
        except (OSError, KeyError, csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{table} is not a readable table with StudyID, PatientID and split ({error!r})") from error

    def unfold(record: Record) -> Iterator[Record]:
        study = str(record["StudyID"])
        if study not in studies():
            raise UserError(f"its study {study} is not in {table}; take the table of the same release")
        patient, split = studies()[study]
        for finding in record["findings"]:
            if finding.get("boxes"):
                label = ", ".join(finding.get("labels") or [])
                shared = {"image": record["ImageID"], "patient": patient, "split": split, "StudyID": study}
                yield shared | {"question": finding[sentence], "label": label, "boxes": finding["boxes"]}

    return unfold


def rsna_pneumonia(record: Record) -> list[Record]:
    """stage_2_train_labels.csv: a line per box, Target 0 without one; a patient has one picture, named by patientId."""
    label = "Lung Opacity" if str(record["Target"]) == "1" else "No finding"
    box: Record = {name: record[name] for name in ("x", "y", "width", "height") if name in record}
    return [{"image": record["patientId"], "patient": record["patientId"], "label": label, **box}]


def nih_boxes(record: Record) -> list[Record]:
    """BBox_List_2017.csv, whose header `Bbox [x,y,w,h],,,` falls apart at its commas; "Infiltrate" is "Infiltration"."""
    name, label = record["Image Index"], record["Finding Label"]
    box: Record = dict(zip("xywh", (record[column] for column in ("Bbox [x", "y", "w", "h]")), strict=True))
    label = "Infiltration" if label == "Infiltrate" else label
    return [{"image": name, "patient": name.split("_")[0], "label": label, **box}]


def chestx_det(record: Record) -> list[Record]:
    """One record a picture: syms (labels), boxes (x1, y1, x2, y2) and polygons, one each."""
    shapes = {"polygons": record["polygons"]} if record["boxes"] else {}
    return [{"image": record["file_name"], "labels": record["syms"], "boxes": record["boxes"], **shapes}]


def vindr_mammo(record: Record) -> list[Record]:
    """finding_annotations.csv: pictures lie in a folder for each study; a box may have several categories."""
    label = ", ".join(ast.literal_eval(record["finding_categories"]))
    kept = {name: value for name, value in record.items() if name not in ("image_id", "finding_categories")}
    image = f"{record['study_id']}/{record['image_id']}"
    return [kept | {"image": image, "patient": record["study_id"], "label": label}]


def by_picture(value: Mapping[str, Any]) -> list[Record]:
    """CheXlocalize's JSON: picture -> pathology -> COCO's run lengths."""
    return [{"name": name, "masks": masks} for name, masks in value.items()]


def chexlocalize(source: Source) -> Unfold:
    """gt_segmentations_*.json; patient64541_study1_view1_frontal is patient64541/study1/view1_frontal.jpg."""
    try:
        from pycocotools import mask as coco
    except ImportError:
        raise UserError("CheXlocalize's run lengths need pycocotools: pip install 'vision-rl[dicom]'") from None

    def unfold(record: Record) -> list[Record]:
        patient, study, view = record["name"].split("_", 2)
        found = []
        for label, mask in record["masks"].items():
            boxes, polygons = shapes_of(coco.decode(mask))
            if boxes:
                found.append({"label": label, "boxes": boxes, "polygons": polygons})
        sizes = [mask["size"] for mask in record["masks"].values()]
        shared = {"image": f"{patient}/{study}/{view}.jpg", "patient": patient}
        shared |= {"image_height": sizes[0][0], "image_width": sizes[0][1]}
        return [shared | item for item in found or [{"label": "No finding", "boxes": []}]]

    return unfold


def siim_acr(record: Record) -> list[Record]:
    """train-rle.csv: run lengths relative to the end of the run before, down the columns of 1024 x 1024; -1 is none."""
    record = {name.strip(): value for name, value in record.items()}
    runs = [int(number) for number in str(record["EncodedPixels"]).split()]
    if runs != [-1] and (len(runs) % 2 or min(runs) < 0 or sum(runs) > SIIM_SIDE**2):
        raise UserError(f"its EncodedPixels are no run lengths of {SIIM_SIDE} x {SIIM_SIDE} pixels; correct it")
    flat = np.zeros(SIIM_SIDE**2, np.uint8)
    place = 0
    for gap, length in zip(runs[::2], runs[1::2], strict=False):
        flat[place + gap : place + gap + length] = 1
        place += gap + length
    boxes, polygons = shapes_of(flat.reshape(SIIM_SIDE, SIIM_SIDE).T)
    shapes = {"polygons": polygons} if boxes else {}
    shared = {"image": record["ImageId"], "image_width": SIIM_SIDE, "image_height": SIIM_SIDE}
    return [shared | {"label": "Pneumothorax" if boxes else "No finding", "boxes": boxes, **shapes}]


def verl_boxes(record: Record) -> list[Record]:
    """verl's columns with boxes as the truth: prompt, reward_model.ground_truth (unit xyxy), extra_info.image_path."""
    extra = record.get("extra_info") or {}
    truth = record["reward_model"]["ground_truth"]
    boxes = json.loads(truth) if isinstance(truth, str) else truth
    image = record["images"][0] if record.get("images") else extra["image_path"]
    flat = {"image": image, "question": said(record["prompt"]).replace("<image>", "").strip(), "boxes": boxes}
    kept = {name: extra[name] for name in ("split", "patient") if extra.get(name)}
    return [flat | kept | {"label": record["reward_model"].get("label") or "", "data_source": record["data_source"]}]


def shapes_of(mask: NDArray[Any]) -> tuple[list[list[float]], list[list[list[float]]]]:
    """(boxes xyxy, outlines of [x, y]) in pixels of each connected part of a mask (height, width), without specks."""
    from contourpy import contour_generator
    from scipy.ndimage import find_objects, label

    boxes, polygons = [], []
    parts, _ = label(mask)
    for number, (rows, columns) in enumerate(find_objects(parts), start=1):
        part = parts[rows, columns] == number
        if part.sum() < SPECK:
            continue
        boxes.append([columns.start, rows.start, columns.stop, rows.stop])
        # On a margin of one pixel; half way between two centres is the border of a pixel. The longest line is the outer one.
        lines: list[NDArray[np.float64]] = contour_generator(z=np.pad(part, 1).astype(float)).lines(0.5)  # type: ignore[assignment]
        line = max(lines, key=len)
        polygons.append(np.add(line[:-1], (columns.start - 0.5, rows.start - 0.5)).tolist())
    return [[float(number) for number in box] for box in boxes], polygons
