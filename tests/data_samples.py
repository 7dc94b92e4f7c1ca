"""Generated data sets in the exact file layouts of the published ones, for the tests."""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Sample:
    """A file of a set in its published layout: its name, its records (or text), the pictures beside it (all of one size),
    the command's options, texts in further files, and what the rows must have."""

    file: str
    content: Any
    expected: list[dict[str, Any]]
    pictures: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    beside: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] = (200, 100)

    def write(self, folder: Path) -> list[str]:
        """Write it into `folder`; returns the arguments of `data_utils.py convert SET` for it."""
        for seed, name in enumerate(self.pictures):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            picture(self.size, seed).save(folder / name)
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, text in self.beside.items():
            (folder / name).write_text(text)
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(self.content), path)
        elif path.suffix == ".jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in self.content))
        else:
            path.write_text(self.content if isinstance(self.content, str) else json.dumps(self.content))
        return ["--input", str(path), *self.options]


def shot(seed: int = 0) -> dict[str, Any]:
    """A picture of 200 x 100 pixels as Hugging Face's parquet files embed it."""
    return {"bytes": png_bytes(picture((200, 100), seed)), "path": f"{seed}.png"}


def said(user: str, assistant: str) -> list[dict[str, str]]:
    """One turn of `messages`."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


TEN = ["nous les gosses", *["dakota"] * 9]
REFERRED = {"question_id": "469306", "question": "Please describe it.", "segmentation": [1.0, 2.0], "iscrowd": 0}
MATH = {"unit": None, "precision": 1.0, "metadata": {"source": "FigureQA", "grade": "high school"}}
GEOMETRY = "Find x. Round to the nearest tenth."
UI = {"image_path": "a.png", "image_size": [200, 100], "instruction": "open the menu", "GUI_types": ["Button", "Icon"]}
BOX = [[0.1, 0.1, 0.3, 0.4]]  # of 20, 10, 60, 40 in a picture of 200 x 100

SAMPLES: dict[str, Sample] = {
    "ok-vqa": Sample(
        "val.parquet",
        [{"question_id": "7", "image": shot(), "question": "What sport?", "answers": TEN, "question_type": "one"}],
        [{"id": "7", "answers": TEN, "metric": "vqa", "meta": {"question_type": "one"}}],
    ),
    "textvqa": Sample(
        "TextVQA_0.5.1_val.json",
        {
            "data": [{"question_id": 3, "image_id": "003a", "question": "which brand?", "answers": TEN}],
            "version": "0.5.1",
        },
        [{"id": "3", "answers": TEN, "metric": "textvqa"}],
        pictures=("train_images/003a.jpg",),
    ),
    "docvqa": Sample(
        "validation.parquet",
        [
            {
                "questionId": "49153",
                "question": "What is it?",
                "image": shot(),
                "docId": 14465,
                "answers": ["0.28", ".28"],
            }
        ],
        [{"id": "49153", "answers": ["0.28", ".28"], "metric": "anls", "meta": {"docId": 14465}}],
    ),
    "infovqa": Sample(
        "infographicsVQA_val_v1.0.json",
        {"data": [{"questionId": 65718, "question": "Which?", "image_local_name": "38.jpeg", "answers": ["LinkedIn"]}]},
        [{"id": "65718", "answers": ["LinkedIn"], "metric": "anls"}],
        pictures=("38.jpeg",),
    ),
    "chartqa": Sample(
        "test.parquet",
        [{"image": shot(), "query": "How many?", "label": ["14"], "human_or_machine": 0}],
        [{"question": "How many?", "answers": ["14"], "metric": "relaxed_accuracy", "meta": {"human_or_machine": 0}}],
    ),
    "gqa": Sample(
        "testdev_balanced_questions.json",
        {
            "201": {
                "imageId": "n1",
                "question": "Is it?",
                "answer": "yes",
                "fullAnswer": "Yes, it is.",
                "isBalanced": True,
            }
        },
        [{"id": "201", "answers": ["yes"], "metric": "exact_match", "meta": {"fullAnswer": "Yes, it is."}}],
        pictures=("images/n1.jpg",),
    ),
    "vqa-rad": Sample(
        "test.parquet",
        [{"image": shot(), "question": "is there free air?", "answer": "no"}],
        [{"question": "is there free air?", "answers": ["no"], "metric": "medical"}],
    ),
    "slake": Sample(
        "train.json",
        [
            {
                "qid": n,
                "img_name": "xmlab1/source.jpg",
                "question": question,
                "answer": answer,
                "q_lang": language,
                "answer_type": "OPEN",
                "modality": "CT",
                "location": "Lung",
                "triple": ["vhead", "_", "_"],
            }
            for n, question, answer, language in ((0, "Which organ?", "Lung", "en"), (1, "什么器官", "肺", "zh"))
        ],
        [{"id": "0", "question": "Which organ?", "answers": ["Lung"], "metric": "medical"}],
        pictures=("imgs/xmlab1/source.jpg",),
        options=("--language", "en"),
    ),
    "pathvqa": Sample(
        "train.parquet",
        [{"image": shot(), "question": "where are liver stem cells located?", "answer": "in the canals of hering"}],
        [{"answers": ["in the canals of hering"], "metric": "medical"}],
    ),
    "ai2d": Sample(
        "test.parquet",
        [{"question": "Which is the base?", "options": ["a", "b", "2", "d"], "answer": "1", "image": shot()}],
        [{"choices": ["a", "b", "2", "d"], "answers": ["B"], "metric": "multiple_choice"}],
    ),
    "scienceqa": Sample(
        "test.parquet",
        [
            {
                "image": shot(),
                "question": "Which?",
                "choices": ["iron", "gold"],
                "answer": 1,
                "hint": "Look.",
                "task": "closed choice",
                "grade": "grade2",
                "lecture": "l",
                "solution": "s",
            }
        ],
        [
            {
                "question": "Context: Look.\nWhich?",
                "answers": ["B"],
                "choices": ["iron", "gold"],
                "meta": {"grade": "grade2"},
            }
        ],
    ),
    "mmmu": Sample(
        "validation.parquet",
        [
            {
                "id": "validation_Math_1",
                "question": "See <image 2>, then <image 1>.",
                "options": "['$1', \"a'b\"]",
                "answer": "B",
                "question_type": "multiple-choice",
                "explanation": "",
                **{f"image_{n}": shot(n) if n < 3 else None for n in range(1, 8)},
            },
            {
                "id": "validation_Math_2",
                "question": "How much is <image 1>?",
                "options": "[]",
                "answer": "['5', 'five']",
                "question_type": "open",
                "explanation": "",
                **{f"image_{n}": shot(n) if n < 2 else None for n in range(1, 8)},
            },
        ],
        [
            {"choices": ["$1", "a'b"], "answers": ["B"], "metric": "multiple_choice"},
            {"choices": [], "answers": ["5", "five"], "metric": "mmmu_open"},
        ],
    ),
    "mathvista": Sample(
        "testmini.parquet",
        [
            {
                "pid": "1",
                "question": "How tall?",
                "image": "images/1.jpg",
                "decoded_image": shot(),
                "choices": None,
                "answer": "1.2",
                "question_type": "free_form",
                "answer_type": "float",
                **MATH,
                "unit": "m",
                "query": None,
            },
            {
                "pid": "2",
                "question": "Which?",
                "image": "images/2.jpg",
                "decoded_image": shot(),
                "choices": ["no", "yes"],
                "answer": "yes",
                "question_type": "multi_choice",
                "answer_type": "text",
                "query": "Hint: Please answer and provide the letter.\nQuestion: Which?\nChoices:\n(A) no\n(B) yes",
                **MATH,
            },
        ],
        [
            {
                "question": (
                    "Hint: Please answer the question requiring a floating-point number with one decimal place and provide "
                    "the final value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: How tall? (Unit: m)"
                ),
                "answers": ["1.2"],
                "metric": "mathvista",
                "meta": {"source": "FigureQA", "answer_type": "float", "precision": 1.0},
            },
            {
                "question": "Hint: Please answer and provide the letter.\nQuestion: Which?",
                "answers": ["B"],
                "choices": ["no", "yes"],
                "metric": "mathvista",
            },
        ],
    ),
    "geo3k": Sample(
        "train.parquet",
        [{"images": [shot(), shot(1)], "problem": f"<image>{GEOMETRY}", "answer": "2 \\sqrt { 221 }"}],
        [{"question": GEOMETRY, "answers": ["2 \\sqrt { 221 }"], "metric": "math"}],
    ),
    "verl": Sample(
        "train.parquet",
        [
            {
                "data_source": "hiyouga/geometry3k",
                "prompt": [{"role": "user", "content": f"<image>{GEOMETRY} Think first."}],
                "images": [shot()],
                "ability": "math",
                "reward_model": {"style": "rule", "ground_truth": "3"},
                "extra_info": {"split": "train", "index": 0, "answer": "3", "question": f"<image>{GEOMETRY}"},
            }
        ],
        [{"question": GEOMETRY, "answers": ["3"], "metric": "math", "meta": {"data_source": "hiyouga/geometry3k"}}],
    ),
    "llava": Sample(
        "llava_instruct_150k.json",
        [
            {
                "id": "33471",
                "image": "33471.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>\nWhat colour?"},
                    {"from": "gpt", "value": "Red."},
                    {"from": "human", "value": "Is it empty?"},
                    {"from": "gpt", "value": "No."},
                ],
            }
        ],
        [
            {"id": "33471-0", "question": "What colour?", "answers": ["Red."], "metric": "token_f1"},
            {"id": "33471-1", "question": "Is it empty?", "answers": ["No."], "metric": "token_f1"},
        ],
        pictures=("33471.jpg",),
    ),
    "messages": Sample(
        "train.jsonl",
        [
            {
                "messages": [{"role": "system", "content": "Be brief."}, *said("<image>What colour?", "Red.")],
                "images": ["a.jpg"],
            },
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "How many?"}]},
                    {"role": "assistant", "content": [{"type": "text", "text": "Two."}]},
                    *said("Sure?", "Yes."),
                ],
                "images": ["a.jpg"],
            },
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "a.jpg"}},
                            {"type": "text", "text": "Who?"},
                        ],
                    },
                    {"role": "assistant", "content": "Nobody."},
                ]
            },
        ],
        [
            {"question": "What colour?", "answers": ["Red."], "metric": "token_f1"},
            {"question": "How many?", "answers": ["Two."]},
            {"question": "Sure?", "answers": ["Yes."]},
            {"question": "Who?", "answers": ["Nobody."]},
        ],
        pictures=("a.jpg",),
    ),
    "messages-boxes": Sample(
        "train.jsonl",
        [
            {
                "messages": said("<image>Find the <ref-object>.", "<bbox>"),
                "images": ["a.jpg"],
                "objects": {"ref": ["sheep"], "bbox": [[20, 10, 60, 40]]},
            },
            {
                "messages": said("<image>Find all.", "<bbox> and <bbox>"),
                "images": ["a.jpg"],
                "objects": {"ref": [], "bbox": [[0.1, 0.1, 0.3, 0.4], [0, 0, 0.5, 1]], "bbox_type": "norm1"},
            },
        ],
        [
            {"question": "Find the sheep.", "boxes": [[0.1, 0.1, 0.3, 0.4]], "task": "grounding"},
            {"question": "Find all.", "boxes": [[0.1, 0.1, 0.3, 0.4], [0, 0, 0.5, 1]]},
        ],
        pictures=("a.jpg",),
    ),
    "vlm-r1": Sample(
        "refcoco_train.jsonl",
        [
            {
                "id": 1,
                "image": "coco/a.jpg",
                "conversations": [
                    {"from": "human", "value": "<image>the left man"},
                    {"from": "gpt", "value": [20, 10, 60, 40]},
                ],
            }
        ],
        [{"question": "the left man", "boxes": BOX, "metric": "acc_at_iou_0.5"}],
        pictures=("coco/a.jpg",),
    ),
    **dict.fromkeys(
        ("refcoco", "refcoco+", "refcocog"),
        Sample(
            "val.parquet",
            [
                {
                    **REFERRED,
                    "image": shot(),
                    "answer": ["left man", "man in red"],
                    "bbox": [20, 10, 40, 30],
                    "file_name": "COCO_train2014_000000518022.jpg",
                }
            ],
            [{"question": text, "boxes": BOX, "metric": "acc_at_iou_0.5"} for text in ("left man", "man in red")],
        ),
    ),
    "visual-genome": Sample(
        "region_descriptions.json",
        [
            {
                "id": 1,
                "regions": [
                    {
                        "region_id": 1382,
                        "image_id": 1,
                        "phrase": "the clock is green",
                        "x": 20,
                        "y": 10,
                        "width": 40,
                        "height": 30,
                    }
                ],
            }
        ],
        [{"question": "the clock is green", "boxes": BOX, "metric": "acc_at_iou_0.5", "meta": {"region_id": 1382}}],
        pictures=("VG_100K_2/1.jpg",),
    ),
    "vindr-cxr": Sample(
        "train.csv",
        "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
        "a,Cardiomegaly,3,R10,20.0,10.0,60.0,40.0\nb,No finding,14,R11,,,,\n",
        [{"labels": ["Cardiomegaly"], "boxes": BOX, "metric": "iou"}, {"boxes": [], "metric": "iou"}],
        pictures=("a.png", "b.png"),
    ),
    "ms-cxr": Sample(
        "MS_CXR_Local_Alignment_v1.1.0.json",
        {
            "categories": [{"id": 4, "name": "Edema"}],
            "images": [{"id": 1, "file_name": "d1.jpg", "path": "files/p10/d1.jpg", "width": 200, "height": 100}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 4, "label_text": text, "bbox": [20, 10, 40, 30]}
                for n, text in enumerate(("bilateral edema", "left edema", "bilateral edema"))
            ],
        },
        [
            {
                "question": "bilateral edema",
                "boxes": BOX * 2,
                "labels": ["Edema"] * 2,
                "metric": "iou",
                "meta": {"image_id": 1},
            },
            {"question": "left edema", "boxes": BOX},
        ],
        pictures=("files/p10/d1.jpg",),
    ),
    "screenspot": Sample(
        "data/test.parquet",
        [
            {
                "file_name": "a.png",
                "bbox": [0.1, 0.1, 0.3, 0.4],
                "instruction": "close",
                "data_type": "icon",
                "data_source": "windows",
                "image": shot(),
            }
        ],
        [{"question": "close", "boxes": BOX, "metric": "point_in_box", "meta": {"platform": "desktop"}}],
    ),
    "screenspot-v2": Sample(
        "screenspot_desktop_v2.json",
        [
            {
                "img_filename": "a.png",
                "bbox": [20, 10, 40, 30],
                "instruction": "close",
                "data_type": "icon",
                "data_source": "windows",
            }
        ],
        [{"question": "close", "boxes": BOX, "metric": "point_in_box"}],
        pictures=("screenspotv2_image/a.png",),
    ),
    "screenspot-pro": Sample(
        "annotations/blender_windows.json",
        [
            {
                "img_filename": "blender/a.png",
                "bbox": [20, 10, 60, 40],
                "instruction": "erase",
                "instruction_cn": "擦",
                "id": "blender_windows_0",
                "application": "blender",
                "platform": "windows",
                "img_size": [200, 100],
                "ui_type": "icon",
                "group": "Creative",
            }
        ],
        [{"id": "blender_windows_0", "boxes": BOX, "metric": "point_in_box", "meta": {"group": "Creative"}}],
        pictures=("images/blender/a.png",),
    ),
    "osworld-g": Sample(
        "OSWorld-G.json",
        [
            {**UI, "id": "a-0", "box_type": "bbox", "box_coordinates": [20, 10, 40, 30]},
            {
                **UI,
                "id": "a-1",
                "instruction": "open the tab",
                "box_type": "polygon",
                "box_coordinates": [20, 10, 60, 10, 40, 40],
            },
            {**UI, "id": "a-2", "box_type": "refusal", "box_coordinates": [-1, -1, -1, -1]},
        ],
        [
            {"id": "a-0", "boxes": BOX, "labels": ["Button, Icon"], "metric": "point_in_box"},
            {"id": "a-1", "boxes": BOX, "meta": {"polygons": [[0.1, 0.1, 0.3, 0.1, 0.2, 0.4]]}},
            {"id": "a-2", "boxes": [], "meta": {"box_type": "refusal"}},
        ],
        pictures=("images/a.png",),
    ),
    "ui-vision": Sample(
        "element_grounding_functional.json",
        [
            {
                "image_path": "a.png",
                "image_size": [200, 100],
                "prompt_to_evaluate": "open the menu",
                "bbox": [20, 10, 60, 40],
                "platform": "GIMP",
                "element_type": "Button",
            }
        ],
        [
            {
                "question": "open the menu",
                "boxes": BOX,
                "metric": "point_in_box",
                "meta": {"setting": "functional", "platform": "GIMP", "element_type": "Button"},
            }
        ],
        pictures=("a.png",),
    ),
    "mmbench-gui-l2": Sample(
        "L2_annotations.json",
        [
            {
                "image_path": "a.png",
                "platform": "os_windows",
                "instruction": text,
                "bbox": box,
                "data_type": "icon",
                "grounding_type": "basic",
                "app_name": "Files",
            }
            for text, box in (("close", [0.1, 0.1, 0.3, 0.4]), ("save", [20, 10, 60, 40]), ("menu", [-1, -1, 60, 40]))
        ],
        [
            {"question": "close", "boxes": BOX, "labels": ["icon"], "meta": {"grounding_type": "basic"}},
            {"question": "save", "boxes": BOX, "metric": "point_in_box"},
            {"question": "menu", "boxes": [[0.0, 0.0, 0.3, 0.4]]},
        ],
        pictures=("os_windows/a.png",),
    ),
    "venusbench-gd": Sample(
        "refusal_spatial.json",
        [
            {
                "image_path": "a.png",
                "platform": "web",
                "instruction": "the cat on the button",
                "bbox": [-1, -1, -1, -1],
                "ui_element_type": "none",
            }
        ],
        [
            {
                "question": "the cat on the button",
                "boxes": [],
                "meta": {"task_type": "refusal_spatial", "platform": "web"},
            }
        ],
        pictures=("web/a.png",),
    ),
    "os-atlas": Sample(
        "uibert_raw.json",
        [
            {"img_filename": "a.png", "instruction": "search", "bbox": [0.1, 0.1, 0.3, 0.4], "data_type": "text"},
            {
                "img_filename": "a.png",
                "elements": [
                    {"instruction": text, "bbox": [0.1, 0.1, 0.3, 0.4], "data_type": "link"}
                    for text in ("home", "help")
                ],
            },
        ],
        [{"question": text, "boxes": BOX, "metric": "point_in_box"} for text in ("search", "home", "help")],
        pictures=("imgs/a.png",),
    ),
    "uground": Sample(
        "shard_0000.parquet",
        [
            {
                "image": shot()["bytes"],
                "width": "200",
                "height": "100",
                "conversations": json.dumps(
                    [
                        {"from": "human", "value": "close button"},
                        {"from": "gpt", "value": "(100, 100, 300, 400)"},
                        {"from": "human", "value": "search box"},
                        {"from": "gpt", "value": "(0, 0, 500, 500)"},
                    ]
                ),
            }
        ],
        [
            {"question": "close button", "boxes": BOX, "metric": "point_in_box"},
            {"question": "search box", "boxes": [[0.0, 0.0, 0.5, 0.5]]},
        ],
    ),
    "custom": Sample(
        "own.jsonl",
        [{"id": 1, "image": "a.png", "question": "Which?", "choices": ["red", "blue"], "answer": "A", "ward": "B"}],
        [{"id": "1", "choices": ["red", "blue"], "answers": ["A"], "metric": "multiple_choice", "meta": {"ward": "B"}}],
        pictures=("a.png",),
    ),
}
