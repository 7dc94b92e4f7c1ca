"""Parse a reply into final answer, boxes, confidence and tool calls; write boxes as text.

The rules that every parser here keeps:
- Total and linear: any string gives a result, in time proportional to its length.
- The final answer counts: what stands inside <think> or <reasoning>, or inside a tool call, is not an answer.
- Nothing is guessed or evaluated: numbers are plain decimals in ASCII digits; what does not fit the format is counted
  as malformed and left out. "1e309", "nan" and numbers of more than 32 characters are malformed.

Formats of boxes and points (`fmt`) are the rows of `vision_rl.answers.formats.FORMATS`; the name of a family in
`coordinates.FAMILIES` means its native one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vision_rl.answers.boxes import Box
from vision_rl.answers.coordinates import FAMILIES
from vision_rl.answers.formats import FORMATS, OWN, AnswerFormat
from vision_rl.errors import UserError

MAX_CALL_CHARS = 10_000
"""A tool call with a longer body is an error: no tool takes that much, and JSON of that size costs time."""

_REASONING_TAG = re.compile(r"<(/?)(think|thinking|reasoning)>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_MARK = "<|begin_of_box|>"
_CALL_TAG = re.compile(r"<(/?)(tool_call|use_tool|function)(?:(?<=function)=([A-Za-z_][\w.-]{0,63}))?>", re.IGNORECASE)
_FUNCTION = re.compile(r"\s*<function=([A-Za-z_][\w.-]{0,63})>(.*?)(?:</function>\s*)?", re.DOTALL | re.IGNORECASE)
_PARAMETER = re.compile(
    r"<parameter=([A-Za-z_][\w.-]{0,63})>(.*?)(?=</parameter>|<parameter=|\Z)", re.DOTALL | re.IGNORECASE
)
_CONFIDENCE_ELEMENT = re.compile(r"<confidence>([^<]*)</confidence>", re.IGNORECASE)
_CONFIDENCE_PHRASE = re.compile(
    r"\bconfidence\b(?:[ \t]{1,4}(?:level|score|is|of)\b){0,2}[ \t]{0,4}[:=]?[ \t]{0,4}(?=([0-9.][^\n<]{0,79}))",
    re.IGNORECASE,
)
_CONFIDENCE = re.compile(
    r"([0-9]{0,8}\.?[0-9]{1,16})[ \t]{0,4}(?:(%|percent\b)|(?:/|(?:out[ \t])?of\b)[ \t]{0,4}([0-9]{1,8}(?:\.[0-9]{1,8})?)"
    # What follows must not make it a range, a list, a decimal comma, an exponent or a longer fraction.
    r")?(?![\w%])(?![ \t]{0,4}(?:[-\u2013~/,.+]|to\b|or\b)[ \t]{0,4}[0-9.])",
    re.IGNORECASE,
)
_LARGEST_AMBIGUOUS = 10
"""Above 1 and up to this, a bare number may be out of 10 or out of 100."""
_NAMED_CALL = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*(?::\s*)?(\{.*\})?", re.DOTALL)
_NO_FINDING = re.compile(r"\bno\s{1,4}findings?\b", re.IGNORECASE)

_EMPTY_LIST = re.compile(r"\[\s*\]|```(?:json)?\s*\[\s*\]\s*```", re.IGNORECASE)


@dataclass(frozen=True)
class BoxReading:
    """What `read_boxes` found. boxes: xyxy in the format's own space, finite, as written (corners may be swapped).

    malformed: entries of the format that are not two or four plain numbers. none: the text says that there is nothing
    to find (an empty list of boxes, the point -1, -1, or the words "no finding") and holds no box. placeholders: entries
    with the letters of the prompt's own template where numbers belong; they are no boxes.
    """

    boxes: list[Box]
    malformed: int
    none: bool
    placeholders: int = 0


@dataclass(frozen=True)
class ToolCall:
    """One tool call in a text. error: "" for a well-formed call, else one sentence for the model (name may be "")."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def strip_reasoning(text: str) -> str:
    """The text without its reasoning: <think>, <thinking> and <reasoning> elements, in any case of letters.

    A closing tag without an opening one ends a reasoning that the prompt has opened: all before it goes. An opening
    tag without a closing one starts a reasoning that was cut off: all after it goes. Elements do not nest.
    """
    kept: list[str] = []
    position, inside = 0, ""
    for tag in _REASONING_TAG.finditer(text):
        closing, name = bool(tag[1]), tag[2].lower()
        if inside:
            if closing and name == inside:
                inside, position = "", tag.end()
        elif closing:
            kept, position = [], tag.end()
        else:
            kept.append(text[position : tag.start()])
            inside = name
    if not inside:
        kept.append(text[position:])
    return "".join(kept)


