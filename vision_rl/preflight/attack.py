"""Run the attack suite against any reward: `python -m vision_rl.preflight.attack my_reward.py`.

The reward is a file with a function `reward(reply, row)` (or FILE.py:function), "module:function", or a reward's name,
such as `anls` or `gaussian`. The suite prints a table of the replies that earn more than the honest answer, and of those
that break the reward: a number that is not finite, an error, two seconds of CPU time. A list of all candidates is compared
with one candidate at random. Without --task, the suite takes the rows whose honest answers the reward pays: short answers
(vqa) or boxes (grounding). The exit code is 1 if there is a finding.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vision_rl.answers.space import AnswerSpace
from vision_rl.errors import Parser, UserError, cli_errors
from vision_rl.preflight.attack_cases import (
    BOXES_ONLY,
    GROUNDING_ATTACKS,
    QUESTIONS,
    SIZE,
    TARGETS,
    VQA_ATTACKS,
    Scene,
    grid,
)
from vision_rl.rewards.grounding import KINDS, grounding_reward
from vision_rl.rewards.user import user_reward
from vision_rl.rewards.vqa import KINDS as ANSWER_KINDS
from vision_rl.rewards.vqa import vqa_reward
from vision_rl.settings import AgentSettings
from vision_rl.types import Reward

SLOW_SECONDS = 2.0
TASKS = ("vqa", "grounding")
SHOWN = 60
"""Characters of an attacking reply in the table."""
Scored = Callable[[str, Mapping[str, Any]], float]
"""(reply, row with settings) -> the reward's value."""


@dataclass(frozen=True)
class Finding:
    """One attack that pays, or that breaks the reward, with the text that does.

    honest: what the honest answer gets in the same case; guess: it is the mean over the candidates, each named alone.
    """

    attack: str
    case: str
    reply: str
    honest: float
    attacked: float
    verdict: str
    guess: bool = False


def reward_of(spec: str, task: str) -> tuple[Scored, str]:
    """(reward, task) for a name, "module:function", FILE.py or FILE.py:function; `UserError` for what is none of them.

    task: of a function of one's own; "" finds it out (`paid_task`).
    """
    if spec in ANSWER_KINDS:
        return lambda reply, row: vqa_reward(reply, row["answers"], kind=spec, choices=row["choices"]).value, "vqa"
    if spec in KINDS:
        return lambda reply, row: _boxed(reply, row, spec), "grounding"
    path, _, name = spec.partition(":") if spec.split(":")[0].endswith(".py") else ("", "", "")
    function = _from_file(Path(path), name or "reward") if path else user_reward(spec)

    def scored(reply: str, row: Mapping[str, Any]) -> float:
        value = function(reply, row)
        return value.value if isinstance(value, Reward) else float(value)

    return scored, task or paid_task(scored, spec)


def paid_task(reward: Scored, spec: str) -> str:
    """The task whose honest answers a reward pays. Raises `UserError` where it pays those of both tasks or of none."""
    paid = [task for task in TASKS if any(_tried(reward, case.honest, case.row)[0] > 0 for case in cases_of(task))]
    if len(paid) == 1:
        return paid[0]
    raise UserError(
        f"{spec} pays honest answers of {'both short answers and boxes' if paid else 'neither short answers nor boxes'}, so "
        "its rows are unknown; add --task vqa (short answers) or --task grounding (boxes)"
    )


def _boxed(reply: str, row: Mapping[str, Any], kind: str) -> float:
    width, height = row["image_sizes"][0]
    space = AnswerSpace.of(AgentSettings.of(row), (width, height), (width, height))
    return grounding_reward(reply, row["boxes"], space, kind=kind).value


def _from_file(path: Path, name: str) -> Any:
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a Python file with a function reward(reply, row)")
    specification = importlib.util.spec_from_file_location(f"vision_rl_attacked_{path.stem}", path)
    assert specification is not None and specification.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:  # whatever a user's file raises
        raise UserError(f"{path} does not load ({type(error).__name__}: {error}); mend the file") from error
    if not callable(getattr(module, name, None)):
        raise UserError(f"{path} has no function {name}(reply, row); name it as {path}:function")
    return getattr(module, name)


@dataclass(frozen=True)
class Case:
    """One row with its honest reply, its attacks, and the replies of a guesser: each candidate, and all of them listed."""

    name: str
    row: dict[str, Any]
    honest: str
    attacks: dict[str, str]
    candidates: tuple[str, ...]
    listed: dict[str, str]


