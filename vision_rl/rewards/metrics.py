"""Every metric by its name: the number that trains (`agent.reward`), and the number that evaluation prints.

`metric("anls").score(prediction, answers)` scores a short answer; `metric("iou").score(predicted, true)` boxes in unit
space, xyxy. A row of a data set may name its own metric (column `metric`).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vision_rl.errors import UserError
from vision_rl.rewards.grounding import match_score
from vision_rl.rewards.math_equality import math_equal
from vision_rl.rewards.multiple_choice import multiple_choice
from vision_rl.rewards.text_metrics import anls, exact_match, medical_accuracy, relaxed_accuracy, token_f1
from vision_rl.rewards.vqa_accuracy import brief_similarity, official_2021_accuracy, vqa_accuracy


@dataclass(frozen=True)
class Metric:
    """One metric. truth: "answers" (strings) or "boxes". source: where it is published. hole: how listing games it.

    score: (short answer, true answers) or (predicted boxes, true boxes) -> number, 1.0 being right. takes_choices: it
    takes the choices of a question as its third argument.
    """

    name: str
    truth: str
    score: Callable[..., float]
    source: str
    hole: str = ""
    takes_choices: bool = False

    def of_answer(self, prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
        """The score of a short answer; 0.0 where there is no true one."""
        if not answers:
            return 0.0
        return self.score(prediction, answers, choices) if self.takes_choices else self.score(prediction, answers)


def _boxes(kind: str) -> Any:
    return partial(match_score, kind=kind)


_REFERRING = "referring expressions (RefCOCO: Yu et al. 2016, arXiv 1608.00272): IoU of 0.5 or more"

METRICS: dict[str, Metric] = {
    row.name: row
    for row in (
        Metric("vqa", "answers", vqa_accuracy, "Antol et al. 2015, arXiv 1505.00468; both sides normalised"),
        Metric("official_2021", "answers", official_2021_accuracy, "GT-Vision-Lab/VQA, vqaEval.py of 2021"),
        Metric("exact_match", "answers", exact_match, "SQuAD, arXiv 1606.05250"),
        Metric(
            "anls", "answers", anls, "Biten et al. 2019, arXiv 1907.00490, threshold 0.5",
            hole="a list of candidates pays where the right one makes up more than half of its letters",
        ),
        Metric("relaxed_accuracy", "answers", relaxed_accuracy, "ChartQA, arXiv 2203.10244, 5 %"),
        Metric(
            "multiple_choice", "answers", multiple_choice, "MMMU, arXiv 2311.16502; naming two is wrong",
            takes_choices=True,
        ),
        Metric(
            "token_f1", "answers", token_f1, "SQuAD, arXiv 1606.05250; PathVQA, arXiv 2003.10286",
            hole="listing k one-word candidates pays 2 / (k + 1), naming one at random 1 / k",
        ),
        Metric("medical", "answers", medical_accuracy, "VQA-RAD (Lau et al. 2018), SLAKE (arXiv 2102.09542)"),
        Metric("math", "answers", math_equal, "math-verify (Hugging Face)"),
        Metric("similarity", "answers", brief_similarity, "the VQA guide's similarity times brevity"),
        Metric("iou", "boxes", _boxes("iou"), "matched one to one (Hungarian)"),
        Metric("giou", "boxes", _boxes("giou"), "arXiv 1902.09630"),
        Metric("diou", "boxes", _boxes("diou"), "arXiv 1911.08287"),
        Metric("ciou", "boxes", _boxes("ciou"), "arXiv 1911.08287"),
        Metric("acc_at_iou_0.5", "boxes", _boxes("acc_at_iou_0.5"), _REFERRING),
        Metric("point_in_box", "boxes", _boxes("point"), "ScreenSpot (SeeClick, arXiv 2401.10935), borders included"),
    )
}  # fmt: skip

OLD_NAMES = {"official": "vqa"}
"""Names of rewards in configurations from before 2026-11-25."""


def metric(name: str) -> Metric:
    """A row of `METRICS`; `UserError` with the nearest name for one that does not exist."""
    name = OLD_NAMES.get(name, name)
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"metric {name!r} does not exist{hint}; choose one of {', '.join(METRICS)}")
    return METRICS[name]
