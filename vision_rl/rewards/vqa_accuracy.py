"""The official VQA accuracy, and a similarity that does not reward lists of answers.

The formula and the normalisation are those of GT-Vision-Lab/VQA, `PythonEvaluationTools/vqaEvaluation/vqaEval.py`, with
every quirk kept; `tests/test_rewards_vqa.py` pins them one by one. That code, after its fix of 2021, normalises only
where the ten humans differ, so that "Yes" scores 0 against ten times "yes". `vqa_accuracy` normalises both sides always,
as the challenge's server and lmms-eval do with the prediction; `official_2021_accuracy` is the strict code.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from vision_rl.answers.formulas import keep_marks

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
CONTRACTIONS: dict[str, str] = json.loads(Path(__file__).with_name("contractions.json").read_text(encoding="utf-8"))
"""The official table as it is written there. Its oddities are part of the metric: `somebody'd` loses its apostrophe, `let's` and
`she's` map to themselves, and the keys with capitals never match, because the text is in lower case by then."""

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


def comparable(text: str) -> str:
    """`normalise_answer`, or the text in lower case where nothing is left of it, so that "A" differs from "the"."""
    return normalise_answer(text) or _clean(text).lower()


def careful(text: str) -> str:
    """`comparable`, with the signs, decimal points and operators of numbers and formulas kept: "-5" is not "5"."""
    return normalise_answer(keep_marks(text)) or _clean(text).lower()


def textvqa_normal(text: str) -> str:
    """An answer as TextVQA's evaluation compares it (EvalAIAnswerProcessor of Pythia, MMF and lmms-eval).

    Its tokenizer comes before the steps of VQA's: lower case, no commas and question marks, and "'s" as a word of its own.
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return _process_digit_article(_process_punctuation(_clean(text)))


@lru_cache(maxsize=8192)
def _counts(answers: tuple[str, ...], normal: Callable[[str], str] = comparable) -> Counter[str]:
    """How often each answer is given, normalised."""
    return Counter(map(normal, answers))


@lru_cache(maxsize=8192)
def _counts_2021(answers: tuple[str, ...]) -> tuple[bool, Counter[str]]:
    """(are they all equal before processing, how often each answer is given as it is compared)."""
    cleaned = [_clean(answer) for answer in answers]
    equal = len(set(cleaned)) == 1
    return equal, Counter(cleaned if equal else map(normalise_answer, cleaned))


def _by_matches(matches: int, total: int) -> float:
    """The mean over all humans of min(1, matches among the others / 3)."""
    # `matches` humans have matches - 1 agreeing others, the rest have `matches`.
    agreeing, differing = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * agreeing + (total - matches) * differing) / total if matches else 0.0


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The VQA accuracy of a short answer in [0, 1]; both sides are normalised, always.

    For each human, min(1, matches among the others / 3), averaged: with ten answers 0, 0.3, 0.6, 0.9, 1.0 for 0, 1,
    2, 3 and more matches (Antol et al. 2015, arXiv 1505.00468). Lists of fewer than ten answers (other data sets) are
    alternatives: 1.0 for any of them, since the formula gives a lone answer 0. No answers at all score 0.
    """
    counts = _counts(tuple(answers))
    matches = counts[comparable(prediction)]
    total = counts.total()
    return _by_matches(matches, total) if total >= HUMANS else float(matches > 0)


def textvqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The VQA accuracy after TextVQA's own tokenizer (Singh et al. 2019, arXiv 1904.08920); fewer than ten are alternatives.

    Where the normalisation leaves nothing of an answer ("the"), nothing equals it.
    """
    said, counts = textvqa_normal(prediction), _counts(tuple(answers), textvqa_normal)
    matches, total = counts[said], counts.total()
    return _by_matches(matches, total) if total >= HUMANS else float(matches > 0 and bool(said))


def official_2021_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """`vqa_accuracy` exactly as the evaluation code of 2021 has it, to reproduce its figures.

    Where all ten humans agree letter by letter, prediction and answers are compared as they stand: "Yes" scores 0
    against ten times "yes". Fewer than ten answers are alternatives, as in `vqa_accuracy`.
    """
    answers = tuple(answers)
    if len(answers) < HUMANS:
        return vqa_accuracy(prediction, answers)
    equal, counts = _counts_2021(answers)
    return _by_matches(counts[_clean(prediction) if equal else normalise_answer(prediction)], len(answers))


def by_frequency(answers: Sequence[str]) -> list[tuple[str, int]]:
    """(answer, how many gave it), the most common first; answers that normalise alike are one, as first written."""
    written: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for answer in answers:
        key = comparable(answer)
        written.setdefault(key, answer)
        counts[key] += 1
    return [(written[key], count) for key, count in counts.most_common()]


def best_answer(
    answers: Sequence[str], score: Callable[[str, Sequence[str]], float] = vqa_accuracy
) -> tuple[str, float]:
    """(answer, accuracy) of the human answer that scores highest: what a perfect model can reach on this question."""
    scored = [(score(answer, answers), answer) for answer in dict.fromkeys(answers)]
    if not scored:
        return "", 0.0
    accuracy, answer = max(scored, key=lambda pair: pair[0])
    return answer, accuracy


def answer_similarity(predicted: str, expected: str) -> float:
    """A similarity in [0, 1] of older VQA instructions, by words: 1.0 equal, 0.8 if the expected words stand in it in a row, else
    overlap.

    Both sides are normalised by `careful`; the overlap is shared words / all words. Longer predictions get
    more from this than they should: `vqa_reward(kind="similarity")` takes it back by brevity.
    """
    left, right = careful(predicted), careful(expected)
    if not left or not right:
        return 0.0
    if left == right:
        return 1.0
    if f" {right} " in f" {left} ":
        return 0.8
    ours, theirs = set(left.split()), set(right.split())
    return len(ours & theirs) / len(ours | theirs)


def brief_similarity(prediction: str, answers: Sequence[str]) -> float:
    """Similarity times brevity, against the most common of ten answers or the nearest of fewer alternatives."""
    if not answers:
        return 0.0
    common = [answer for answer, _ in by_frequency(answers)]
    expected = common[:1] if len(answers) >= HUMANS else common
    words = max(1, len(careful(prediction).split()))
    best = 0.0
    for answer in expected:
        # A list of k candidates gets at most 0.8 / k, so that naming one of them at random is never worse.
        brevity = min(1.0, max(1, len(careful(answer).split())) / words)
        best = max(best, answer_similarity(prediction, answer) * brevity)
    return best
