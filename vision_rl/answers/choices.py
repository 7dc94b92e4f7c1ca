"""Multiple choice: choices are lettered in their order, and the gold answer is a letter."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

LETTERS = string.ascii_uppercase
ANSWER_FORMS = ("letter", "index", "text", "either")


def lettered(choices: Sequence[str]) -> list[str]:
    """The choices as a prompt lists them: "A. cat", "B. dog"."""
    return [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]


def choice_letter(answer: str, choices: Sequence[str]) -> str:
    """The letter of the choice that an answer names: "B", "b", "(B)" or "B.", else the text of exactly one choice.

    Raises `ValueError` for an answer that names none of them.
    """
    letters = LETTERS[: len(choices)]
    bare = answer.strip().strip("().").upper()
    if len(bare) == 1 and bare in letters:
        return bare
    same = [letter for letter, choice in zip(letters, choices, strict=True) if choice.strip() == answer.strip()]
    if len(same) != 1:
        raise ValueError(
            f"its answer {answer!r} is neither a letter from A to {letters[-1]} nor the text of one choice"
        )
    return same[0]


def choices_of(given: Any) -> Any:
    """Choices by letter, {"A": "cat", "B": "dog"} or that as JSON, as a list in the letters' order; anything else as it is.

    An empty letter behind the last choice is none (parquet gives every row all of a file's letters). Raises `ValueError` for
    names that are not A, B, C, ...
    """
    if isinstance(given, str) and given.lstrip().startswith("{"):
        try:
            given = json.loads(given)
        except ValueError:
            return given
    if not isinstance(given, Mapping):
        return given
    filled = {str(name).strip(): choice for name, choice in given.items() if choice is not None}
    if sorted(filled) != list(LETTERS[: len(filled)]):
        raise ValueError(
            f"its choices go by {', '.join(filled) or 'no names'}, expected the letters from A on, none left out"
        )
    return [filled[letter] for letter in sorted(filled)]


def choice_list(choices: list[str]) -> list[str]:
    """The choices themselves; `ValueError` for one alone, for more than there are letters, and for an empty text."""
    if len(choices) == 1 or len(choices) > len(LETTERS) or not all(choice.strip() for choice in choices):
        raise ValueError(f"choices is {choices!r}, expected 2 to {len(LETTERS)} texts that are not empty")
    return choices


def gold_letter(answer: str, choices: Sequence[str], answer_as: str) -> str:
    """The letter of a data set's answer, which is written as "letter", "index" (from 0), "text", or as "either".

    "either" is for files of one's own: a letter or a text, and an error where the two name different choices. Raises
    `ValueError` with the reason.
    """
    if answer_as == "index":
        if not answer.isdecimal() or int(answer) >= len(choices):
            raise ValueError(f"its answer {answer!r} is no number from 0 to {len(choices) - 1} of its choices")
        return LETTERS[int(answer)]
    by_text = [LETTERS[n] for n, choice in enumerate(choices) if choice.strip() == answer.strip()]
    if answer_as == "text" and len(by_text) != 1:
        raise ValueError(f"its answer {answer!r} is the text of {len(by_text)} of its choices, expected one")
    letter = by_text[0] if answer_as == "text" else choice_letter(answer, choices)
    if answer_as == "either" and by_text not in ([], [letter]):
        raise ValueError(
            f"its answer {answer!r} is a letter and the text of another choice; say which with --answer-as letter or text"
        )
    return letter
