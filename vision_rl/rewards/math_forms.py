"""Compare words, clock times, dates, percentages and plain numbers before math-verify is asked.

math-verify 0.9.0 reads a word as a product of its letters ("seat" equals "east"), "4:10" as a ratio, "6/8/2020" as a
division, "3 1/2" as (3 + 1)/2, "1e3" as 3e, and `50\\%` as 50 or one half by the antlr runtime that is installed.
"""

from __future__ import annotations

import re
from fractions import Fraction

from vision_rl.answers.formats import MAX_NUMBER_CHARS
from vision_rl.answers.formulas import narrow
from vision_rl.rewards.text_metrics import exact_match

_WRAPPERS = re.compile(
    r"\s*(?:\$\$?(?P<dollar>[^$]*)\$\$?|\\\((?P<round>.*)\\\)|\\\[(?P<square>.*)\\\]"
    r"|\\(?:boxed|text|textbf|mathrm|mbox)\s?\{(?P<braces>[^{}]*(?:\{[^{}]*\}[^{}]*){0,8})\})\s*",
    re.DOTALL,
)
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?|\.[0-9]+(?:[eE][+-]?[0-9]{1,3})?"
_FRACTION = r"([0-9]+) ?/ ?([0-9]+)|\\[dt]?frac ?\{([0-9]+)\} ?\{([0-9]+)\}"
_PLAIN = re.compile(
    rf"([+-]?) ?(?:(?P<decimal>{_DECIMAL})|(?:(?P<whole>[0-9]+) ?)??(?:{_FRACTION})) ?(?P<percent>\\?%)?"
)
_MIXED = re.compile(r"(?<![\w./}])([0-9]{1,9}) ([0-9]{1,9})/([0-9]{1,9})(?![\w/])")
_PERCENT = re.compile(rf"({_DECIMAL}) ?\\?%")
_TIME = re.compile(r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))? ?(?:([ap])\.?m\.?)?", re.IGNORECASE)
_DATE = re.compile(
    r"([0-9]{1,4})/([0-9]{1,2})/([0-9]{1,4})|([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})|([0-9]{1,2})-([0-9]{1,2})-([0-9]{4})"
)
_LETTERS = re.compile(r"[A-Za-z]+")
_NAMES = re.compile(
    r"(?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|log|ln|lg|exp|sqrt|pi|inf|infinity|infty|oo|max|min|mod|lim|det|gcd|lcm|and|or|"
    r"alpha|beta|gamma|delta|theta|lambda|sigma|omega|phi",
    re.IGNORECASE,
)
CLOSE = Fraction(1, 10**6)
"""Relative distance up to which numbers with a percentage or a mixed number are equal."""


def unwrapped(text: str) -> str:
    """The text without a `$`, `\\boxed{}` or `\\text{}` around all of it."""
    text = narrow(text).strip()
    for _ in range(4):
        found = _WRAPPERS.fullmatch(text)
        if found is None:
            break
        text = next(group for group in found.groups() if group is not None).strip()
    return " ".join(text.split())


def plain_value(text: str) -> tuple[Fraction, str] | None:
    """(value, "decimal", "mixed" or "percent") of a number in ASCII digits, 50% being 1/2; None for anything else."""
    found = _PLAIN.fullmatch(text) if len(text) <= 2 * MAX_NUMBER_CHARS else None
    if found is None:
        return None
    if found["decimal"]:
        value = Fraction(found["decimal"].replace(",", "").rstrip("."))
    else:
        top, bottom = (int(digits) for digits in found.groups()[3:7] if digits is not None)
        if not bottom or (found["whole"] and top >= bottom):
            return None
        value = Fraction(top, bottom) + int(found["whole"] or 0)
    kind = "percent" if found["percent"] else "mixed" if found["whole"] else "decimal"
    return (-value if found[1] == "-" else value) / (100 if kind == "percent" else 1), kind


def is_word(text: str) -> bool:
    """Whether a text is language and no product of variables: letters only, one run of them being no name of mathematics."""
    if re.search(r"[^A-Za-z\s'.,-]", text):
        return False
    return any(
        not _NAMES.fullmatch(run)
        and (
            (len(run) > 2 and not set(run.lower()) <= set("xyz")) or (len(run) == 2 and set(run.lower()) & set("eiou"))
        )
        for run in _LETTERS.findall(text)
    )


def _time_or_date(text: str) -> tuple[object, ...] | None:
    """A clock time or a date as a tuple that is equal for equal ones."""
    time = _TIME.fullmatch(text)
    if time:
        return "time", int(time[1]), int(time[2]), int(time[3] or 0), (time[4] or "").lower()
    date = _DATE.fullmatch(text)
    return ("date", *(int(part) for part in date.groups() if part is not None)) if date else None


def decided(said: str, truth: str) -> bool | None:
    """Whether two unwrapped answers are equal, or None where that is a question for math-verify."""
    moments = _time_or_date(said), _time_or_date(truth)
    if any(moments):
        return moments[0] == moments[1]
    words = is_word(said), is_word(truth)
    if any(words):
        return all(words) and bool(exact_match(said, [truth]))
    left, right = plain_value(said), plain_value(truth)
    if left is None or right is None:
        return None
    (a, kind), (b, other) = left, right
    if a == b:
        return True
    if "percent" in (kind, other) and kind != other:  # "50%" and 50: how many percent
        a, b = (100 * a, b) if kind == "percent" else (a, 100 * b)
        if a == b:
            return True
        a, b = (a / 100, b) if kind == "percent" else (a, b / 100)
    return None if {kind, other} == {"decimal"} else abs(a - b) <= CLOSE * abs(b)


def for_math_verify(text: str) -> str:
    """The text with mixed numbers and percentages as fractions, which every version of the library reads alike."""
    text = _MIXED.sub(lambda m: rf"\frac{{{int(m[1]) * int(m[3]) + int(m[2])}}}{{{m[3]}}}", text)
    return _PERCENT.sub(lambda m: rf"\frac{{{m[1].replace(',', '')}}}{{100}}", text)
