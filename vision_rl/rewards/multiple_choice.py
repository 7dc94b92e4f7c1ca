"""Multiple choice: which of a question's choices a reply names, by letter, by text or by both."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from vision_rl.rewards.vqa_accuracy import comparable, normalise_answer

LETTERS = string.ascii_uppercase
_WHOLE = re.compile(r"[\s*(\[{]*(?:\\boxed\{)?\s*([A-Za-z])\s*[\s*)\]}.:,]*")
_LETTER = re.compile(r"(?<![\w'\u2019.-])([A-Z])(?![\w'\u2019-])(?!\.[A-Za-z])")
_ARTICLE = re.compile(r"\s+(?!(?:or|and|is|not)\b)[a-z]")


def named_choices(reply: str, choices: Sequence[str]) -> set[str]:
    """The letters of the choices that a short answer names; without choices, the capital letters that stand alone.

    A lone letter may be small: "b", "(b)", "B.". Choices count by their text too, the longest first, so that "dark red"
    does not name "red". "A" before a small letter is an article unless the text of choice A follows.
    """
    whole = _WHOLE.fullmatch(reply)
    allowed = LETTERS[: len(choices)] if choices else LETTERS
    if whole and whole[1].upper() in allowed:
        return {whole[1].upper()}
    texts = dict(zip(allowed, map(comparable, choices), strict=False))
    said = comparable(reply)
    same = {letter for letter, text in texts.items() if text == said}
    if same:
        return same
    named = {found[1] for found in _LETTER.finditer(reply) if found[1] in allowed and not _is_word(reply, found, texts)}
    rest = f" {said} "
    for letter, text in sorted(texts.items(), key=lambda pair: -len(pair[1])):
        if len(text) > 1 or text.isdigit():  # the text of a choice may be a letter itself
            shorter = rest.replace(f" {text} ", "  ")
            if shorter != rest:
                named.add(letter)
                rest = shorter
    return named


def _is_word(reply: str, found: re.Match[str], texts: dict[str, str]) -> bool:
    """Whether a lone "A" or "I" is an article or a pronoun."""
    if found[1] not in "AI" or not _ARTICLE.match(reply, found.end()):
        return False
    after = normalise_answer(reply[found.end() : found.end() + 200])
    return not (texts.get(found[1]) and after.startswith(texts[found[1]]))


def multiple_choice(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """1.0 if the reply names the right choice and no other one, by letter, text or both.

    answers: letters or texts of choices; several are alternatives. A reply that names two choices is wrong, so listing
    earns nothing (the rule of MMMU's and lmms-eval's readers, which guess where a reply names none, is left out).
    """
    gold = {letter for answer in answers for letter in _letters_of(answer, choices)}
    named = named_choices(prediction, choices)
    if len(named) == 1:
        return float(named <= gold)
    return float(not named and not choices and comparable(prediction) in set(map(comparable, answers)))


def _letters_of(answer: str, choices: Sequence[str]) -> set[str]:
    """The letters that a true answer stands for: a letter itself, or the choices with its text."""
    by_text = {
        letter for letter, choice in zip(LETTERS, choices, strict=False) if comparable(choice) == comparable(answer)
    }
    bare = answer.strip().strip("().").upper()
    return by_text or ({bare} if len(bare) == 1 and bare in LETTERS else set())
