"""The reward of an answer to a question: a metric, less the deductions for format and length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from vision_rl.answers.parsing import count_answers, parse_answer, reasoning_is_closed
from vision_rl.errors import UserError
from vision_rl.rewards.metrics import METRICS
from vision_rl.rewards.terms import with_terms
from vision_rl.rewards.vqa_accuracy import (
    answer_similarity,
    best_answer,
    by_frequency,
    normalise_answer,
    official_2021_accuracy,
    vqa_accuracy,
)
from vision_rl.settings import DEFAULT_TERMS, Terms
from vision_rl.types import Reward

__all__ = [
    "DEFAULT",
    "KINDS",
    "accuracies",
    "answer_metric",
    "answer_similarity",
    "best_answer",
    "by_frequency",
    "normalise_answer",
    "official_2021_accuracy",
    "vqa_accuracy",
    "vqa_format_ok",
    "vqa_reward",
    "with_terms",
]

KINDS = tuple(name for name, row in METRICS.items() if row.truth == "answers")
DEFAULT = "vqa"


def answer_metric(reward: str, metric_of_row: str) -> str:
    """What scores a row: the reward that was set for the run, or the row's own metric where none was (`DEFAULT`)."""
    return metric_of_row if reward == DEFAULT and metric_of_row in KINDS else reward


def accuracies(answer: str, answers: Sequence[str]) -> dict[str, float]:
    """The two components that every reward of an answer has: accuracy (both sides normalised) and official_2021."""
    return {"accuracy": vqa_accuracy(answer, answers), "official_2021": official_2021_accuracy(answer, answers)}


def vqa_reward(
    reply: str,
    answers: Sequence[str],
    *,
    kind: str = DEFAULT,
    metric: str = "",
    choices: Sequence[str] = (),
    meta: Mapping[str, Any] = MappingProxyType({}),
    terms: Terms = DEFAULT_TERMS,
    truncated: bool = False,
) -> Reward:
    """The reward of a whole reply to a question.

    kind: one of `KINDS`, the metrics of answers (`vision_rl.rewards.metrics`). metric: the row's own, see
    `answer_metric`. choices: those of a multiple choice question. meta: the row's, of which "mathvista" reads the form of the
    answer. truncated: the length limit cut the reply off. "judge"
    needs a server: use `vision_rl.rewards.judge.Judge`; it and any other kind raise `UserError`.
    value = score + the terms, which are 0 for a brief, well-formed reply, so that there the value is the metric.
    Components: accuracy, official_2021, the kind and the row's metric under their own names, format/ok, format/term,
    length (characters), length/term, truncated.
    """
    kind = answer_metric(kind, metric)
    if kind not in KINDS:
        raise UserError(f"agent.reward={kind} is not a reward for vqa that scores by itself; use {', '.join(KINDS)}")
    answer = parse_answer(reply)
    components = accuracies(answer, answers)
    for name in {kind, metric if metric in KINDS else kind} - {"vqa", "official_2021"}:
        components[name] = METRICS[name].of_answer(answer, answers, choices, meta)
    score = components["accuracy" if kind == "vqa" else kind]
    return with_terms(score, components, reply, vqa_format_ok(reply, answer), terms, truncated)


def vqa_format_ok(reply: str, answer: str) -> bool:
    """Whether a reply has an answer, at most one <answer> element, and no reasoning that was cut off."""
    return bool(answer) and ("<" not in reply or (count_answers(reply) <= 1 and reasoning_is_closed(reply)))
