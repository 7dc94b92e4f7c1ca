"""Metrics of short answers besides the VQA accuracy, each as its data sets publish it: (answer, true answers) -> 0..1.

Several true answers are alternatives: the best one counts. Every metric is total and takes linear time in the answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

from vision_rl.answers.parsing import parse_number
from vision_rl.rewards.vqa_accuracy import comparable

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_SIGNS = "$€£¥"


def squad_normal(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _squad(text: str) -> str:
    return squad_normal(text) or " ".join(text.lower().split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 for one of the answers after SQuAD's normalisation (Rajpurkar et al. 2016, arXiv 1606.05250).

    An answer of which the normalisation leaves nothing ("A", "?") is compared in lower case instead.
    """
    normal = _squad(prediction)
    return float(bool(normal) and any(normal == _squad(answer) for answer in answers))


def _f1(prediction: Sequence[str], truth: Sequence[str]) -> float:
    shared = (Counter(prediction) & Counter(truth)).total()
    return 2 * shared / (len(prediction) + len(truth)) if shared else 0.0


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """The F1 of the words after SQuAD's normalisation, as SQuAD and PathVQA print it.

    As a reward it has a hole: a list of k one-word candidates gets 2 / (k + 1), and naming one at random 1 / k.
    """
    words = _squad(prediction).split()
    return max((_f1(words, _squad(answer).split()) for answer in answers), default=0.0)


def _edit_distance(a: str, b: str, limit: int) -> int:
    """The Levenshtein distance, or any number above `limit` where it is larger."""
    above = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        row, last, before = [i], i, i - 1
        for over, right in zip(above[1:], b, strict=True):
            last = before if left == right else 1 + min(over, last, before)
            row.append(last)
            before = over
        if min(row) > limit:
            return limit + 1
        above = row
    return above[-1]


def anls(prediction: str, answers: Sequence[str]) -> float:
    """1 - edit distance / length of the longer, or 0 where that falls to 0.5 or less, against the nearest answer.

    Case and repeated blanks do not count (Biten et al. 2019, arXiv 1907.00490; DocVQA, InfographicVQA).
    """
    best = 0.0
    shown = " ".join(prediction.lower().split())
    for answer in answers:
        truth = " ".join(answer.lower().split())
        longer, shorter = max(len(shown), len(truth)), min(len(shown), len(truth))
        if not longer or 2 * shorter < longer:
            continue  # the difference of the lengths alone is too far
        away = _edit_distance(shown, truth, longer // 2)
        score = 1 - away / longer
        best = max(best, score if 1 - score < ANLS_THRESHOLD else 0.0)
    return best


def chart_number(text: str) -> float | None:
    """A number as ChartQA writes it: 12, -0.5, 1,234.5, $3.20, 45% (as 0.45); None for anything else."""
    text = text.strip().replace("\N{MINUS SIGN}", "-")
    negative = text.startswith("-")
    text = text[negative:].strip().lstrip(_SIGNS).strip()
    percent = text.endswith("%")
    text = text.removesuffix("%").rstrip()
    if text[:1] in "+-" or text.count("%"):
        return None
    value = parse_number(text.replace(",", "") if _THOUSANDS.fullmatch(text) else text)
    if value is None:
        return None
    return (-value if negative else value) / (100 if percent else 1)


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1.0 for a number within 5 % of the true one, or else for the same text in any case.

    ChartQA, arXiv 2203.10244, section 5.1; the code is pix2struct's `relaxed_correctness`. A true 0 must be met exactly.
    """
    return float(any(_relaxed(prediction, answer) for answer in answers))


def _relaxed(prediction: str, answer: str) -> bool:
    said, truth = chart_number(prediction), chart_number(answer)
    if said is not None and truth:
        return abs(said - truth) <= RELAXED_TOLERANCE * abs(truth) * (1 + 1e-12)
    if said is not None and truth is not None:
        return said == truth
    shown = " ".join(prediction.lower().split()).rstrip(".")
    return bool(shown) and shown == " ".join(answer.lower().split()).rstrip(".")


def medical_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of medical VQA, as VQA-RAD, SLAKE and PathVQA print it for open and for closed questions.

    Closed (every answer is yes or no): the reply's words hold exactly one of the two, the right one. Open: one of the
    answers after the VQA normalisation.
    """
    truths = {comparable(answer) for answer in answers}
    said = comparable(prediction)
    if truths and truths <= {"yes", "no"}:
        named = {"yes", "no"} & set(re.findall(r"[^\W_]+", said))
        return float(len(named) == 1 and named <= truths)
    return float(bool(said) and said in truths)
