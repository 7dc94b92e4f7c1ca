"""MMMU's own reader of open questions, with every quirk: eval/eval_utils.py of MMMU-Benchmark/MMMU (arXiv 2311.16502).

lmms-eval and VLMEvalKit score by its `parse_open_response` and `eval_open`. The reader is generous: a text is right if the
true one occurs in it, so that a list of guesses pays in full.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_CHARS = 4000
"""A longer answer is wrong: the numbers of a text are looked for in quadratic time."""

_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def _read(text: str) -> list[str | float]:
    """A number rounded to two digits, or the text in lower case; one letter is looked for as a word."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except (ValueError, OverflowError):
        text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _key_parts(reply: str) -> list[str]:
    """What stands behind the last cue of each line ("is ", "answer ", and "=" in the last line), or all of the reply."""
    reply = reply.strip().strip(".").lower()
    lines = re.split(r"\.\s(?=[A-Z])|\n", reply)
    parts = []
    for number, line in enumerate(lines, start=1):
        cues = (*_CUES, "=") if number == len(lines) else _CUES
        shortest = ""
        for tail in (line.rpartition(cue)[2].strip() for cue in cues if cue in line):
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            parts.append(shortest)
    return parts or [reply]


def mmmu_open(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if a number of the answer equals a true one to two digits, or a true text occurs in its key part."""
    if len(prediction) > MAX_CHARS:
        return 0.0
    parts = _key_parts(prediction)
    found = [number for part in parts for pattern in _NUMBERS for number in pattern.findall(part)]
    said = [value for text in [*parts, *found] for value in _read(text)]
    truths = [value for answer in answers for value in _read(answer)]
    texts = [truth for truth in truths if isinstance(truth, str)]
    return float(any(any(t in value for t in texts) if isinstance(value, str) else value in truths for value in said))
