"""The data that README and docs/*.md speak of, each set in its published layout: what `tests.page_commands` runs on."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data_samples import (
    SAMPLES,
    write_coco,
    write_screenspot_hf,
    write_screenspot_pro,
    write_screenspot_v2,
    write_vqav2,
)
from tests.dicom_files import radiograph, write_dicom
from vision_rl.data.schema import read_rows, write_rows
from vision_rl.tiny import write_tasks

REWARD = '''def reward(reply, row):
    """1 for a reply that is the most frequent answer, else 0."""
    answer = max(row["answers"], key=row["answers"].count)
    return float(answer == reply.strip().rstrip(".").lower())
'''


def write_page_data(folder: Path) -> None:
    """Everything that the commands of the pages name, below `folder`."""
    data = folder / "data"
    made = write_tasks(data / "tiny", "vqa", train=40, val=8, test=1)
    train, val = (read_rows(made[split]) for split in ("train", "val"))  # with whole paths of the pictures
    for names, rows in (
        (("train", "slake", "slake_train", "vqa_rad_train"), train),
        (("val", "slake_val", "vqa_rad_test", "mixed"), val),
    ):
        for name in names:
            write_rows(folder / f"{name}.parquet", rows)
    _published(data, train)
    _own(folder, train)
    (folder / "my_reward.py").write_text(REWARD)


def _published(data: Path, rows: list[dict[str, Any]]) -> None:
    """The published sets; VQA-RAD and VinDr-CXR with as many pictures as a step of training needs."""
    for name in ("slake", "geo3k"):
        SAMPLES[name].write(data / name)
    vqav2 = write_vqav2(data / "vqav2")
    shutil.move(vqav2["image_dir"], data / "vqav2" / "images" / "train2014")
    for name, write in (
        ("screenspot", write_screenspot_hf),
        ("screenspot-v2", write_screenspot_v2),
        ("screenspot-pro", write_screenspot_pro),
    ):
        write(data / name)
    SAMPLES["ms-cxr"].write(data.parent / "MIMIC_CXR_JPG")
    (data.parent / "MIMIC_CXR_JPG" / SAMPLES["ms-cxr"].file).rename(data.parent / SAMPLES["ms-cxr"].file)
    asked = [
        {
            "image": {"bytes": Path(row["image_paths"][0]).read_bytes()},
            "question": row["question"],
            "answer": row["answers"][0],
        }
        for row in rows
    ]
    (data / "vqa-rad").mkdir()
    pq.write_table(pa.Table.from_pylist(asked), data / "vqa-rad" / "train.parquet")
    table = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for number in range(40):
        write_dicom(data / "vindr-cxr" / "train" / f"p{number}.dicom", radiograph(112, 112, number))
        table.append(f"p{number},Cardiomegaly,3,R10,20,30,45,70" if number % 4 else f"p{number},No finding,14,R10,,,,")
    (data / "vindr-cxr" / "annotations").mkdir()
    (data / "vindr-cxr" / "annotations" / "annotations_train.csv").write_text("\n".join(table) + "\n")


def _own(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A user's own files: COCO, JSONL and CSV beside their pictures, parquet with pictures inside."""
    write_coco(folder)
    (folder / "pictures").mkdir()
    for number, row in enumerate(rows):
        shutil.copy(row["image_paths"][0], folder / "pictures" / f"{number}.png")
    with (folder / "questions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("image", "question", "answer"),
                *((f"{number}.png", row["question"], row["answers"][0]) for number, row in enumerate(rows)),
            ]
        )
    boxes = {"image": "pictures/0.png", "boxes": [[0.1, 0.1, 0.2, 0.3]], "label": "square"}
    (folder / "set.jsonl").write_text(json.dumps(boxes) + "\n")
    asked = [
        {
            "image": {"bytes": (folder / "pictures" / f"{number}.png").read_bytes()},
            "prompt": row["question"],
            "label": "2",
        }
        for number, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(asked), folder / "x.parquet")
