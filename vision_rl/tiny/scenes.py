"""Seeded synthetic pictures with a question each: shapes to answer questions about, and screens to find an element on.

Every example also carries the answer of a confused reader (`mistake`), which `warmstart.py` teaches so that reinforcement
learning has something to put right. Its design is what makes training without sight useless: over the data set, mistakes
have the same distribution as right answers (each kind of answer is confused along a cycle, each element with the next one
of its screen), so no answer is better than another until the picture is looked at.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]
Rgb = tuple[int, int, int]

COLORS: dict[str, Rgb] = {
    "red": (214, 40, 40),
    "green": (40, 160, 70),
    "blue": (50, 90, 220),
    "yellow": (235, 200, 40),
    "purple": (150, 60, 190),
    "cyan": (60, 200, 210),
}
SHAPES = ("circle", "square", "triangle", "cross")
COUNTS = ("1", "2", "3", "4")
ELEMENTS = ("button", "field", "checkbox", "icon")
TEXT_ELEMENTS = ("button", "field")
VERBS = ("Find", "Click", "Select")
PICTURE_SIZE = (84, 84)
SCREEN_SIZES = ((112, 84), (84, 112))
CELL = 28
"""Pictures are laid out on a grid of this many pixels, with jitter: the side of one visual token."""


@dataclass(frozen=True)
class Example:
    """One picture with one question. `answer` is a word for "vqa" and a box for "grounding" (unit xyxy), as is `mistake`."""

    image: Image.Image
    question: str
    answer: str | Box
    mistake: str | Box
    question_type: str
    theme: str


def following(item: str, cycle: tuple[str, ...]) -> str:
    """The item after `item` in `cycle`, the first one after the last."""
    return cycle[(cycle.index(item) + 1) % len(cycle)]


def draw_example(task: str, rng: random.Random) -> Example:
    """Draw one example of `task` ("vqa" or "grounding")."""
    return {"vqa": _draw_picture, "grounding": _draw_screen}[task](rng)


def _theme(rng: random.Random) -> tuple[str, Rgb]:
    """A theme's name and a background of it; every background differs a little, so that hardly two pictures are equal."""
    theme = rng.choice(("light", "dark", "dark"))
    low, high = (225, 255) if theme == "light" else (8, 38)
    return theme, (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))


def _shaded(name: str, rng: random.Random) -> Rgb:
    red, green, blue = (min(255, max(0, value + rng.randint(-12, 12))) for value in COLORS[name])
    return red, green, blue


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, centre: tuple[int, int], radius: int, color: Rgb) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        draw.ellipse(box, fill=color)
    elif shape == "square":
        draw.rectangle(box, fill=color)
    elif shape == "triangle":
        draw.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=color)
    else:
        arm = max(2, radius // 3)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=color)
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=color)


def _draw_picture(rng: random.Random) -> Example:
    theme, background = _theme(rng)
    image = Image.new("RGB", PICTURE_SIZE, background)
    draw = ImageDraw.Draw(image)
    question_type = rng.choice(("color", "shape", "count", "side"))
    columns, rows = PICTURE_SIZE[0] // CELL, PICTURE_SIZE[1] // CELL
    if question_type == "side":
        cells = [(0, rng.randrange(rows)), (columns - 1, rng.randrange(rows))]
    else:
        number = int(rng.choice(COUNTS)) if question_type == "count" else rng.randint(2, 3)
        cells = rng.sample([(column, row) for column in range(columns) for row in range(rows)], number)
    colors = rng.sample(list(COLORS), len(cells))
    shapes = rng.sample(SHAPES, len(cells))
    for (column, row), color, shape in zip(cells, colors, shapes, strict=True):
        centre = (column * CELL + CELL // 2 + rng.randint(-3, 3), row * CELL + CELL // 2 + rng.randint(-3, 3))
        _draw_shape(draw, shape, centre, rng.randint(8, 11), _shaded(color, rng))
    question, answer, cycle = _ask(question_type, colors, shapes, rng)
    return Example(image, question, answer, following(answer, cycle), question_type, theme)


def _ask(question_type: str, colors: list[str], shapes: list[str], rng: random.Random) -> tuple[str, str, tuple[str, ...]]:
    """Question, answer and the cycle of answers that it belongs to; the shapes of a "side" picture stand left, right."""
    if question_type == "color":
        return f"What color is the {shapes[0]}?", colors[0], tuple(COLORS)
    if question_type == "shape":
        return f"Which shape is {colors[0]}?", shapes[0], SHAPES
    if question_type == "count":
        return "How many shapes are there?", str(len(shapes)), COUNTS
    index, side = rng.choice(((0, "left"), (1, "right")))
    if rng.random() < 0.5:
        return f"What color is the shape on the {side}?", colors[index], tuple(COLORS)
    return f"Which shape is on the {side}?", shapes[index], SHAPES


def _draw_screen(rng: random.Random) -> Example:
    theme, background = _theme(rng)
    width, height = size = rng.choice(SCREEN_SIZES)
    image = Image.new("RGB", size, background)
    draw = ImageDraw.Draw(image)
    ink = (30, 30, 30) if theme == "light" else (235, 235, 235)
    cells = rng.sample([(column, row) for row in range(height // CELL) for column in range(2)], rng.randint(3, 4))
    cells.sort(key=lambda cell: (cell[1], cell[0]))
    colors = rng.sample(list(COLORS), len(cells))
    kinds = [rng.choice(ELEMENTS) for _ in cells]
    boxes = []
    for (column, row), color, kind in zip(cells, colors, kinds, strict=True):
        box = _element_box(kind, (column * width // 2, row * CELL), width // 2, rng)
        _draw_element(draw, kind, box, _shaded(color, rng), ink)
        boxes.append((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    target = rng.randrange(len(cells))
    instruction = f"{rng.choice(VERBS)} the {colors[target]} {kinds[target]}."
    mistake = boxes[(target + 1) % len(boxes)]
    return Example(image, instruction, boxes[target], mistake, kinds[target], theme)


def _element_box(kind: str, corner: tuple[int, int], room: int, rng: random.Random) -> tuple[int, int, int, int]:
    """A box in pixels, right and bottom edges exclusive, inside the `room` x `CELL` pixels at `corner`."""
    high = rng.randint(14, 22)
    wide = rng.randint(26, room - 4) if kind in TEXT_ELEMENTS else high
    x, y = corner[0] + rng.randint(2, room - wide - 2), corner[1] + rng.randint(2, CELL - high - 2)
    return x, y, x + wide, y + high


def _draw_element(
    draw: ImageDraw.ImageDraw, kind: str, box: tuple[int, int, int, int], color: Rgb, ink: Rgb
) -> None:
    left, top, right, bottom = box[0], box[1], box[2] - 1, box[3] - 1
    middle = (top + bottom) // 2
    if kind == "button":
        draw.rounded_rectangle((left, top, right, bottom), radius=4, fill=color)
        draw.line((left + 6, middle, right - 6, middle), fill=ink, width=2)
    elif kind == "field":
        draw.rectangle((left, top, right, bottom), outline=color, width=4)
        draw.line((left + 6, top + 6, left + 6, bottom - 6), fill=ink, width=1)
    elif kind == "checkbox":
        draw.rectangle((left, top, right, bottom), fill=color)
        draw.line([(left + 3, middle), (left + 6, bottom - 4), (right - 3, top + 4)], fill=ink, width=2)
    else:
        draw.ellipse((left, top, right, bottom), fill=color)
