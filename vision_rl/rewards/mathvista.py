"""MathVista's scoring: evaluation/calculate_score.py of lupantech/MathVista (arXiv 2310.02255), `normalize_extracted_answer`.

An integer is cut to its whole part, a float rounded to the row's `precision`, and what is then written equals the true
answer or does not. A choice is its letter or its text, else the most similar text. The script has GPT-4 take the short
answer out of a reply; here rules do it, so two numbers or two choices in a reply are no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vision_rl.answers.formulas import narrow
from vision_rl.rewards.multiple_choice import LETTERS, letters_of, named_choices
from vision_rl.rewards.text_metrics import edit_distance, exact_match

MAX_CHARS = 1000
"""A longer answer is wrong: the most similar choice is found in quadratic time."""

_BRACKETED = re.compile(r"\(([a-zA-Z])\)")
_NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?")
_LEAD = re.compile(r"answer is|answer:|=|\\boxed", re.IGNORECASE)
_LIST = re.compile(r"\[([^\[\]]*)\]")


def mathvista_accuracy(
    prediction: str, answers: Sequence[str], choices: Sequence[str] = (), meta: Mapping[str, Any] | None = None
) -> float:
    """1.0 if the answer is the true one in the form that the row asks for.

    answers: texts, or letters of choices. meta: the set's own `answer_type` (integer, float, list or text) and `precision`;
    where they are missing, the true answer shows them.
    """
    said = narrow(prediction).strip()
    if not said or len(said) > MAX_CHARS:
        return 0.0
    if choices:
        letters = set().union(*(letters_of(answer, choices) for answer in answers))
        return float(_choice(said, choices) in {choices[LETTERS.index(letter)] for letter in letters})
    return float(any(_equal(said, answer.strip(), meta or {}) for answer in answers))


def _choice(said: str, choices: Sequence[str]) -> str | None:
    """The choice that a reply names, else the most similar one; None where it names several."""
    named = named_choices(said, choices)
    if len(named) == 1:
        return choices[LETTERS.index(named.pop())]
    if named:
        return None
    bracketed = _BRACKETED.search(said)
    if bracketed and bracketed[1].upper() in LETTERS[: len(choices)]:
        return choices[LETTERS.index(bracketed[1].upper())]
    return min(choices, key=lambda choice: edit_distance(said, choice, len(said) + len(choice)))


def _equal(said: str, answer: str, meta: Mapping[str, Any]) -> bool:
    kind = meta.get("answer_type") or _kind_of(answer)
    if kind == "list":
        return _items(said) == _items(answer)
    if kind not in ("integer", "float"):
        return bool(exact_match(said, [answer]))
    precision = meta.get("precision")
    digits = len(answer.partition(".")[2]) if precision is None else int(float(precision))
    try:
        value = _value(said)
        return value is not None and str(int(value) if kind == "integer" else round(value, digits)) == answer
    except (ValueError, OverflowError):  # nan and inf
        return False


def _kind_of(answer: str) -> str:
    if answer.startswith("["):
        return "list"
    if not _NUMBER.fullmatch(answer):
        return "text"
    return "float" if "." in answer else "integer"


def _value(said: str) -> float | None:
    """The number that a reply is, or the only one in it, or the only one behind its last "answer is"."""
    try:
        return float(said)
    except ValueError:
        pass
    for part in (said, _LEAD.split(said)[-1]):
        numbers = _NUMBER.findall(part)
        if len(numbers) == 1:
            return float(numbers[0].replace(",", ""))
    return None


def _items(text: str) -> list[str]:
    """The items of the last list in a text, or of the text itself."""
    found = _LIST.findall(text)
    return [item.strip().strip("'\"") for item in (found[-1] if found else text).split(",")]
