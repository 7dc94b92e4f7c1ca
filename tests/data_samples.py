"""Generated data sets in the exact file layouts of the published ones, for the tests."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    """A picture of its own colours: different seeds give different content."""
    rng = random.Random(seed)
    image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = rng.randrange(size[0] - 4), rng.randrange(size[1] - 4)
        draw.rectangle((x, y, x + size[0] // 4, y + size[1] // 4), fill=tuple(rng.randrange(256) for _ in range(3)))
    return image


def png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def write_vqav2(folder: Path, *, images: int = 4, per_image: int = 3, shuffle: bool = True) -> dict[str, Any]:
    """Question and annotation files of a train split, and its COCO pictures."""
    image_dir = folder / "train2014"
    image_dir.mkdir(parents=True)
    questions, annotations = [], []
    for image_id in range(262144, 262144 + images):
        picture((64, 48), image_id).save(image_dir / f"COCO_train2014_{image_id:012d}.jpg")
        for index in range(per_image):
            question_id = image_id * 1000 + index
            given = ["net"] * (10 - index) + ["the court"] * index
            questions.append({"image_id": image_id, "question": f"What is this {index}?", "question_id": question_id})
            annotations.append(
                {
                    "question_type": "what is this",
                    "multiple_choice_answer": "net",
                    "answers": [
                        {"answer": answer, "answer_confidence": "maybe", "answer_id": number}
                        for number, answer in enumerate(given, start=1)
                    ],
                    "image_id": image_id,
                    "answer_type": "other",
                    "question_id": question_id,
                }
            )
    if shuffle:
        random.Random(0).shuffle(annotations)
    head = {
        "info": {"description": "This is v2.0 of the VQA dataset.", "url": "http://visualqa.org", "version": "2.0"},
        "data_type": "mscoco",
        "license": {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"},
        "data_subtype": "train2014",
    }
    paths = {
        "questions": folder / "v2_OpenEnded_mscoco_train2014_questions.json",
        "annotations": folder / "v2_mscoco_train2014_annotations.json",
        "image_dir": image_dir,
    }
    paths["questions"].write_text(json.dumps({**head, "task_type": "Open-Ended", "questions": questions}))
    # The published annotation file has its array before the last of the other fields.
    paths["annotations"].write_text(json.dumps({"info": head["info"], "annotations": annotations, **head}))
    return paths


SOURCES = ("ios", "android", "macos", "windows", "gitlab", "shop")


def write_screenspot_hf(folder: Path, *, images: int = 6, per_image: int = 2) -> Path:
    """`data/test-00000-of-00001.parquet` of rootsautomation/ScreenSpot: embedded PNG, xyxy in 0..1."""
    rows: list[dict[str, Any]] = []
    for index in range(images):
        data = png_bytes(picture((80, 60), index))
        for number in range(per_image):
            rows.append(
                {
                    "file_name": f"shot_{index}.png",
                    "bbox": [0.1 + 0.2 * number, 0.25, 0.2 + 0.2 * number, 0.5],
                    "instruction": f"open item {number}",
                    "data_type": "icon" if number % 2 else "text",
                    "data_source": SOURCES[index % len(SOURCES)],
                    "image": {"bytes": data, "path": f"shot_{index}.png"},
                }
            )
    path = folder / "data" / "test-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_screenspot_v2(folder: Path) -> Path:
    """`screenspot_desktop_v2.json` with its image folder: xywh in pixels."""
    image_dir = folder / "screenspotv2_image"
    image_dir.mkdir(parents=True)
    items = []
    for index in range(3):
        name = f"pc_{index}.png"
        picture((200, 100), 50 + index).save(image_dir / name)
        for number in range(2):
            items.append(
                {
                    "img_filename": name,
                    "bbox": [20 + 40 * number, 10, 40, 20],
                    "instruction": f"close window {number}",
                    "data_type": "icon",
                    "data_source": "windows",
                }
            )
    path = folder / "screenspot_desktop_v2.json"
    path.write_text(json.dumps(items))
    return path


def write_screenspot_pro(folder: Path) -> Path:
    """`annotations/blender_windows.json` with `images/blender_windows/*.png`: xyxy in pixels, img_size."""
    (folder / "images" / "blender_windows").mkdir(parents=True)
    (folder / "annotations").mkdir()
    items = []
    for index in range(2):
        name = f"blender_windows/screenshot_{index}.png"
        picture((400, 200), 90 + index).save(folder / "images" / name)
        items.append(
            {
                "img_filename": name,
                "bbox": [40, 20, 80, 40],
                "instruction": "select the eraser",
                "instruction_cn": "选择橡皮擦",
                "id": f"blender_windows_{index}",
                "application": "blender",
                "platform": "windows",
                "img_size": [400, 200],
                "ui_type": "icon",
                "group": "Creative",
            }
        )
    path = folder / "annotations" / "blender_windows.json"
    path.write_text(json.dumps(items))
    return path


def write_coco(folder: Path) -> Path:
    """A COCO instances file: two boxes of two labels on the first picture, none on the second, a crowd on the third."""
    (folder / "images").mkdir(parents=True)
    for index in range(3):
        picture((100, 50), 200 + index).save(folder / "images" / f"{index}.png")
    names = [{"id": index, "file_name": f"{index}.png", "width": 100, "height": 50} for index in range(3)]
    boxes = [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
        {"id": 2, "image_id": 0, "category_id": 2, "bbox": [50, 25, 50, 25], "area": 1250, "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [0, 0, 100, 50], "area": 5000, "iscrowd": 1},
    ]
    categories = [{"id": 1, "name": "nodule"}, {"id": 2, "name": "effusion"}]
    path = folder / "instances.json"
    path.write_text(json.dumps({"images": names, "annotations": boxes, "categories": categories}))
    return path


def write_vindr(folder: Path) -> Path:
    """VinDr-CXR's train.csv: one line per box, "No finding" without numbers, pictures named without a suffix."""
    (folder / "images").mkdir(parents=True)
    for index in range(2):
        picture((100, 100), 300 + index).save(folder / "images" / f"img{index}.png")
    path = folder / "train.csv"
    path.write_text(
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        "img0,Cardiomegaly,3,R10,20.0,30.0,60.0,80.0\n"
        "img0,Aortic enlargement,0,R9,40.0,10.0,60.0,30.0\n"
        "img1,No finding,14,R11,,,,\n"
    )
    return path
