"""Attacks on a reward: replies that a policy under optimisation finds sooner or later.

`python -m vision_rl.preflight.attack_cases` prints its tables, `--write docs/rewards.md` puts them between the file's markers.
Two questions are asked. Does an attack that *knows* the answer get more than the plain right answer? Does one that does
*not* know it, and has k candidates, get more by listing them than by naming one at random?
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from vision_rl.answers.boxes import Box
from vision_rl.answers.coordinates import FAMILIES
from vision_rl.answers.parsing import POINT_FORMATS, format_boxes
from vision_rl.answers.space import AnswerSpace
from vision_rl.errors import UserError, cli_errors
from vision_rl.rewards.grounding import KINDS, POINT_KINDS, grounding_reward
from vision_rl.rewards.tools import Call, arc_reward
from vision_rl.rewards.vqa import KINDS as ANSWER_KINDS
from vision_rl.rewards.vqa import answer_similarity, vqa_reward
from vision_rl.settings import ArcWeights
from vision_rl.waiting import waiting

GAMEABLE_KINDS = ("max_iou",)
"""Kinds that keep a known hole under their own names; the tables show it, the guarantee leaves them out."""

PUBLISHED_ARC = ArcWeights(right_iou=0.0, aimed_only=False, needed_only=False)
"""Arc Vision's tool bonus as published, for comparison."""

MEGABYTE = 1_000_000
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
START, END = "<!-- attacks: start -->", "<!-- attacks: end -->"

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

    def score(self, reply: str, kind: str) -> float:
        """The reward of a reply."""
        return grounding_reward(reply, self.true, self.space, kind=kind).value


TARGETS: dict[str, tuple[Box, ...]] = {
    "large": ((0.2, 0.3, 0.8, 0.7),),
    "small": ((0.62, 0.11, 0.66, 0.14),),
    "corner": ((0.0, 0.0, 0.12, 0.1),),
    "three": ((0.1, 0.1, 0.3, 0.3), (0.5, 0.5, 0.7, 0.9), (0.75, 0.05, 0.95, 0.2)),
    "none": (),
}
_FORMS = (
    *(("bbox", "unit"), ("click", "unit")),
    *(("native", family) for family in FAMILIES),
    *((name, "qwen2_5_vl") for name in POINT_FORMATS if name not in ("molmo", "ui_tars")),
)
SCENES = tuple(
    Scene(f"{target}, {fmt}, {family}", true, AnswerSpace(fmt, family, SIZE, SIZE))
    for target, true in TARGETS.items()
    for fmt, family in _FORMS
)
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

    def score(self, reply: str, kind: str) -> float:
        """The reward of a reply; multiple choice is asked with the candidates as choices."""
        choices = self.candidates if kind == "multiple_choice" else ()
        return vqa_reward(reply, self.answers, kind=kind, choices=choices).value


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

_ZOOM = "zoom_ui_element"
_MISS: Call = (_ZOOM, {"region": [0.9, 0.9, 0.99, 0.99], "zoom_factor": 2})
TOOL_ATTACKS: dict[str, Callable[[Box], list[Call]]] = {
    "50 zooms on the target": lambda box: [(_ZOOM, {"region": list(box), "zoom_factor": 2})] * 50,
    "3 zooms on the target": lambda box: [(_ZOOM, {"region": list(box), "zoom_factor": 2})] * 3,
    "1 zoom beside the target": lambda box: [_MISS],
    "50 zooms beside the target": lambda box: [_MISS] * 50,
    "1 wait": lambda box: [("wait_for_ui", {"duration": 1.0})],
    "a tool that does not exist": lambda box: [("look_harder", {"region": list(box)})],
    "a region of nan": lambda box: [(_ZOOM, {"region": [float("nan")] * 4})],
    "every tool in turn": lambda box: [(_ZOOM, {"region": list(box)}), ("wait_for_ui", {}), ("inspect_element", {})],
}


@dataclass(frozen=True)
class Outcome:
    """One attack in one case: the rewards of the honest answer, of the attack, of the attack under the naive reward."""

    attack: str
    case: str
    honest: float
    attacked: float
    guide: float


def grounding_outcomes() -> Iterator[Outcome]:
    """Every grounding attack in every scene under every kind that carries the guarantee."""
    for name, build in GROUNDING_ATTACKS.items():
        for scene in SCENES:
            points = scene.space.takes_points
            if (points and name in BOXES_ONLY) or (scene.space.answer_format == "computer_use" and "tool call" in name):
                continue
            reply, gold = build(scene), scene.write(scene.true)
            if len(reply) >= MEGABYTE // 2 and scene.name not in ("large, bbox, unit", "large, point, qwen2_5_vl"):
                continue  # one target is enough where only the length attacks
            guide = 0.0 if points else scene.score(reply, "max_iou")
            for kind in POINT_KINDS if points else KINDS:
                if kind not in GAMEABLE_KINDS:
                    yield Outcome(
                        name, f"{kind}: {scene.name}", scene.score(gold, kind), scene.score(reply, kind), guide
                    )


