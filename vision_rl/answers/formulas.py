"""Keep signs, decimal points and comparisons with their numbers and formulas, so that no normalisation drops them.

The normalisations of VQA and of SQuAD delete ASCII punctuation: "-5" and "5", "1.5" and "15", "x>0" and "x<0" become one
text. `keep_marks` writes the marks that carry a value as their Unicode look-alikes, which both leave alone, and joins what
an operator binds ("x > 0" and "x>0" are one token). Prose marks stay ASCII, so that "x-ray", "e.g." and "Yes." are
normalised as ever.
"""

from __future__ import annotations

import re

_WIDE = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2013\u2212"), "-")
_QUOTES = dict(
    zip(map(ord, "\u2018\u2019\u201c\u201d\u300c\u300d\u3010\u3011\u3001\u3002"), '\'\'""""[],.', strict=True)
)
_SHAPES = _WIDE | _DASHES | _QUOTES
_MARK = re.compile(r"[-+<>=^*/.,:\\]")
_LATEX = {"le": "<=", "ge": ">=", "ne": "!=", "lt": "<", "gt": ">", "times": "*", "cdot": "*"}
_LATEX_NAME = re.compile(r"\\(leq?|geq?|neq?|lt|gt|times|cdot)(?![A-Za-z])")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_RULES = (
    (re.compile(r"(?<=\d),(?=[\d+-])"), ", "),
    (re.compile(r"\A[>=]+ (?=[^\W\d_])"), ""),  # a quotation mark of Markdown
    (re.compile(r"[-=]>"), "\u2192"),
    (re.compile(r" ?(?:<=|\u2264) ?"), "\u2264"),
    (re.compile(r" ?(?:>=|\u2265) ?"), "\u2265"),
    (re.compile(r" ?(?:!=|\u2260) ?"), "\u2260"),
    (re.compile(r" ?=+ ?"), "\uff1d"),
    (re.compile(r" ?< ?"), "\uff1c"),
    (re.compile(r" ?> ?"), "\uff1e"),
    (re.compile(r"(?<=\d)\.(?=\d)"), "\u00b7"),
    (re.compile(r"(?<![\w.])\.(?=\d)"), "0\u00b7"),
    (re.compile(r"(?<=\d) ?/ ?(?=\d)"), "\u2215"),
    (re.compile(r"(?<=\d):(?=\d)"), "\u2236"),
    (re.compile(r"(?<=[\w)]) ?\^ ?(?=[\w({+-])"), "\uff3e"),
    (re.compile(r"(?<=[\d)]) ?\* ?(?=[\d(])"), "\u00d7"),
)
_FORMULA = re.compile("[\uff1d\uff1c\uff1e\u2264\u2265\u2260\uff3e\u00d7+]")
_SIGN = re.compile(r"( ?)(\++|-)( ?)")
_KEPT = str.maketrans("+-", "\uff0b\u2212")
_LONGEST_ION = 3


def narrow(text: str) -> str:
    """The text with full-width letters, digits and marks, curly quotes and every kind of hyphen and minus as ASCII."""
    return text if text.isascii() else text.translate(_SHAPES)


def keep_marks(text: str) -> str:
    """The text with the marks that belong to numbers and formulas in a form that punctuation rules do not touch.

    Kept: the sign of a number ("-5"; a plus sign says nothing and goes), operators between numbers, brackets or variables
    ("x - 3", "10/2", "4:10", "2^3"), the decimal point, comparisons, and charges and grades ("H+", "A-"). Commas of
    thousands go. A hyphen that touches a letter is a hyphen ("x-ray", "B-12") unless the text holds another operator.
    Takes linear time.
    """
    text = narrow(text)
    if not _MARK.search(text):
        return text
    text = " ".join(text.split())
    text = _LATEX_NAME.sub(lambda found: _LATEX[found[1].removesuffix("q")], text)
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    for pattern, kept in _RULES:
        text = pattern.sub(kept, text)
    formula = _FORMULA.search(text) is not None
    return _SIGN.sub(lambda found: _sign(text, found, formula), text)


def _sign(text: str, found: re.Match[str], formula: bool) -> str:
    """What stands for a plus or minus: kept and joined to its operands, or left as it was."""
    before, mark, after = found.groups()
    kept = mark.translate(_KEPT)
    mark = mark[0]
    left, right = _left(text, found.start()), _right(text, found.end())
    alone = f" {kept}" if before else kept
    if left == "none":
        if right in ("number", "variable") and not after:
            return before if mark == "+" and right == "number" else alone
        return found[0]
    if right == "none":
        tied = not before and (mark == "+" or _is_short(text, found.start()))
        return kept + after if tied else found[0]
    if left != "word" and right != "word":
        hyphen = mark == "-" and not before and not after and "variable" in (left, right)
        return found[0] if hyphen and not formula else kept
    if before and not after and right == "number":  # "it is -5"
        return before if mark == "+" else alone
    return kept if mark == "+" and not before and not after else found[0]


def _left(text: str, end: int) -> str:
    """What ends before `end`: a "number" (or a closing bracket), a "variable", a "word", or "none"."""
    last = text[end - 1 : end]
    if last.isdigit() or last in (")", "]", "}", "%", "\u00b0"):
        return "number"
    if not last.isalpha():
        return "none"
    return _letters(text[max(0, end - 3) : end][::-1])


def _right(text: str, start: int) -> str:
    first = text[start : start + 1]
    if first.isdigit() or (first and first in "($\\\u20ac\u00a3\u00a5"):
        return "number"
    return _letters(text[start : start + 3]) if first.isalpha() else "none"


def _letters(text: str) -> str:
    """Whether the run of letters that `text` begins with is a variable ("x", "AB") or a word."""
    run = len(text) - len(text.lstrip("".join(filter(str.isalpha, text))))
    return "variable" if run == 1 or (run == 2 and text[:2].isupper()) else "word"


def _is_short(text: str, end: int) -> bool:
    """Whether the token before `end` is as short as an ion or a blood group."""
    start = max(0, end - _LONGEST_ION - 1)
    return len(re.split(r"[^\w]", text[start:end])[-1]) <= _LONGEST_ION
