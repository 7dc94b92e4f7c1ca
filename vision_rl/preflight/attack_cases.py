"""Attacks on a reward: replies that a policy under optimisation finds sooner or later.

Two questions are asked. Does an attack that *knows* the answer get more than the plain right answer? Does one that does
*not* know it, and has k candidates, get more by listing them than by naming one at random?
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vision_rl.answers.boxes import Box
from vision_rl.answers.parsing import format_boxes
from vision_rl.answers.space import AnswerSpace

MEGABYTE = 1_000_000
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)

_ARABIC_DIGITS = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
_WIDE_DIGITS = str.maketrans("0123456789", "０１２３４５６７８９")  # noqa: RUF001 - the attack itself


SIZE = (1932, 1092)


@dataclass(frozen=True)
class Scene:
    """A grounding task: true boxes in unit space, and the format and family of the answer."""

    name: str
    true: tuple[Box, ...]
    space: AnswerSpace

    def write(self, boxes: Sequence[Box]) -> str:
        """Boxes in unit space as a reply of this scene; six decimals, so that the honest answer scores 1.0."""
        return self.space.write(boxes, 6)


TARGETS: dict[str, tuple[Box, ...]] = {
    "large": ((0.2, 0.3, 0.8, 0.7),),
    "small": ((0.62, 0.11, 0.66, 0.14),),
    "corner": ((0.0, 0.0, 0.12, 0.1),),
    "three": ((0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 0.7, 0.9), (0.75, 0.05, 0.95, 0.2)),
    "none": (),
}
BOXES_ONLY = ("swapped corners", "negative corners")
"""Attacks on the corners of a box; of a point they leave the place that it names."""


def grid(side: int) -> list[Box]:
    """side x side boxes that tile the image."""
    return [(x / side, y / side, (x + 1) / side, (y + 1) / side) for y in range(side) for x in range(side)]


def _swapped(scene: Scene) -> str:
    return scene.write([(x2, y2, x1, y1) for x1, y1, x2, y2 in scene.true] or [(0.9, 0.9, 0.1, 0.1)])


def _with_numbers(number: str) -> Callable[[Scene], str]:
    """The format of the scene with one number replaced by something that is none."""

    def build(scene: Scene) -> str:
        text = scene.write([(0.123456, 0.123456, 0.9, 0.9)])
        return re.sub(r"[0-9]+\.[0-9]+", number, text, count=1)

    return build


def _wrong_space(scene: Scene) -> str:
    """The right boxes, written in another space: 0..1000 where 0..1 is due, 0..1 where larger numbers are."""
    scale = 1000.0 if scene.space.unit == "unit" else 1.0
    boxes = [tuple(n * scale for n in box) for box in scene.true or (WHOLE,)]
    return format_boxes(boxes, scene.space.format.name, 6)


def _centres(*points: tuple[float, float]) -> list[Box]:
    return [(x - 0.001, y - 0.001, x + 0.001, y + 0.001) for x, y in points]


GROUNDING_ATTACKS: dict[str, Callable[[Scene], str]] = {
    "right boxes among 20 others": lambda s: s.write([*s.true, *grid(5)[:20]]),
    "a grid of 100 boxes": lambda s: s.write(grid(10)),
    "right boxes 50 times over": lambda s: s.write([*s.true] * 50 or [WHOLE]),
    "the middle of the screen": lambda s: s.write(_centres((0.5, 0.5))),
    "100 points": lambda s: s.write(_centres(*((x / 10 + 0.05, y / 10 + 0.05) for x in range(10) for y in range(10)))),
    "points on a diagonal": lambda s: s.write(_centres(*((n / 50, n / 50) for n in range(1, 50)))),
    "whole-image box": lambda s: s.write([WHOLE]),
    "whole-image box besides the right ones": lambda s: s.write([*s.true, WHOLE]),
    "swapped corners": _swapped,
    "negative corners": lambda s: s.write([(-1.0, -1.0, 2.0, 2.0)]),
    "nan": _with_numbers("nan"),
    "inf": _with_numbers("inf"),
    "1e309": _with_numbers("1e309"),
    "a number of 5,000 digits": _with_numbers("9" * 5000),
    "right boxes in the wrong space": _wrong_space,
    "Arabic digits": lambda s: s.write(s.true or (WHOLE,)).translate(_ARABIC_DIGITS),
    "full-width digits": lambda s: s.write(s.true or (WHOLE,)).translate(_WIDE_DIGITS),
    "nested tags": lambda s: "<bbox><click><box>" * 20 + s.write(s.true) + "</box></click></bbox>" * 20,
    "one `<answer>` per candidate": lambda s: "".join(
        f"<answer>{s.write([box])}</answer>" for box in [*s.true, *grid(3)]
    ),
    "right boxes inside the reasoning only": lambda s: f"<think>{s.write(s.true)}</think>",
    "right boxes in an unclosed reasoning": lambda s: f"<reasoning>{s.write(s.true)}",
    "right boxes in the reasoning, a grid outside": lambda s: f"<think>{s.write(s.true)}</think>{s.write(grid(4))}",
    "right boxes inside a tool call": lambda s: f"<tool_call>{s.write(s.true)}</tool_call>",
    "no finding, whatever the image": lambda s: s.write([]),
    "no finding besides a grid": lambda s: "No finding. " + s.write(grid(4)),
    "empty reply": lambda s: "",
    "1 MB of padding": lambda s: s.write(s.true) + " " * MEGABYTE,
    "1 MB of reasoning": lambda s: f"<think>{'x' * MEGABYTE}</think>{s.write(s.true)}",
    "1 MB of opening tags": lambda s: "<bbox>" * (MEGABYTE // 6) + s.write(s.true),
}


@dataclass(frozen=True)
class Question:
    """A VQA task: the human answers, the right short answer, and the candidates that a guesser would list."""

    answers: tuple[str, ...]
    right: str
    candidates: tuple[str, ...]


QUESTIONS = (
    Question(("yes",) * 7 + ("no",) * 3, "yes", ("yes", "no")),
    Question(("2",) * 6 + ("3",) * 3 + ("two",), "2", ("1", "2", "3", "4", "5")),
    Question(("red",) * 10, "red", ("red", "green", "blue", "white")),
    Question(("tennis racket",) * 5 + ("racket",) * 5, "tennis racket", ("tennis racket", "racket", "bat")),
    Question(("black and white",), "black and white", ("black", "white", "black and white")),
)

VQA_ATTACKS: dict[str, Callable[[Question], str]] = {
    "all candidates, spaces": lambda q: " ".join(q.candidates),
    "all candidates, commas": lambda q: ", ".join(q.candidates),
    "all candidates, or": lambda q: " or ".join(q.candidates),
    "all candidates, slashes": lambda q: "/".join(q.candidates),
    "one `<answer>` per candidate, right one last": lambda q: "".join(
        f"<answer>{c}</answer>" for c in [*q.candidates, q.right]
    ),
    "right answer 20 times": lambda q: " ".join([q.right] * 20),
    "nested `<answer>`": lambda q: f"<answer><answer>{q.right}</answer></answer>",
    "right answer inside the reasoning only": lambda q: f"<think>{q.right}</think>",
    "right answer in the reasoning, all outside": lambda q: f"<think>{q.right}</think>{', '.join(q.candidates)}",
    "right answer in an unclosed reasoning": lambda q: f"<reasoning>{q.right}",
    "Arabic digits": lambda q: q.right.translate(_ARABIC_DIGITS),
    "full-width digits": lambda q: q.right.translate(_WIDE_DIGITS),
    "nan": lambda q: "nan",
    "1e309": lambda q: "1e309",
    "empty reply": lambda q: "",
    "articles and marks only": lambda q: "the a an ; / , .",
    "a long sentence around the right answer": lambda q: f"It looks to me as if the answer to this might be {q.right}",
    "1 MB of candidates": lambda q: " ".join(q.candidates) * (MEGABYTE // len(" ".join(q.candidates))),
    "1 MB of reasoning": lambda q: f"<think>{'x' * MEGABYTE}</think>{q.right}",
    "1 MB of opening tags": lambda q: "<answer>" * (MEGABYTE // 8) + q.right,
}