def vqa_outcomes() -> Iterator[Outcome]:
    """Every VQA attack on every question under every kind."""
    for name, build in VQA_ATTACKS.items():
        for question in QUESTIONS:
            reply = build(question)
            guide = answer_similarity(reply, question.right)
            for kind in ANSWER_KINDS:
                if len(reply) >= MEGABYTE // 2 and kind not in ("vqa", "similarity"):
                    continue  # one metric by words and one by letters are enough where only the length attacks
                honest, attacked = question.score(question.right, kind), question.score(reply, kind)
                yield Outcome(name, f"{kind}: {question.right}", honest, attacked, guide)


def tool_outcomes() -> Iterator[Outcome]:
    """Every tool attack with the right box, against the better of no tool and one zoom on the target."""
    for name, build in TOOL_ATTACKS.items():
        for target, true in TARGETS.items():
            for box in true[:1]:
                honest = max(arc_reward(1.0, box, calls).value for calls in ([], [(_ZOOM, {"region": list(box)})]))
                calls = build(box)
                published = arc_reward(1.0, box, calls, PUBLISHED_ARC).value
                yield Outcome(name, target, honest, arc_reward(1.0, box, calls).value, published)


def guessing_rows() -> Iterator[tuple[str, int, float, float, float]]:
    """(task, k, expected reward of naming one of k candidates, reward of listing all, the same under the naive reward).

    Exactly one candidate is right, and each is equally likely; the boxes tile the image.
    """
    for side in (2, 4, 10):
        boxes = grid(side)
        scene = Scene("", (boxes[0],), AnswerSpace("bbox", "unit"))
        for kind in ("iou", "gaussian", "point"):
            named = sum(scene.score(scene.write([box]), kind) for box in boxes) / len(boxes)
            listed = scene.score(scene.write(boxes), kind)
            yield f"grounding, {kind}", len(boxes), named, listed, scene.score(scene.write(boxes), "max_iou")
    for words in (("yes", "no"), ("red", "green", "blue", "white", "black")):
        for kind in ("vqa", "similarity"):
            humans = (words[0],) * 10
            named = sum(vqa_reward(word, humans, kind=kind).value for word in words) / len(words)
            listed = vqa_reward(" ".join(words), humans, kind=kind).value
            yield f"VQA, {kind}", len(words), named, listed, answer_similarity(" ".join(words), words[0])


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def _worst_rows(outcomes: Sequence[Outcome]) -> Iterator[Sequence[str]]:
    """One row per attack: its case with the highest attacked - honest, and the most that the naive reward pays it."""
    for attack in dict.fromkeys(outcome.attack for outcome in outcomes):
        cases = [outcome for outcome in outcomes if outcome.attack == attack]
        worst = max(cases, key=lambda outcome: outcome.attacked - outcome.honest)
        guide = max(outcome.guide for outcome in cases)
        yield attack, str(len(cases)), worst.case, f"{worst.honest:.3f}", f"{worst.attacked:.3f}", f"{guide:.3f}"


def all_outcomes() -> dict[str, list[Outcome]]:
    """Every attack, by what it is against: grounding, vqa, tools."""
    return {"grounding": list(grounding_outcomes()), "vqa": list(vqa_outcomes()), "tools": list(tool_outcomes())}


def tables(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """The suite's results (of `all_outcomes`) as Markdown."""
    head = ("attack", "cases", "worst case", "honest", "attacked", "naive reward at most")
    lines: list[str] = []
    for kind, title in (
        ("grounding", "Grounding, against the right boxes (naive reward: max-IoU)"),
        ("vqa", "VQA, against the right answer (naive reward: similarity without brevity)"),
        ("tools", "Tools, right box, against the better of no tool and one aimed zoom (naive reward: as published)"),
    ):
        lines += [f"### {title}", "", *_table(head, _worst_rows(outcomes[kind])), ""]
    rows = (
        (task, str(k), f"{one:.3f}", f"{all_:.3f}", f"{guide:.3f}") for task, k, one, all_, guide in guessing_rows()
    )
    lines += ["### Listing k candidates, against naming one at random", ""]
    lines += _table(("task", "k", "naming one", "listing all", "listing all, naive reward"), rows)
    return "\n".join(lines)


def insert(document: str, text: str) -> str:
    """The document with `text` between its two markers; `UserError` if it lacks them."""
    before, start, rest = document.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise UserError(f"the file needs the lines {START} and {END}, between which the tables go")
    return f"{before}{START}\n{text}\n{END}{after}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the tables between the markers of this file")
    args = parser.parse_args()
    if args.write and not args.write.is_file():
        raise UserError(f"{args.write} cannot be read; name an existing file")
    with waiting("attacking every reward", Console(stderr=True)):
        made = tables(all_outcomes())
    if args.write:
        args.write.write_text(insert(args.write.read_text(encoding="utf-8"), made), encoding="utf-8")
    print(f"wrote {args.write}" if args.write else made)


if __name__ == "__main__":
    with cli_errors():
        main()
