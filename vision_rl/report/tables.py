"""Validation rollouts in the experiment trackers: pictures with boxes and a table, in TensorBoard and Weights & Biases.

The same rows every time, so that the trackers' step sliders show how the answer to a row changes.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vision_rl.agent.replay import answer_boxes, episode_strip, is_played, pictures_of, predicted_boxes, views_of
from vision_rl.answers.boxes import Box
from vision_rl.errors import UserError
from vision_rl.media.images import open_image
from vision_rl.report.cards import gold_text
from vision_rl.run.reader import RecordedRun, read_run

ROWS = 16
"""Of a validation; pictures of hundreds would fill the trackers' disks."""
TAG = "rollouts"
COLUMNS = ("id", "question", "truth", "reply", "reward", "failure")
_SIDE = 512
_TRUE, _PREDICTED = "#0a8f3c", "#d6246e"


@dataclass(frozen=True)
class Example:
    """One rollout as a tracker shows it. picture: None if it is gone; boxes: unit xyxy, of the first picture."""

    record: Mapping[str, Any]
    picture: Image.Image | None
    true: tuple[Box, ...]
    predicted: tuple[Box, ...]

    def cells(self) -> tuple[str, str, str, str, float, str]:
        """The values of `COLUMNS`."""
        record = self.record
        reply = "\n".join(record["replies"])
        truth = gold_text(record["answers"], record["boxes"])
        reward = float(record["reward"].get("reward", 0.0))
        return record["id"], record["question"], truth, reply, reward, record["failure"]


def log_rollout_tables(
    loggers: Mapping[str, Any], records: Sequence[Mapping[str, Any]], step: int, run_dir: str | Path
) -> None:
    """Write `ROWS` of the rollouts to those of the trackers that can show pictures; the others are passed over.

    loggers: `Tracking.logger` of verl (verl/utils/tracking.py), by backend. records: lines of rollouts.jsonl. A picture that
    is gone leaves its row without one.
    """
    if not {"tensorboard", "wandb"} & loggers.keys():
        return
    run = read_run(run_dir)
    chosen = sorted(records, key=lambda record: (record["id"], record["rollout_id"]))[:ROWS]
    examples = [_example(record, run) for record in chosen]
    if "tensorboard" in loggers:
        _to_tensorboard(loggers["tensorboard"].writer, examples, step)
    if "wandb" in loggers:
        _to_wandb(loggers["wandb"], examples, step)


def _example(record: Mapping[str, Any], run: RecordedRun) -> Example:
    true = tuple((box[0], box[1], box[2], box[3]) for box in record["boxes"])
    predicted: list[Box] = []
    try:
        if is_played(record):
            return Example(record, episode_strip(run.path, record, run.settings), (), ())
        picture = open_image(record["image_paths"][0])
        if run.truth_of(record) == "boxes" and record["replies"]:
            if record["reward"].get("tools/zooms"):
                views = views_of(record, run.settings, pictures_of(run.path, record))
                predicted = answer_boxes(record, run.settings, views)
            else:
                scored = {"reply": record["replies"][-1], "components": record["reward"]}
                predicted = predicted_boxes(scored, run.settings, picture.size)
    except UserError:
        return Example(record, None, true, ())
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    return Example(record, picture, true, tuple(map(_inside, predicted)))


def _inside(box: Box) -> Box:
    """A box with its corners in order and inside the picture, as trackers want it."""
    (x1, x2), (y1, y2) = sorted((box[0], box[2])), sorted((box[1], box[3]))
    left, top, right, bottom = (min(1.0, max(0.0, value)) for value in (x1, y1, x2, y2))
    return left, top, right, bottom


def _to_tensorboard(writer: Any, examples: Sequence[Example], step: int) -> None:
    """`writer`: torch's SummaryWriter. Boxes are painted: TensorBoard has no overlay."""
    lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
    for number, example in enumerate(examples):
        if example.picture is not None:
            image = np.asarray(_painted(example))
            writer.add_image(f"{TAG}/{number:02d}", image, step, dataformats="HWC")
        lines.append(
            " | ".join(_markdown(cell) for cell in (f"{number:02d}: {example.cells()[0]}", *example.cells()[1:]))
        )
    writer.add_text(TAG, "\n".join(lines), step)
    writer.flush()


def _painted(example: Example) -> Image.Image:
    assert example.picture is not None
    canvas = example.picture.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    for colour, boxes in ((_TRUE, example.true), (_PREDICTED, example.predicted)):
        for box in boxes:
            left, top, right, bottom = (v * side for v, side in zip(box, canvas.size * 2, strict=True))
            draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
    return canvas


def _markdown(cell: str | float) -> str:
    """A cell of a Markdown table: what a model writes must not become markup or another cell."""
    text = f"{cell:.3f}" if isinstance(cell, float) else cell
    escaped = html.escape(text).replace("|", "&#124;").replace("`", "&#96;").replace("[", "&#91;").replace("*", "&#42;")
    return " ".join(escaped.split())


def _to_wandb(wandb: Any, examples: Sequence[Example], step: int) -> None:
    """`wandb`: the module, with a run under way. Boxes lie over the picture and can be switched."""
    labels = {0: "truth", 1: "predicted"}
    table = wandb.Table(columns=["picture", *COLUMNS])
    for example in examples:
        boxes = {
            labels[kind]: {"box_data": [_position(box, kind, labels[kind]) for box in found], "class_labels": labels}
            for kind, found in enumerate((example.true, example.predicted))
            if found
        }
        picture = None if example.picture is None else wandb.Image(example.picture, boxes=boxes or None)
        table.add_data(picture, *example.cells())
    wandb.log({TAG: table}, step=step)


def _position(box: Box, kind: int, caption: str) -> dict[str, Any]:
    corners = {"minX": box[0], "minY": box[1], "maxX": box[2], "maxY": box[3]}
    return {"position": corners, "class_id": kind, "box_caption": caption}
