"""Run every attack of the suite against every reward of this project: the tables of docs/rewards.md.

python benchmarks/reward_attacks.py                            prints them
python benchmarks/reward_attacks.py --write docs/rewards.md    puts them between the file's markers
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from vision_rl.answers.boxes import Box
from vision_rl.answers.coordinates import FAMILIES
from vision_rl.answers.formats import FORMATS
from vision_rl.answers.space import AnswerSpace
from vision_rl.errors import UserError, cli_errors
from vision_rl.preflight.attack_cases import (
    BOXES_ONLY,
    GROUNDING_ATTACKS,
    MEGABYTE,
    QUESTIONS,
    SIZE,
    TARGETS,
    VQA_ATTACKS,
    Question,
    Scene,
    grid,
)
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
START, END = "<!-- attacks: start -->", "<!-- attacks: end -->"

_FORMS = (
    *(("bbox", "unit"), ("click", "unit")),
    *(("native", family) for family in FAMILIES),
    *((name, "qwen2_5_vl") for name, row in FORMATS.items() if row.points and name not in ("molmo", "ui_tars")),
)
SCENES = tuple(
    Scene(f"{target}, {fmt}, {family}", true, AnswerSpace(fmt, family, SIZE, SIZE))
    for target, true in TARGETS.items()
    for fmt, family in _FORMS
)

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


def _boxed(scene: Scene, reply: str, kind: str) -> float:
    """The reward of a reply."""
    return grounding_reward(reply, scene.true, scene.space, kind=kind).value


def _answered(question: Question, reply: str, kind: str) -> float:
    """The reward of a reply; multiple choice is asked with the candidates as choices."""
    choices = question.candidates if kind == "multiple_choice" else ()
    return vqa_reward(reply, question.answers, kind=kind, choices=choices).value


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
            guide = 0.0 if points else _boxed(scene, reply, "max_iou")
            for kind in POINT_KINDS if points else KINDS:
                if kind not in GAMEABLE_KINDS:
                    yield Outcome(
                        name, f"{kind}: {scene.name}", _boxed(scene, gold, kind), _boxed(scene, reply, kind), guide
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
                honest, attacked = _answered(question, question.right, kind), _answered(question, reply, kind)
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
            named = sum(_boxed(scene, scene.write([box]), kind) for box in boxes) / len(boxes)
            listed = _boxed(scene, scene.write(boxes), kind)
            yield f"grounding, {kind}", len(boxes), named, listed, _boxed(scene, scene.write(boxes), "max_iou")
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
