"""Metrics of short answers as their data sets publish them: (answer, true answers) -> 0..1.

Several true answers are alternatives: the best one counts. Every metric is total and takes linear time in the answer.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

from vision_rl.answers.formats import MAX_NUMBER_CHARS
from vision_rl.answers.formulas import keep_marks, narrow
from vision_rl.rewards.vqa_accuracy import careful

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
_CHART_NUMBER = re.compile(
    r"([+-]?)\s{0,4}[$€£¥]?\s{0,4}([0-9][0-9,]*(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+(?:[eE][+-]?[0-9]+)?)\s{0,4}(%?)"
)


def squad_normal(text: str) -> str:
    """SQuAD's normalisation: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _squad(text: str) -> str:
    return squad_normal(text) or " ".join(text.lower().split())


def _kept(text: str) -> str:
    """SQuAD's normalisation with the signs, decimal points and operators of numbers and formulas kept."""
    words = keep_marks(text).lower().translate(_PUNCTUATION).split()
    return " ".join(word for word in words if word not in ("a", "an", "the")) or " ".join(text.lower().split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 for one of the answers without regard to case, articles and punctuation, as SQuAD compares.

    Unlike SQuAD's, the comparison keeps what belongs to a number or formula: "-5" is not "5", "1.5" not "15", "x>0" not
    "x<0" (`vision_rl.answers.formulas`). An answer of which nothing is left ("A", "?") is compared in lower case.
    """
    normal = _kept(prediction)
    return float(bool(normal) and any(normal == _kept(answer) for answer in answers))


def squad_em(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's own exact match (Rajpurkar et al. 2016, arXiv 1606.05250), which drops every mark: "-5" equals "5"."""
    normal = _squad(prediction)
    return float(bool(normal) and any(normal == _squad(answer) for answer in answers))


def _f1(prediction: Sequence[str], truth: Sequence[str]) -> float:
    shared = (Counter(prediction) & Counter(truth)).total()
    return 2 * shared / (len(prediction) + len(truth)) if shared else 0.0


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """The F1 of the words, normalised as in `exact_match`; a number with its sign, and a formula, are one word.

    As a reward it has a hole: a list of k one-word candidates gets 2 / (k + 1), and naming one at random 1 / k.
    """
    words = _kept(prediction).split()
    return max((_f1(words, _kept(answer).split()) for answer in answers), default=0.0)


def squad_f1(prediction: str, answers: Sequence[str]) -> float:
    """The F1 of the words as SQuAD's script and PathVQA print it, marks dropped; it has the hole of `token_f1`."""
    words = _squad(prediction).split()
    return max((_f1(words, _squad(answer).split()) for answer in answers), default=0.0)


def edit_distance(a: str, b: str, limit: int) -> int:
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
        away = edit_distance(shown, truth, longer // 2)
        score = 1 - away / longer
        best = max(best, score if 1 - score < ANLS_THRESHOLD else 0.0)
    return best


def chart_number(text: str) -> float | None:
    """A number as charts and models write it: 12, -0.5, +3, 1,234.5, 1e3, $3.20, 45% (as 0.45); None for anything else.

    A finite number of at most 32 ASCII characters: "nan", "inf", "1e309" and "1_000", which float() takes, are none.
    """
    found = _CHART_NUMBER.fullmatch(narrow(text).strip())
    if found is None or len(found[0]) > MAX_NUMBER_CHARS:
        return None
    sign, number, percent = found.groups()
    if "," in number and not _THOUSANDS.fullmatch(number):
        return None
    value = float(number.replace(",", "")) / (100 if percent else 1)
    return (-value if sign == "-" else value) if math.isfinite(value) else None


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


_YES = frozenset(("yes", "yeah", "yep", "true", "是", "是的", "有", "对", "对的", "正确", "可以", "能", "会", "包含"))
_NO = frozenset(
    ("no", "nope", "false", "否", "不是", "没有", "无", "不", "不对", "错", "错误", "不可以", "不能", "不会", "不包含")
)


def _yes_or_no(text: str) -> set[str]:
    """Which of yes and no the words of a text name, in English or in Chinese (SLAKE), where a clause is a word."""
    words = set(re.findall(r"[^\W_]+", text))
    return {name for name, forms in (("yes", _YES), ("no", _NO)) if not forms.isdisjoint(words)}


def medical_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Accuracy of medical VQA, as VQA-RAD, SLAKE and PathVQA print it for open and for closed questions.

    Closed (every answer is yes or no, in English or Chinese): the reply's words hold exactly one of the two, the right one.
    Open: one of the answers after the VQA normalisation, which keeps the signs and decimal points of numbers.
    """
    truths = {careful(answer) for answer in answers}
    said = careful(prediction)
    if truths and truths <= _YES | _NO:
        named = _yes_or_no(said)
        return float(len(named) == 1 and named <= set().union(*map(_yes_or_no, truths)))
    return float(bool(said) and said in truths)
