"""Multiple choice: find the choice that a reply names, by letter, by text or by both."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from functools import lru_cache

from vision_rl.answers.formulas import narrow
from vision_rl.rewards.vqa_accuracy import careful

LETTERS = string.ascii_uppercase
_WRAPPED = re.compile(r"\\(?:boxed|text|textbf|mathrm|mathbf)\s{0,4}\{|\*\*|__|[`$]|\\[()\[\]]")
_LONE = re.compile(r"[\s*(\[{<'\"]*([A-Za-z])[\s*)\]}>'\".:,;!]*")
_LETTER_LIST = re.compile(r"[\s(\[]*[A-Z][)\].]*(?:(?:\s*[,;/&+]\s*|\s+)(?:(?:and|or)\s+)?[(\[]*[A-Z][)\].]*)+\s*")
_WORD = r"0-9A-Za-z_\u00c0-\u024f"  # Chinese has no blanks between a letter and a word
_LETTER = re.compile(rf"(?<![{_WORD}'.-])([A-Z])(?![{_WORD}'+-])(?!\.[A-Za-z](?:\.|\b))")
_ARTICLE = re.compile(r"\s+(?!(?:or|and|is|not)\b)[a-z]")
_MARKED = re.compile(r"[\s*(\[]{0,8}([A-Za-z])\s?[.):,\]]")
_STATEMENT = re.compile(
    r"(?:\b(?:answer|(?:correct|right|best|final) (?:option|choice)|option|choice)"
    r"(?: (?:is|would be|must be|should be)(?! not\b))?(?![A-Za-z'])|\bi (?:choose|select|pick|go with)\b|"
    r"答案[应應]?[是为為]?|[选選][择擇项項]?|정답은?|답은|답(?=:)|答え[はが]?|正解は?)"
    r"[\s:=\-(\[{<'\"]{0,8}(?:(?:option|choice|[选選][项項])\s?[(\[]?)?([A-Za-z])(?![0-9A-Za-z_'+]|-(?!\w))",
    re.IGNORECASE,
)
_ALSO = re.compile(
    r"[)\]}>'\".\s]{0,4}(?:[,;/&+、]|\b(?:and|or)\b|[或和与])\s{0,4}(?:(?:and|or)\s)?[(\[]?([A-Z])(?![\w'])"
)


def choice_forms(text: str) -> tuple[str, str, str]:
    """A choice or a reply as it is compared, from the form that forgives most to the one that forgives nothing.

    The VQA normalisation with the marks of numbers and formulas kept; lower case; the text as it is.
    """
    plain = " ".join(word.rstrip(".,;:") for word in narrow(text).split())
    return careful(text), plain.lower(), plain


@lru_cache(maxsize=8192)
def distinct_forms(choices: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    """(place in `choice_forms`, text) of each choice: the first form in which no other choice looks the same.

    Choices that no form tells apart have the place -1; they can be named by their letters only.
    """
    forms = [choice_forms(choice) for choice in choices]
    places = [
        next((place for place in range(3) if sum(other[place] == form[place] for other in forms) == 1), -1)
        for form in forms
    ]
    return tuple((place, form[place] if place >= 0 else "") for place, form in zip(places, forms, strict=True))


def alike(choices: Sequence[str]) -> list[str]:
    """The letters of choices that no form tells apart: "cat" twice, say."""
    return [letter for letter, (place, _) in zip(LETTERS, distinct_forms(tuple(choices)), strict=False) if place < 0]


def named_choices(reply: str, choices: Sequence[str]) -> set[str]:
    """The letters of the choices that a short answer names; without choices, the capital letters that stand alone.

    A lone letter may be small and in any wrapping: "b", "(b)", "B.", "**B**", "'B'", a full-width one. Choices count by
    their text too, the longest first, so that "dark red" does not name "red", and in a form that tells them apart: among
    -5 and 5 a sign counts. A copy of the whole list is passed over, and where the reply says "the answer is B" (or 答案是B),
    what it says there counts. "A" before a small letter is an article unless the text of choice A follows.
    """
    rest = _without_list(narrow(reply), choices)
    reply = reply if rest is None else rest
    allowed = LETTERS[: len(choices)] if choices else LETTERS
    forms = dict(zip(allowed, distinct_forms(tuple(choices)), strict=False))
    bare = _WRAPPED.sub(" ", narrow(reply))
    lone = _LONE.fullmatch(bare)
    if lone and lone[1].upper() in allowed:
        return {lone[1].upper()}
    same = _same(reply, forms)
    if same and (not _LETTER_LIST.fullmatch(bare) or _is_choice(reply, choices)):  # without articles "A, B" is "B"
        return same
    return _stated(bare, allowed) or _mentioned(reply, bare, allowed, forms)


def _same(reply: str, forms: dict[str, tuple[int, str]]) -> set[str]:
    """The choice whose text is the whole reply."""
    said = choice_forms(reply)
    return {letter for letter, (place, text) in forms.items() if place >= 0 and said[place] == text}


def _is_choice(reply: str, choices: Sequence[str]) -> bool:
    """Whether the reply is a choice word for word, in any case of letters."""
    return choice_forms(reply)[1] in {choice_forms(choice)[1] for choice in choices}


def _stated(bare: str, allowed: str) -> set[str]:
    """What "the answer is B" names, also "B or C", all of such sentences together; a small letter "a" is an article."""
    named: set[str] = set()
    for found in _STATEMENT.finditer(bare):
        if found[1] == "a" and bare[found.end() : found.end() + 2].strip(" ").isalpha():
            continue
        named.add(found[1].upper())
        more = _ALSO.match(bare, found.end())
        while more:
            named.add(more[1])
            more = _ALSO.match(bare, more.end())
    return named & set(allowed)


def _without_list(reply: str, choices: Sequence[str]) -> str | None:
    """What follows a copy of the whole list of choices at the beginning of a reply; None where there is none."""
    place = 0
    for letter, choice in zip(LETTERS, choices, strict=False):
        mark = re.compile(rf"[\s*(\[-]{{0,8}}{letter}[\s.):,\]*]{{1,4}}").match(reply, place)
        text = narrow(choice).strip()
        if mark is None or not reply.startswith(text, mark.end()):
            return None
        place = mark.end() + len(text)
    rest = reply[place:].strip(" \t\r\n.,;")
    return rest if choices and rest else None


def _mentioned(reply: str, bare: str, allowed: str, forms: dict[str, tuple[int, str]]) -> set[str]:
    """The letters that stand alone and the choices whose texts occur."""
    marked = _MARKED.match(bare)
    start = marked.end() if marked and marked[1].upper() in allowed and _begins_choice(bare, marked, forms) else 0
    named = {marked[1].upper()} if marked and start else set()
    named |= {
        found[1] for found in _LETTER.finditer(bare, start) if found[1] in allowed and not _is_word(bare, found, forms)
    }
    said = choice_forms(bare[start:] if start else reply)
    for place in range(3):
        rest = f" {said[place]} "
        texts = [(text, letter) for letter, (form, text) in forms.items() if form == place]
        for text, letter in sorted(texts, key=lambda pair: -len(pair[0])):
            if len(text) > 1 or text.isdigit():  # the text of a choice may be a letter itself
                shorter = rest.replace(f" {text} ", "  ")
                if shorter != rest:
                    named.add(letter)
                    rest = shorter
    return named


def _begins_choice(bare: str, marked: re.Match[str], forms: dict[str, tuple[int, str]]) -> bool:
    """Whether "B.cat" is a letter and what follows: a capital with a mark, or a small one before its choice's text."""
    following = bare[marked.end() : marked.end() + 2]
    if marked[1].isupper():
        return not re.match(r"[A-Za-z]\.", following)  # "U.S."
    place, text = forms.get(marked[1].upper(), (-1, ""))
    return place >= 0 and choice_forms(bare[marked.end() :])[place].startswith(text)