def cases_of(task: str, answer_format: str = "bbox", family: str = "unit") -> Iterator[Case]:
    """The cases of a task, with rows as agents get them."""
    settings = {**asdict(AgentSettings()), "answer_format": answer_format, "family": family}
    base: dict[str, Any] = {"task": task, "question": "?", "image_paths": ["a.png"], "media": "images", "answers": []}
    base |= {"boxes": [], "labels": [], "choices": [], "meta": {}, "source": "attack", "id": "1", "settings": settings}
    if task == "vqa":
        for question in QUESTIONS:
            attacks = {name: build(question) for name, build in VQA_ATTACKS.items()}
            attacks["a part of the right answer"] = question.right[:1]
            row = {**base, "answers": list(question.answers), "choices": list(question.candidates), "image_sizes": []}
            lists = {mark.strip() or "spaces": mark.join(question.candidates) for mark in (" ", ", ", " or ", "/")}
            yield Case(question.right, row, question.right, attacks, question.candidates, lists)
        return
    space = AnswerSpace(answer_format, family, SIZE, SIZE)
    for name, true in TARGETS.items():
        scene = Scene(name, true, space)
        builders = {
            key: build for key, build in GROUNDING_ATTACKS.items() if not (space.takes_points and key in BOXES_ONLY)
        }
        row = {**base, "boxes": [list(box) for box in true], "labels": [""] * len(true), "image_sizes": [SIZE]}
        attacks = {key: build(scene) for key, build in builders.items()}
        yield Case(name, row, scene.write(true), attacks, (), {})
    boxes = grid(3)
    scene = Scene("one of 9", (boxes[4],), space)
    row = {**base, "boxes": [list(boxes[4])], "labels": [""], "image_sizes": [SIZE]}
    named = tuple(scene.write([box]) for box in boxes)
    yield Case(scene.name, row, named[4], {}, named, {"all": scene.write(boxes)})


def attack(reward: Scored, cases: Iterator[Case]) -> list[Finding]:
    """Everything that pays more than the honest answer, or breaks the reward."""
    findings: list[Finding] = []
    for case in cases:
        _tried(reward, case.honest, case.row)  # what it imports when first called is not its time
        honest, problem = _tried(reward, case.honest, case.row)
        if problem:
            findings.append(Finding("the honest answer", case.name, case.honest, honest, honest, problem))
        for name, reply in case.attacks.items():
            value, problem = _tried(reward, reply, case.row)
            if problem or value > honest + 1e-9:
                findings.append(Finding(name, case.name, reply, honest, value, problem or "pays more"))
        if case.candidates:
            named = sum(_tried(reward, reply, case.row)[0] for reply in case.candidates) / len(case.candidates)
            for mark, reply in case.listed.items():
                value, _ = _tried(reward, reply, case.row)
                if value > named + 1e-9:
                    verdict = "listing pays more than naming one at random"
                    findings.append(
                        Finding(f"every candidate ({mark})", case.name, reply, named, value, verdict, guess=True)
                    )
    return findings


def _tried(reward: Scored, reply: str, row: Mapping[str, Any]) -> tuple[float, str]:
    """(value, what is wrong with it or "")."""
    start = time.process_time()
    try:
        value = reward(reply, row)
    except Exception as error:  # a reward must take any text
        return 0.0, f"raises {type(error).__name__}"
    if not math.isfinite(value):
        return value, "is not finite"
    seconds = time.process_time() - start
    return value, f"takes {seconds:.1f} s" if seconds > SLOW_SECONDS else ""


def table(findings: list[Finding]) -> str:
    """The findings as Markdown, or one sentence where there are none."""
    if not findings:
        return "No attack pays more than the honest answer, and none breaks the reward."
    head = "| attack | case | attacking reply | honest | attacked | verdict |\n| --- | --- | --- | --- | --- | --- |"
    return "\n".join([head, *map(_line, findings)])


def _line(finding: Finding) -> str:
    reply = shortened(finding.reply).replace("|", "\\|")
    honest = f"{finding.honest:.3f}{' (one at random)' if finding.guess else ''}"
    return f"| {finding.attack} | {finding.case} | `{reply}` | {honest} | {finding.attacked:.3f} | {finding.verdict} |"


def shortened(reply: str) -> str:
    """A reply on one line, its control characters as escapes, with its length where it is cut."""
    text = reply if reply.isprintable() else repr(reply)[1:-1]
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(reply):,} characters)"


def parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("reward", help="FILE.py, FILE.py:function, module:function, or a reward's name")
    parser.add_argument(
        "--task", choices=TASKS, default="", help="kind of rows that your reward scores (default: found by trying)"
    )
    parser.add_argument(
        "--answer-format", default="bbox", help="answer format of a grounding reward (default: %(default)s)"
    )
    parser.add_argument(
        "--family", default="unit", help="model family whose coordinate space the replies use (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Attack a reward; returns the exit code."""
    args = parser().parse_args(argv)
    with cli_errors():
        reward, task = reward_of(args.reward, args.task)
        findings = attack(reward, cases_of(task, args.answer_format, args.family))
        print(f"{args.reward} on rows of {task}:\n{table(findings)}")
        return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
