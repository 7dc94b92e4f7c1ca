"""Every metric by name: `agent.reward` names the one that trains, and evaluation prints them.

`metric("anls").score(prediction, answers)` scores a short answer; `metric("iou").score(predicted, true)` boxes in unit
space, xyxy. A row of a data set may name its own metric (column `metric`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from vision_rl.errors import UserError, meant
from vision_rl.rewards.grounding import match_score
from vision_rl.rewards.math_equality import math_equal
from vision_rl.rewards.mathvista import mathvista_accuracy
from vision_rl.rewards.mmmu import mmmu_open
from vision_rl.rewards.multiple_choice import multiple_choice
from vision_rl.rewards.text_metrics import (
    anls,
    exact_match,
    medical_accuracy,
    relaxed_accuracy,
    squad_em,
    squad_f1,
    token_f1,
)
from vision_rl.rewards.vqa_accuracy import brief_similarity, official_2021_accuracy, textvqa_accuracy, vqa_accuracy


@dataclass(frozen=True)
class Metric:
    """One metric. truth: "answers" (strings) or "boxes". source: where it is published. hole: how listing games it.

    score: (short answer, true answers) or (predicted boxes, true boxes) -> number, 1.0 being right. takes: what else of a
    row it is given, after the true answers: "choices" and "meta", in this order.
    """

    name: str
    truth: str
    score: Callable[..., float]
    source: str
    hole: str = ""
    takes: tuple[str, ...] = ()

    def of_answer(
        self,
        prediction: str,
        answers: Sequence[str],
        choices: Sequence[str] = (),
        meta: Mapping[str, Any] = MappingProxyType({}),
    ) -> float:
        """The score of a short answer; 0.0 where there is no true one."""
        if not answers:
            return 0.0
        given = {"choices": choices, "meta": meta}
        return self.score(prediction, answers, *(given[name] for name in self.takes))


def _boxes(kind: str) -> Any:
    return partial(match_score, kind=kind)


_F1_HOLE = "listing k one-word candidates pays 2 / (k + 1), naming one at random 1 / k"
_REFERRING = "referring expressions (RefCOCO: Yu et al. 2016, arXiv 1608.00272): IoU of 0.5 or more"

METRICS: dict[str, Metric] = {
    row.name: row
    for row in (
        Metric("vqa", "answers", vqa_accuracy, "Antol et al. 2015, arXiv 1505.00468; both sides normalised"),
        Metric("official_2021", "answers", official_2021_accuracy, "GT-Vision-Lab/VQA, vqaEval.py of 2021"),
        Metric("textvqa", "answers", textvqa_accuracy, "TextVQA, arXiv 1904.08920; Pythia's EvalAIAnswerProcessor"),
        Metric("exact_match", "answers", exact_match, "as SQuAD, arXiv 1606.05250, with signs and decimal points"),
        Metric("squad_em", "answers", squad_em, "SQuAD, arXiv 1606.05250: drops every mark, so that -5 equals 5"),
        Metric(
            "anls", "answers", anls, "Biten et al. 2019, arXiv 1907.00490, threshold 0.5",
            hole="a list of candidates pays where the right one makes up more than half of its letters",
        ),
        Metric("relaxed_accuracy", "answers", relaxed_accuracy, "ChartQA, arXiv 2203.10244, 5 %"),
        Metric(
            "multiple_choice", "answers", multiple_choice, "MMMU, arXiv 2311.16502; naming two is wrong",
            takes=("choices",),
        ),
        Metric(
            "mmmu_open", "answers", mmmu_open, "MMMU, eval/eval_utils.py: numbers to two digits, texts inside the answer",
            hole="a list pays in full for any member",
        ),
        Metric(
            "mathvista", "answers", mathvista_accuracy, "MathVista, evaluation/calculate_score.py",
            takes=("choices", "meta"),
        ),
        Metric("token_f1", "answers", token_f1, "as squad_f1, with signs and decimal points", hole=_F1_HOLE),
        Metric("squad_f1", "answers", squad_f1, "SQuAD, arXiv 1606.05250; PathVQA, arXiv 2003.10286", hole=_F1_HOLE),
        Metric("medical", "answers", medical_accuracy, "VQA-RAD (Lau et al. 2018), SLAKE (arXiv 2102.09542)"),
        Metric("math", "answers", math_equal, "math-verify (Hugging Face)"),
        Metric("similarity", "answers", brief_similarity, "similarity of older VQA instructions, times brevity"),
        Metric("iou", "boxes", _boxes("iou"), "matched one to one (Hungarian)"),
        Metric("giou", "boxes", _boxes("giou"), "arXiv 1902.09630"),
        Metric("diou", "boxes", _boxes("diou"), "arXiv 1911.08287"),
        Metric("ciou", "boxes", _boxes("ciou"), "arXiv 1911.08287"),
        Metric("acc_at_iou_0.5", "boxes", _boxes("acc_at_iou_0.5"), _REFERRING),
        Metric("point_in_box", "boxes", _boxes("point"), "ScreenSpot (SeeClick, arXiv 2401.10935), borders included"),
    )
}  # fmt: skip


def metric(name: str) -> Metric:
    """A row of `METRICS`; `UserError` with the nearest name for one that does not exist."""
    if name not in METRICS:
        raise UserError(f"metric {name!r} does not exist{meant(name, METRICS)}; choose one of {', '.join(METRICS)}")
    return METRICS[name]
