"""Time and memory of the VQAv2 conversion against plain `json.load` of the same two files.

    python benchmarks/conversion_speed.py DIRECTORY [--questions 443757]

Generates question and annotation files in VQAv2's layout and size in DIRECTORY (about 400 MB, reused by later runs),
then runs each contender in a process of its own and prints seconds, their ratio to `json.load`, and the peak memory.
Goal for the train split: below 2 GiB, at most twice the time of `json.load`.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from vision_rl.data.convert import vqav2

Measurement = tuple[float, float, int]
"""CPU seconds (of all threads), seconds, peak resident bytes."""
TRAIN_QUESTIONS = 443_757
TRAIN_IMAGES = 82_783
WORDS = [
    "cat",
    "dog",
    "red",
    "blue",
    "white",
    "black",
    "left",
    "right",
    "frisbee",
    "table",
    "pizza",
    "man",
    "train",
    "bus",
]
QUESTION_TYPES = [
    "what is the",
    "what color is the",
    "is the",
    "how many",
    "are there",
    "where is the",
    "none of the above",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the generated files go")
    parser.add_argument("--questions", type=int, default=TRAIN_QUESTIONS, help="number of questions to generate")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each contender; the fastest counts")
    parser.add_argument("--with-images", action="store_true", help="generate the pictures too and read their sizes")
    args = parser.parse_args()
    folder: Path = args.directory / str(args.questions)
    generate(folder, args.questions, with_images=args.with_images)
    for name in ("questions", "annotations"):
        print(f"{name}.json: {(folder / f'{name}.json').stat().st_size / 1e6:.0f} MB")
    contenders: dict[str, Callable[[Path], None]] = {"json.load": plain_load, "convert": convert}
    if args.with_images:
        contenders["convert with image sizes"] = convert_with_sizes
    best: dict[str, Measurement] = {}
    for _ in range(args.repeat):  # in turns, so that a busy moment of the machine does not fall on one contender
        for name, contender in contenders.items():
            found = measured(contender, folder)
            best[name] = min(best.get(name, found), found)
    baseline = best["json.load"]
    for name, (cpu, wall, peak) in best.items():
        ratios = f"{cpu / baseline[0]:4.2f} x json.load (wall {wall / baseline[1]:4.2f} x)"
        print(f"{name:26s} {cpu:6.2f} s CPU  {wall:6.2f} s wall   {ratios}   peak {peak / 2**30:.2f} GiB")


def plain_load(folder: Path) -> None:
    data = []
    for name in ("questions", "annotations"):
        with open(folder / f"{name}.json", encoding="utf-8") as file:
            data.append(json.load(file))


def convert(folder: Path) -> None:
    vqav2.convert(
        folder / "questions.json",
        folder / "annotations.json",
        folder / "train2014",
        folder / "out.parquet",
        missing_images="keep",
        image_sizes=False,
    )


def convert_with_sizes(folder: Path) -> None:
    vqav2.convert(folder / "questions.json", folder / "annotations.json", folder / "train2014", folder / "out.parquet")


def measured(contender: Callable[[Path], None], folder: Path) -> Measurement:
    """One run in a fresh process; its start-up is not timed."""
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[Measurement] = context.Queue()
    process = context.Process(target=_measure, args=(contender, folder, queue))
    process.start()
    result = queue.get()
    process.join()
    return result


def _measure(contender: Callable[[Path], None], folder: Path, queue: Any) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    contender(folder)
    queue.put((time.process_time() - cpu, time.perf_counter() - wall, _peak_memory()))


def _peak_memory() -> int:
    """Largest resident size in bytes; `getrusage` would count the parent's size too."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def generate(folder: Path, count: int, *, with_images: bool) -> None:
    """Write the two files (once), and with `with_images` one small picture per image."""
    images = max(1, count * TRAIN_IMAGES // TRAIN_QUESTIONS)
    (folder / "train2014").mkdir(parents=True, exist_ok=True)
    if not (folder / "complete").exists():
        rng = random.Random(0)
        questions, annotations = [], []
        for number in range(count):
            question, annotation = make_question(rng, number % images + 1, number // images)
            questions.append(question)
            annotations.append(annotation)
        head = {"info": {"description": "generated", "version": "2.0"}, "data_type": "mscoco", "license": {"name": "-"}}
        for name, items in (("questions", questions), ("annotations", annotations)):
            with open(folder / f"{name}.json", "w", encoding="utf-8") as file:
                json.dump({**head, "data_subtype": "train2014", name: items}, file)
        (folder / "complete").touch()
    if with_images:
        write_images(folder / "train2014", images)


def make_question(rng: random.Random, image_id: int, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """One question and its annotation in the official layout."""
    question_id = image_id * 1000 + index
    kind = rng.choice(QUESTION_TYPES)
    question = {
        "image_id": image_id,
        "question": f"{kind.capitalize()} {' '.join(rng.choices(WORDS, k=5))}?",
        "question_id": question_id,
    }
    given = rng.choices(WORDS, weights=range(len(WORDS), 0, -1), k=10)
    annotation = {
        "question_type": kind,
        "multiple_choice_answer": max(given, key=given.count),
        "answers": [
            {"answer": answer, "answer_confidence": rng.choice(["yes", "maybe", "no"]), "answer_id": number}
            for number, answer in enumerate(given, start=1)
        ],
        "image_id": image_id,
        "answer_type": rng.choice(["other", "yes/no", "number"]),
        "question_id": question_id,
    }
    return question, annotation


def write_images(folder: Path, count: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (640, 480), (90, 120, 60)).save(buffer, "JPEG", quality=50)
    for image_id in range(1, count + 1):
        path = folder / f"COCO_train2014_{image_id:012d}.jpg"
        if not path.exists():
            path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