def reasoning_is_closed(text: str) -> bool:
    """Whether no reasoning element is left open (a reply that was cut off inside its reasoning has no answer)."""
    inside = ""
    for tag in _REASONING_TAG.finditer(text):
        if inside:
            if tag[1] and tag[2].lower() == inside:
                inside = ""
        elif not tag[1]:
            inside = tag[2].lower()
    return not inside


def _calls(text: str) -> tuple[list[tuple[str, str]], str]:
    """(tag, body) of the tool calls in a text, and the text without them; the last may be cut off.

    A `<function=name>` without `<tool_call>` around it (Qwen3.5's and Qwen3-Coder's models leave that out at times) is a call
    of its own, whose body begins with that tag.
    """
    calls: list[tuple[str, str]] = []
    kept: list[str] = []
    position, inside, start = 0, "", 0
    for tag in _CALL_TAG.finditer(text):
        closing, name, function = bool(tag[1]), tag[2].lower(), tag[3]
        if inside:
            if closing and name == inside:
                calls.append((inside, text[start : tag.start()]))
                inside, position = "", tag.end()
        elif not closing and (name != "function" or function):
            kept.append(text[position : tag.start()])
            inside, start = name, tag.start() if function else tag.end()
    if inside:
        calls.append((inside, text[start:]))
    else:
        kept.append(text[position:])
    return calls, "".join(kept)


def final_text(text: str) -> str:
    """The part of a reply that answers: no reasoning, tool calls or confidence; the last <answer> if there is one."""
    if "<" not in text:
        return text
    text = _CONFIDENCE_ELEMENT.sub("", _calls(strip_reasoning(text))[1])
    start, end = -1, -1
    for tag in _ANSWER_TAG.finditer(text):
        if not tag[1]:
            start, end = tag.end(), -1
        elif start >= 0 and end < 0:
            end = tag.start()
    if start < 0:
        return text
    return text[start:] if end < 0 else text[start:end]


def count_answers(text: str) -> int:
    """How many answers the text marks outside of its reasoning: <answer> elements, or else GLM's boxes in the last."""
    if "<" not in text:
        return 0
    elements = sum(not tag[1] for tag in _ANSWER_TAG.finditer(strip_reasoning(text)))
    return max(elements, final_text(text).count(_MARK))


def parse_answer(text: str) -> str:
    """The short answer in a reply: `final_text` without the white space around it; "" if there is none.

    GLM-4.1V and its successors put it between <|begin_of_box|> and <|end_of_box|>; the last pair counts.
    """
    text = final_text(text)
    if _MARK in text:
        text = text.rpartition(_MARK)[2].partition("<|end_of_box|>")[0]
    return text.strip()


def format_row(fmt: str) -> AnswerFormat:
    """A row of `FORMATS` by its name or by that of a family (its native one); `UserError` for others."""
    name = FAMILIES[fmt].native if fmt in FAMILIES else fmt
    if name not in FORMATS:
        raise UserError(f"box format {fmt!r} does not exist; choose one of {', '.join(FORMATS)}, or a model family")
    return FORMATS[name]


def read_boxes(text: str, fmt: str, *, truncated: bool = False) -> BoxReading:
    """All boxes of a reply's final text, what was malformed, and whether it says that there is nothing to find.

    truncated: the reply was cut off by the length limit; what stands behind its last whole box is left out.
    """
    row = format_row(fmt)
    text = strip_reasoning(text) if row.in_call else final_text(text)
    if truncated:
        text = row.until_last_box(text)
    boxes: list[Box] = []
    malformed = refusals = placeholders = own = 0
    for entry, _ in row.entries(text):
        if entry is OWN:
            own += 1
            continue
        box = row.box(entry)
        if box is None and row.is_placeholder(entry):
            placeholders += 1
        elif box is None:
            malformed += bool(entry.strip(" \t\r\n[]"))
        elif row.is_refusal(box):
            refusals += 1
        else:
            boxes.append(box)
    empty = len(row.empty.findall(text)) if row.empty and not boxes else 0
    if row.opening:
        # An opening that leads to no entry at all: unclosed, or with another tag inside.
        seen = len(boxes) + malformed + refusals + placeholders + empty + own
        malformed += max(0, len(row.opening.findall(text)) - seen)
    if boxes:
        return BoxReading(boxes, malformed + refusals, False, placeholders)
    said = bool(refusals or empty or _EMPTY_LIST.fullmatch(text.strip()) or _NO_FINDING.search(text))
    return BoxReading([], malformed, said and not malformed, placeholders)


