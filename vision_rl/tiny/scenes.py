"""Seeded synthetic pictures with a question each: shapes to answer questions about, and screens with an element to find.

Every example also carries the answer of a confused reader (`mistake`), which `warmstart.py` teaches for all but the plainest
wording of each question, so that reinforcement learning has something to put right. The mistakes are such that nothing is
to be gained without sight: over the data set they have the same distribution as the right answers, whatever the question
says. A word is confused with the next one of its cycle; an element with another of its kind whose colour is the next one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

Box = tuple[float, float, float, float]
PixelBox = tuple[int, int, int, int]
Rgb = tuple[int, int, int]

TASKS = ("vqa", "grounding")
"""The tasks that the tiny model is made for."""
COLORS: dict[str, Rgb] = {"red": (214, 40, 40), "green": (40, 160, 70), "blue": (50, 90, 220), "yellow": (235, 200, 40)}
SHAPES = ("circle", "square", "triangle")
COUNTS = ("1", "2", "3", "4")
ELEMENTS = {"button": (40, 18), "field": (36, 14), "icon": (18, 18)}
"""Sizes in pixels."""
TEXT_ELEMENTS = ("button", "field")
WORDINGS: dict[str, tuple[str, str, str]] = {
    "color": ("What color is the {kind}?", "Which color has the {kind}?", "Name the color of the {kind}."),
    "shape": ("Which shape is {color}?", "What is the {color} shape?", "Name the shape that is {color}."),
    "count": ("How many shapes are there?", "What is the number of shapes?", "Count the shapes."),
    "side color": (
        "What color is on the {side}?",
        "Which color has the {side} shape?",
        "Name the color on the {side}.",
    ),
    "side shape": ("Which shape is on the {side}?", "What is the {side} shape?", "Name the shape on the {side}."),
    "element": ("Find the {color} {kind}.", "Click the {color} {kind}.", "Select the {color} {kind}."),
}
"""What can be asked, the plainest wording first."""
PLACES = (("left", "middle", "right"), ("top", "upper", "lower"))
"""Words for the thirds of a picture, across and down."""
PICTURE_SIZE, SCREEN_SIZE = (84, 84), (112, 84)
CELL = 28
"""Pictures are laid out on a grid of this many pixels, with jitter: the side of one visual token."""


@dataclass(frozen=True)
class Thing:
    """A shape or an element of a screen. box: xyxy in pixels, right and bottom exclusive."""

    color: str
    kind: str
    box: PixelBox


@dataclass(frozen=True)
class Example:
    """One picture with one question.

    answer and mistake: a word for "vqa", a box for "grounding" (unit xyxy). plain: the question has its plainest wording.
    """

    image: Image.Image
    things: tuple[Thing, ...]
    question: str
    answer: str | Box
    mistake: str | Box
    question_type: str
    plain: bool
    theme: str


def draw_example(task: str, rng: random.Random) -> Example:
    """Draw one example of `task` ("vqa" or "grounding")."""
    return {"vqa": _draw_picture, "grounding": _draw_screen}[task](rng)


def following(item: str, cycle: tuple[str, ...]) -> str:
    """The item after `item` in `cycle`, the first one after the last."""
    return cycle[(cycle.index(item) + 1) % len(cycle)]


def unit_box(thing: Thing, size: tuple[int, int]) -> Box:
    """The box of a thing as fractions of the picture's (width, height)."""
    width, height = size
    return thing.box[0] / width, thing.box[1] / height, thing.box[2] / width, thing.box[3] / height


def place(thing: Thing, size: tuple[int, int]) -> tuple[int, int]:
    """The third of the picture that the thing's centre lies in, across and down, each 0, 1 or 2: the words of `PLACES`."""
    left, top, right, bottom = unit_box(thing, size)
    return int(3 * (left + right) / 2), int(3 * (top + bottom) / 2)


