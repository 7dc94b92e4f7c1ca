"""A contact sheet: pictures with boxes, questions and answers, to look at before training."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from vision_rl.answers.choices import lettered
from vision_rl.errors import UserError
from vision_rl.files import replacing
from vision_rl.media.images import open_image
from vision_rl.tasks import get_task

_CELL = 320
_PICTURE = 240
_MARGIN = 8
_TEXT_LINES = 5
_MOST_PICTURES = 8  # of a row; more would be too narrow to see
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080")


def contact_sheet(rows: Sequence[dict[str, Any]], *, columns: int = 4) -> Image.Image:
    """One cell per row: its images side by side with the boxes of the first, then id, question and answers or labels.

    Rows are those of `read_rows` (absolute paths, unit boxes). A picture that cannot be opened shows why instead.
    """
    if not rows:
        raise UserError("there are no rows to show")
    if columns < 1:
        raise UserError(f"--columns {columns} is too small; give 1 or more")
    columns = min(columns, len(rows))
    text_height = 16 * _TEXT_LINES + _MARGIN
    cell_height = _PICTURE + text_height + 2 * _MARGIN
    lines = (len(rows) + columns - 1) // columns
    sheet = Image.new("RGB", (columns * _CELL, lines * cell_height), "white")
    for index, row in enumerate(rows):
        left, top = index % columns * _CELL, index // columns * cell_height
        sheet.paste(_pictures(row), (left + _MARGIN, top + _MARGIN))
        _write(sheet, (left + _MARGIN, top + _PICTURE + 2 * _MARGIN), _caption(row))
    return sheet


def save_sheet(sheet: Image.Image, path: str | Path) -> None:
    """Write the sheet as PNG, atomically."""
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _pictures(row: dict[str, Any]) -> Image.Image:
    """The images of a row (the first eight) in one strip of the cell's width."""
    width = _CELL - 2 * _MARGIN
    strip = Image.new("RGB", (width, _PICTURE), "#eeeeee")
    paths = row["image_paths"][:_MOST_PICTURES]
    if not paths:
        _write(strip, (4, 4), ["an episode: its environment shows it"])
    share = width // max(1, len(paths))
    for index, path in enumerate(paths):
        try:
            picture = open_image(path)
        except UserError as error:
            _write(strip, (index * share + 4, 4), textwrap.wrap(str(error), max(8, share // 8))[:12], "#c00000")
            continue
        picture.thumbnail((share - 2, _PICTURE), Image.Resampling.LANCZOS)
        if index == 0:
            _draw_boxes(picture, row)
        strip.paste(picture, (index * share + (share - picture.width) // 2, (_PICTURE - picture.height) // 2))
    return strip


def _draw_boxes(picture: Image.Image, row: dict[str, Any]) -> None:
    draw = ImageDraw.Draw(picture)
    for index, (box, label) in enumerate(zip(row["boxes"], row["labels"], strict=True)):
        colour = _COLOURS[index % len(_COLOURS)]
        x1, y1, x2, y2 = (
            box[0] * picture.width,
            box[1] * picture.height,
            box[2] * picture.width,
            box[3] * picture.height,
        )
        draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=colour, width=2)
        if label:
            draw.text((x1, max(0, y1 - 15)), label, fill=colour, font=_font(11), stroke_width=2, stroke_fill="white")


def _caption(row: dict[str, Any]) -> list[str]:
    wide = 46
    asked = "  ".join([row["question"], *lettered(row.get("choices", ()))])
    question = textwrap.wrap(asked, wide, max_lines=2, placeholder=" ...")
    truth = get_task(row["task"]).truth
    if truth == "environment":
        answer = f"seed {row['meta']['seed']}"
    elif truth == "answers":
        counts = {answer: row["answers"].count(answer) for answer in row["answers"]}
        ordered = sorted(counts, key=lambda answer: -counts[answer])
        shown = ", ".join(f"{answer} ({counts[answer]})" if counts[answer] > 1 else answer for answer in ordered)
        answer = f"A: {shown}"
    else:
        answer = f"{len(row['boxes'])} boxes" if row["boxes"] else "no finding"
        answer = answer.replace("1 boxes", "1 box") if len(row["boxes"]) == 1 else answer
    hidden = len(row["image_paths"]) - _MOST_PICTURES
    more = f"  and {hidden} more pictures" if hidden > 0 else ""
    return [
        f"{row['id']}  [{row['source']}]{more}"[:wide],
        *question,
        *textwrap.wrap(answer, wide, max_lines=2, placeholder=" ..."),
    ]


def _write(image: Image.Image, at: tuple[int, int], lines: list[str], colour: str = "black") -> None:
    ImageDraw.Draw(image).multiline_text(at, "\n".join(lines), fill=colour, font=_font(12), spacing=3)


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib ships DejaVu, so the sheet looks the same on a machine without any font.
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
