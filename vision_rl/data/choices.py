"""Multiple choice: a question's choices go by letters in their order, and its gold answer is a letter."""

from __future__ import annotations

import string
from collections.abc import Sequence

LETTERS = string.ascii_uppercase


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


def choice_list(choices: list[str]) -> list[str]:
    """The choices themselves; `ValueError` for one alone, for more than there are letters, and for an empty text."""
    if len(choices) == 1 or len(choices) > len(LETTERS) or not all(choice.strip() for choice in choices):
        raise ValueError(f"choices is {choices!r}, expected 2 to {len(LETTERS)} texts that are not empty")
    return choices