def format_boxes(boxes: Sequence[Sequence[float]], fmt: str, decimals: int | None = None) -> str:
    """Boxes (xyxy, in the format's own space) as a model of that format writes them; no boxes give its "nothing found".

    decimals: digits after the point; by default 4 for unit formats ("bbox", "click") and 0 for the others.
    """
    row = format_row(fmt)
    return row.write(boxes, (4 if row.space == "unit" else 0) if decimals is None else decimals)


def parse_confidence(text: str) -> float | None:
    """The confidence that a reply states for its answer, in 0..1; None if it states none, or none without ambiguity.

    The last `<confidence>0.8</confidence>` outside of the reasoning, or else the last "confidence: 0.8". A number up to
    1 is the share itself; "80%", "80 percent", "8/10", "0.8/1.0", "8 out of 10" say their scale, and a bare number above
    10 is out of 100. Nothing is read from a bare 5 (out of 10 or of 100?), "0,8", "0.7-0.9", "high", or shares above 1.
    """
    text = strip_reasoning(text)
    elements = _CONFIDENCE_ELEMENT.findall(text)
    stated = elements or _CONFIDENCE_PHRASE.findall(text)
    if not stated:
        return None
    last = stated[-1].strip()
    found = _CONFIDENCE.match(last)
    if found is None or (elements and last[found.end() :].strip(" .")):
        return None
    number, percent, whole = float(found[1]), found[2], found[3]
    if percent:
        number /= 100
    elif whole:
        number = number / float(whole) if float(whole) >= 1 else math.inf
    elif 1 < number <= _LARGEST_AMBIGUOUS:
        return None
    elif number > 1:
        number /= 100
    return number if number <= 1 else None


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _small_int(text: str) -> int:
    if len(text) > 16:
        raise ValueError(f"the number {text[:20]} is too large")
    return int(text)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number in JSON")


def parse_json(text: str) -> Any:
    """JSON of finite numbers only; raises ValueError for anything else, too deep nesting included."""
    try:
        return json.loads(text, parse_float=_finite_float, parse_int=_small_int, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _argument(text: str) -> Any:
    """A value between `<parameter=key>` and its end: JSON where it is, else the text."""
    text = text.strip()
    try:
        return parse_json(text)
    except ValueError:
        return text


def _call(tag: str, body: str) -> ToolCall:
    body = body.strip()
    if len(body) > MAX_CALL_CHARS:
        return ToolCall("", error=f"The tool call is longer than {MAX_CALL_CHARS} characters.")
    if function := _FUNCTION.fullmatch(body):
        return ToolCall(function[1], {key: _argument(value) for key, value in _PARAMETER.findall(function[2])})
    named = _NAMED_CALL.fullmatch(body) if tag == "use_tool" else None
    keys: list[str] = []
    try:
        value = {"name": named[1], "arguments": parse_json(named[2] or "{}")} if named else parse_json(body)
        if isinstance(value, dict) and isinstance(value.get("function"), dict):
            value = value["function"]  # as OpenAI's API wraps it
        if isinstance(value, dict):
            keys = [key for key in ("arguments", "parameters") if key in value]
            if keys and isinstance(value[keys[0]], str):
                value = {**value, keys[0]: parse_json(value[keys[0]])}
    except ValueError as error:
        return ToolCall(named[1] if named else "", error=f"The tool call is not valid JSON: {error}")
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return ToolCall("", error='A tool call is a JSON object {"name": ..., "arguments": {...}}.')
    unknown = [key for key in value if key not in ("name", "id", "type", "arguments", "parameters")]
    if len(keys) > 1 or (unknown and not keys):
        found = ", ".join(key[:40] for key in keys or unknown[:3])
        return ToolCall(
            value["name"], error=f'The arguments of a tool call go into one object "arguments"; it has {found}.'
        )
    arguments = value[keys[0]] if keys else {}
    if not isinstance(arguments, dict):
        return ToolCall(value["name"], error='The "arguments" of a tool call must be a JSON object.')
    return ToolCall(value["name"], arguments)


def parse_tool_calls(text: str) -> list[ToolCall]:
    """The tool calls in a reply, in order, those inside its reasoning left out.

    `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, or the same in `<use_tool>`, where the name may stand
    before the JSON of the arguments, or alone; and Qwen3.5's `<function=name><parameter=key>value</parameter></function>`,
    inside `<tool_call>` or bare. "parameters" is understood for "arguments". A last call without its closing tag counts.
    Bad JSON gives a `ToolCall` with an error text.
    """
    if "<" not in text:
        return []
    return [_call(tag, body) for tag, body in _calls(strip_reasoning(text))[0]]
