"""The reward of a reply to a question: a metric of the answer, plus the format and the length term."""

from __future__ import annotations

from collections.abc import Sequence

from vision_rl.errors import UserError
from vision_rl.parsing import count_answers, parse_answer, parse_confidence, reasoning_is_closed
from vision_rl.rewards.terms import DEFAULT_TERMS, Reward, Terms
from vision_rl.rewards.vqa_accuracy import (
    answer_similarity,
    best_answer,
    brief_similarity,
    by_frequency,
    normalise_answer,
    official_2021_accuracy,
    vqa_accuracy,
)

__all__ = [
    "accuracies",
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

_SCORES = {"vqa": vqa_accuracy, "official_2021": official_2021_accuracy, "similarity": brief_similarity}
KINDS = tuple(_SCORES)
OLD_NAMES = {"official": "vqa"}
"""Names of rewards in configurations from before 2026-11-25."""


def accuracies(answer: str, answers: Sequence[str]) -> dict[str, float]:
    """The two components that every reward of an answer has: accuracy (both sides normalised) and official_2021."""
    return {"accuracy": vqa_accuracy(answer, answers), "official_2021": official_2021_accuracy(answer, answers)}


def vqa_reward(reply: str, answers: Sequence[str], *, kind: str = "vqa", terms: Terms = DEFAULT_TERMS) -> Reward:
    """The reward of a whole reply to a question.

    kind: one of `KINDS`: "vqa" (the accuracy), "official_2021" (the strict code) or "similarity" (the guide's, times
    brevity). "judge" needs a server: use `vision_rl.rewards.judge.Judge`; it and any other kind raise `UserError`.
    value = score + format term + length term; both terms are 0 for a brief, well-formed reply, so that there the value
    is the metric. Components: accuracy, official_2021, the score under its own name, format/ok, format/term, length
    (characters), length/term.
    """
    kind = OLD_NAMES.get(kind, kind)
    if kind not in _SCORES:
        raise UserError(f"agent.reward={kind} is not a reward for vqa that scores by itself; use {', '.join(KINDS)}")
    answer = parse_answer(reply)
    components = accuracies(answer, answers)
    score = components["accuracy"] if kind == "vqa" else _SCORES[kind](answer, answers)
    if kind == "similarity":
        components[kind] = score
    return with_terms(score, components, reply, vqa_format_ok(reply, answer), terms)


def vqa_format_ok(reply: str, answer: str) -> bool:
    """Whether a reply has an answer, at most one <answer> element, and no reasoning that was cut off."""
    return bool(answer) and ("<" not in reply or (count_answers(reply) <= 1 and reasoning_is_closed(reply)))


def with_terms(score: float, components: dict[str, float], reply: str, format_ok: bool, terms: Terms) -> Reward:
    """A reward of a task score plus the format and the length term of the reply, with their components added."""
    format_term, length_term = terms.format(format_ok), terms.length(len(reply))
    components["format/ok"] = float(format_ok)
    components["format/term"] = format_term
    components["length"] = float(len(reply))
    components["length/term"] = length_term
    confidence = parse_confidence(reply)
    if confidence is not None:
        components["confidence"] = confidence
    return Reward(score + format_term + length_term, components)