def _is_word(bare: str, found: re.Match[str], forms: dict[str, tuple[int, str]]) -> bool:
    """Whether a lone "A" or "I" is an article or a pronoun."""
    if found[1] not in "AI" or not _ARTICLE.match(bare, found.end()):
        return False
    place, text = forms.get(found[1], (-1, ""))
    return not (text and choice_forms(bare[found.end() : found.end() + 200])[place].startswith(text))


def multiple_choice(prediction: str, answers: Sequence[str], choices: Sequence[str] = ()) -> float:
    """1.0 if the reply names the right choice and no other one, by letter, text or both.

    answers: letters or texts of choices; several are alternatives. A reply that names two choices is wrong, so listing
    earns nothing (the rule of MMMU's and lmms-eval's readers, which guess where a reply names none, is left out).
    """
    gold = {letter for answer in answers for letter in letters_of(answer, choices)}
    named = named_choices(prediction, choices)
    if len(named) == 1:
        return float(named <= gold)
    return float(not named and not choices and careful(prediction) in set(map(careful, answers)))


def letters_of(answer: str, choices: Sequence[str]) -> set[str]:
    """The letter that a true answer stands for: itself, or that of the choice with its text."""
    bare = answer.strip().strip("().").upper()
    if len(bare) == 1 and bare in (LETTERS[: len(choices)] if choices else LETTERS):
        return {bare}
    return _same(answer, dict(zip(LETTERS, distinct_forms(tuple(choices)), strict=False)))
