"""Visual question answering: the official VQA accuracy, and the guide's similarity made safe against listing.

The official metric is that of GT-Vision-Lab/VQA, `PythonEvaluationTools/vqaEvaluation/vqaEval.py`, after its fix of
2021, with every quirk kept; `tests/test_rewards_vqa.py` pins them one by one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from vision_rl.errors import UserError
from vision_rl.parsing import count_answers, parse_answer, parse_confidence, reasoning_is_closed
from vision_rl.rewards.contractions import CONTRACTIONS
from vision_rl.rewards.terms import DEFAULT_TERMS, Reward, Terms

HUMANS = 10
"""Answers per question in VQAv2; from this number on the official formula holds, below it answers are alternatives."""

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_HAS_MARK = re.compile(f"[{re.escape(_MARKS)}]")
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
# The official pattern is (?!<=\d)(\.)(?!\d): its first part was meant as a look-behind, and is always true.
_PERIOD = re.compile(r"\.(?!\d)")
# The official code passes re.UNICODE (32) where re.sub takes the number of replacements.
_MAX_PERIODS = int(re.UNICODE)
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))

_CACHED_CHARS = 64


def _process_punctuation(text: str) -> str:
    if _HAS_MARK.search(text):
        deletes_all = _COMMA_BETWEEN_DIGITS.search(text) is not None
        out = text
        for mark in _MARKS:
            if mark in text:
                # The test looks at the text as it came in, not at what earlier marks left of it.
                beside_space = mark + " " in text or " " + mark in text
                out = out.replace(mark, "" if beside_space or deletes_all else " ")
        text = out
    return _PERIOD.sub("", text, count=_MAX_PERIODS) if "." in text else text


def _process_digit_article(text: str) -> str:
    words = (_NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _clean(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _normalise(text: str) -> str:
    return _process_digit_article(_process_punctuation(_clean(text)))


# The same few human answers come again with every sample of a group; long predictions do not.
_normalise_cached = lru_cache(maxsize=65536)(_normalise)


def normalise_answer(text: str) -> str:
    """An answer as the official evaluation compares it: marks, number words, articles, contractions processed."""
    return _normalise_cached(text) if len(text) <= _CACHED_CHARS else _normalise(text)


@lru_cache(maxsize=8192)
def _official_counts(answers: tuple[str, ...]) -> tuple[bool, Counter[str]]:
    """(are they all equal before processing, how often each answer is given as it is compared)."""
    cleaned = [_clean(answer) for answer in answers]
    equal = len(set(cleaned)) == 1
    return equal, Counter(cleaned if equal else map(normalise_answer, cleaned))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The official VQA accuracy of a short answer in [0, 1].

    For each human, min(1, matches among the others / 3), averaged: with ten answers 0, 0.3, 0.6, 0.9, 1.0 for 0, 1,
    2, 3 and more matches. If all humans agree letter by letter, prediction and answers are compared without
    normalisation. Lists of fewer than ten answers (other data sets) are alternatives: 1.0 for any of them after
    normalisation, since the official formula gives a lone answer 0. No answers at all score 0.
    """
    answers = tuple(answers)
    if len(answers) < HUMANS:
        normal = normalise_answer(prediction)
        return float(any(normal == normalise_answer(answer) for answer in answers))
    equal, counts = _official_counts(answers)
    matches = counts[_clean(prediction) if equal else normalise_answer(prediction)]
    total = len(answers)
    # `matches` humans have matches - 1 agreeing others, the rest have `matches`.
    return (
        (matches * min(1.0, (matches - 1) / 3) + (total - matches) * min(1.0, matches / 3)) / total if matches else 0.0
    )


def best_answer(answers: Sequence[str]) -> tuple[str, float]:
    """(answer, accuracy) of the human answer that scores highest: what a perfect model can reach on this question."""
    scored = [(vqa_accuracy(answer, answers), answer) for answer in dict.fromkeys(answers)]
    if not scored:
        return "", 0.0
    accuracy, answer = max(scored, key=lambda pair: pair[0])
    return answer, accuracy


def answer_similarity(predicted: str, expected: str) -> float:
    """The guide's similarity in [0, 1], by words: 1.0 equal, 0.8 if the expected words stand in it in a row, else
    overlap.

    Both sides are normalised as in the official metric; the overlap is shared words / all words. Longer predictions get
    more from this than they should: `vqa_reward(kind="similarity")` takes it back by brevity.
    """
    left, right = normalise_answer(predicted), normalise_answer(expected)
    if not left or not right:
        return float(left == right and bool(expected.strip()) and bool(predicted.strip()))
    if left == right:
        return 1.0
    if f" {right} " in f" {left} ":
        return 0.8
    ours, theirs = set(left.split()), set(right.split())
    return len(ours & theirs) / len(ours | theirs)


def _similarity(prediction: str, answers: Sequence[str]) -> float:
    """Similarity times brevity, against the most common of ten answers or the nearest of fewer alternatives."""
    if not answers:
        return 0.0
    expected = [Counter(answers).most_common(1)[0][0]] if len(answers) >= HUMANS else list(dict.fromkeys(answers))
    words = max(1, len(normalise_answer(prediction).split()))
    best = 0.0
    for answer in expected:
        # A list of k candidates gets at most 0.8 / k, so that naming one of them at random is never worse.
        brevity = min(1.0, max(1, len(normalise_answer(answer).split())) / words)
        best = max(best, answer_similarity(prediction, answer) * brevity)
    return best


def vqa_reward(reply: str, answers: Sequence[str], *, kind: str = "official", terms: Terms = DEFAULT_TERMS) -> Reward:
    """The reward of a whole reply to a question.

    kind: "official" (the metric itself) or "similarity" (the guide's, times brevity). "judge" needs a server: use
    `vision_rl.rewards.judge.Judge`; it and any other kind raise `UserError`.
    value = accuracy or similarity + format term + length term; both terms are 0 for a brief, well-formed reply, so that
    there the value is the metric. Components: accuracy (always the official one), similarity (if asked for),
    format/ok, format/term, length (characters), length/term.
    """
    answer = parse_answer(reply)
    accuracy = vqa_accuracy(answer, answers)
    components = {"accuracy": accuracy}
    if kind == "official":
        score = accuracy
    elif kind == "similarity":
        score = components["similarity"] = _similarity(answer, answers)
    else:
        raise UserError(
            f"agent.reward={kind} is not a reward for vqa that scores by itself; use official or similarity"
        )
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