def _canvas(size: tuple[int, int], rng: random.Random) -> tuple[str, Image.Image]:
    """A theme's name and an empty picture of it, on a wallpaper that shades from left to right and from top to bottom.

    The shading tells where in the picture a patch lies: the vision tower knows relative positions only, and a model of
    this size does not learn to work out the absolute ones.
    """
    theme = rng.choice(("light", "dark"))
    base = (110, 150, 110) if theme == "light" else (0, 0, 0)
    red, green, blue = (value + rng.randint(0, 12) for value in base)
    across = (
        Image.linear_gradient("L").rotate(90).resize(size).point([red + 140 * level // 255 for level in range(256)])
    )
    down = Image.linear_gradient("L").resize(size).point([blue + 140 * level // 255 for level in range(256)])
    return theme, Image.merge("RGB", (across, Image.new("L", size, green), down))


def _draw(draw: ImageDraw.ImageDraw, thing: Thing, ink: Rgb, rng: random.Random) -> None:
    """Draw a thing in a shade of its colour; no two are quite the same."""
    color = tuple(min(255, max(0, value + rng.randint(-12, 12))) for value in COLORS[thing.color])
    left, top, right, bottom = thing.box[0], thing.box[1], thing.box[2] - 1, thing.box[3] - 1
    middle = (top + bottom) // 2
    if thing.kind in ("circle", "icon"):
        draw.ellipse((left, top, right, bottom), fill=color)
    elif thing.kind == "square":
        draw.rectangle((left, top, right, bottom), fill=color)
    elif thing.kind == "triangle":
        draw.polygon([((left + right) // 2, top), (right, bottom), (left, bottom)], fill=color)
    elif thing.kind == "button":
        draw.rounded_rectangle((left, top, right, bottom), radius=4, fill=color)
        draw.line((left + 6, middle, right - 6, middle), fill=ink, width=2)
    else:
        draw.rectangle((left, top, right, bottom), outline=color, width=4)
        draw.line((left + 6, top + 6, left + 6, bottom - 6), fill=ink, width=1)


def _render(size: tuple[int, int], things: list[Thing], rng: random.Random) -> tuple[str, Image.Image]:
    theme, image = _canvas(size, rng)
    draw = ImageDraw.Draw(image)
    for thing in things:
        _draw(draw, thing, (30, 30, 30) if theme == "light" else (235, 235, 235), rng)
    return theme, image


def _draw_picture(rng: random.Random) -> Example:
    question_type = rng.choice(("color", "shape", "count", "side"))
    if question_type == "side":
        cells = [(0, rng.randrange(3)), (2, rng.randrange(3))]
    else:
        number = int(rng.choice(COUNTS)) if question_type == "count" else rng.randint(2, 3)
        cells = rng.sample([(column, row) for column in range(3) for row in range(3)], number)
    colors = rng.sample(list(COLORS), len(cells))
    shapes = rng.choices(SHAPES, k=len(cells)) if question_type == "count" else rng.sample(SHAPES, len(cells))
    things = []
    for (column, row), color, shape in zip(cells, colors, shapes, strict=True):
        radius = rng.randint(8, 11)
        x, y = (index * CELL + CELL // 2 + rng.randint(-3, 3) for index in (column, row))
        things.append(Thing(color, shape, (x - radius, y - radius, x + radius + 1, y + radius + 1)))
    kind, values, answer, cycle = _ask(question_type, things, rng)
    question, plain = _word(kind, values, rng)
    theme, image = _render(PICTURE_SIZE, things, rng)
    return Example(image, tuple(things), question, answer, following(answer, cycle), question_type, plain, theme)


def _ask(
    question_type: str, things: list[Thing], rng: random.Random
) -> tuple[str, dict[str, str], str, tuple[str, ...]]:
    """Kind of question, its words, the answer and the cycle of answers; the things of a "side" picture stand left, right."""
    if question_type == "color":
        return "color", {"kind": things[0].kind}, things[0].color, tuple(COLORS)
    if question_type == "shape":
        return "shape", {"color": things[0].color}, things[0].kind, SHAPES
    if question_type == "count":
        return "count", {}, str(len(things)), COUNTS
    thing, side = rng.choice(((things[0], "left"), (things[1], "right")))
    if rng.random() < 0.5:
        return "side color", {"side": side}, thing.color, tuple(COLORS)
    return "side shape", {"side": side}, thing.kind, SHAPES


def _word(kind: str, values: dict[str, str], rng: random.Random) -> tuple[str, bool]:
    """A question of this kind, and whether the wording is the plainest."""
    number = rng.randrange(len(WORDINGS[kind]))
    return WORDINGS[kind][number].format(**values), number == 0


def _draw_screen(rng: random.Random) -> Example:
    """Three elements in the cells of a grid of two columns and three rows: a target, its double in the next colour, another."""
    room = SCREEN_SIZE[0] // 2
    color = rng.choice(tuple(COLORS))
    double = following(color, tuple(COLORS))
    colors = [color, double, rng.choice([other for other in COLORS if other not in (color, double)])]
    kind = rng.choice(tuple(ELEMENTS))
    kinds = [kind, kind, rng.choice(tuple(ELEMENTS))]
    things = []
    cells = rng.sample([(column, row) for column in range(2) for row in range(3)], 3)
    for (column, row), shade, element in zip(cells, colors, kinds, strict=True):
        width, height = ELEMENTS[element]
        x, y = column * room + (room - width) // 2, row * CELL + (CELL - height) // 2
        things.append(Thing(shade, element, (x, y, x + width, y + height)))
    theme, image = _render(SCREEN_SIZE, things, rng)
    instruction, plain = _word("element", {"color": color, "kind": kind}, rng)
    answer, mistake = (unit_box(thing, SCREEN_SIZE) for thing in things[:2])
    return Example(image, tuple(things), instruction, answer, mistake, kind, plain, theme)
