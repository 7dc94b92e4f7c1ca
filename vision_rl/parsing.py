"""Text of a model -> final answer, boxes, confidence, tool calls; and boxes -> text.

The rules that every parser here keeps:
- Total and linear: any string gives a result, in time proportional to its length.
- The final answer counts: what stands inside <think> or <reasoning>, or inside a tool call, is not an answer.
- Nothing is guessed or evaluated: numbers are plain decimals in ASCII digits; what does not fit the format is counted
  as malformed and left out. "1e309", "nan" and numbers of more than 32 characters are malformed.

Formats of boxes (`fmt`): "bbox" `<bbox>[x1, y1, x2, y2]</bbox>`; "click" `<click>x, y, width, height</click>`;
"bbox_2d" JSON `[{"bbox_2d": [x1, y1, x2, y2]}]` (also "point_2d"); "box_tokens"
`<|box_start|>(x1,y1),(x2,y2)<|box_end|>`; "box_tag" `<box>[[x1, y1, x2, y2]]</box>`; or the name of a family in
`coordinates.FAMILIES`, which means its native one. Servers drop special tokens from the text by default, so the last
two are read without their tokens as well. Two numbers where four are due are a point, read as a box without area.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vision_rl.boxes import Box
from vision_rl.coordinates import FAMILIES
from vision_rl.errors import UserError

BOX_FORMATS = ("bbox", "click", "bbox_2d", "box_tokens", "box_tag")

MAX_CALL_CHARS = 10_000
"""A tool call with a longer body is an error: no tool takes that much, and JSON of that size costs time."""

_MAX_NUMBER_CHARS = 32

_REASONING_TAG = re.compile(r"<(/?)(think|thinking|reasoning)>", re.IGNORECASE)
_ANSWER_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_MARK = "<|begin_of_box|>"
_CALL_TAG = re.compile(r"<(/?)(tool_call|use_tool)>", re.IGNORECASE)
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
_NUMBER_PATTERN = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_NUMBER = re.compile(_NUMBER_PATTERN)
_BETWEEN = rf"\s*,\s*({_NUMBER_PATTERN})"
_NUMBERS = re.compile(rf"\s*({_NUMBER_PATTERN}){_BETWEEN}(?:{_BETWEEN}{_BETWEEN})?\s*")
_NAMED_CALL = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*(?::\s*)?(\{.*\})?", re.DOTALL)
_NO_FINDING = re.compile(r"\bno\s{1,4}findings?\b", re.IGNORECASE)

_ELEMENTS = {
    "bbox": re.compile(r"<bbox>([^<]*)</bbox>", re.IGNORECASE),
    "click": re.compile(r"<click>([^<]*)</click>", re.IGNORECASE),
    "bbox_2d": re.compile(r'"(?:bbox|point)_2d"\s*:\s*\[([^\[\]]*)\]'),
    # Two points, four numbers; the tokens around them may have been dropped by the server.
    "box_tokens": re.compile(r"\(([^()]*)\)\s*,\s*\(([^()]*)\)"),
    "box_tag": re.compile(r"\[\s*(\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*)\s*\]"),
}
_OPENINGS = {
    "bbox": "<bbox>",
    "click": "<click>",
    "bbox_2d": '_2d"',
    "box_tokens": "<|box_start|>",
    "box_tag": "<box>",
}
# No two repeats of white space stand next to each other: that would take quadratic time on a long run of blanks.
_EMPTY = {
    "bbox": re.compile(r"<bbox>\s*(?:\[\s*\]\s*)?</bbox>", re.IGNORECASE),
    "click": re.compile(r"<click>\s*</click>", re.IGNORECASE),
    "bbox_2d": re.compile(r'"bbox_2d"\s*:\s*\[\s*\]'),
    "box_tokens": re.compile(r"<\|box_start\|>\s*<\|box_end\|>"),
    "box_tag": re.compile(r"<box>\s*\[\s*\]\s*</box>", re.IGNORECASE),
}
_INNER_LIST = re.compile(r"\[([^\[\]]*)\]")
_EMPTY_LIST = re.compile(r"\[\s*\]|```(?:json)?\s*\[\s*\]\s*```", re.IGNORECASE)


@dataclass(frozen=True)
class BoxReading:
    """What `read_boxes` found. boxes: xyxy in the format's own space, finite, as written (corners may be swapped).

    malformed: entries of the format that are not two or four plain numbers. none: the text says that there is nothing
    to find (an empty list of boxes, or the words "no finding") and holds no box.
    """

    boxes: list[Box]
    malformed: int
    none: bool


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
    """(tag, body) of the tool calls in a text, and the text without them; the last may be cut off."""
    calls: list[tuple[str, str]] = []
    kept: list[str] = []
    position, inside, start = 0, "", 0
    for tag in _CALL_TAG.finditer(text):
        closing, name = bool(tag[1]), tag[2].lower()
        if inside:
            if closing and name == inside:
                calls.append((inside, text[start : tag.start()]))
                inside, position = "", tag.end()
        elif not closing:
            kept.append(text[position : tag.start()])
            inside, start = name, tag.end()
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


def parse_number(text: str) -> float | None:
    """A plain decimal number in ASCII digits, at most 32 characters, else None: no exponent, nan, inf, "_"."""
    text = text.strip()
    return float(text) if len(text) <= _MAX_NUMBER_CHARS and _NUMBER.fullmatch(text) else None


def _box(content: str, fmt: str) -> Box | None:
    """Four numbers (or two, a point) between commas as an xyxy box, else None."""
    content = content.strip()
    if fmt == "bbox" and content.startswith("[") and content.endswith("]"):
        content = content[1:-1]
    found = _NUMBERS.fullmatch(content) if len(content) <= 256 else None
    if found is None or max(len(number or "") for number in found.groups()) > _MAX_NUMBER_CHARS:
        return None
    x, y = float(found[1]), float(found[2])
    if found[3] is None:
        return x, y, x, y
    c, d = float(found[3]), float(found[4])
    return (x, y, x + c, y + d) if fmt == "click" else (x, y, c, d)


def _entries(text: str, fmt: str) -> list[str]:
    """The contents of all places in `text` that have the outer shape of the format."""
    found = _ELEMENTS[fmt].findall(text)
    if fmt == "box_tokens":
        return [f"{first},{second}" if first.count(",") == second.count(",") == 1 else "?" for first, second in found]
    if fmt == "box_tag":
        return [row for group in found for row in _INNER_LIST.findall(group)]
    return list(found)


def box_format(fmt: str) -> str:
    """One of `BOX_FORMATS` from itself or from the name of a family (its native format); `UserError` for others."""
    if fmt in _ELEMENTS:
        return fmt
    if fmt in FAMILIES:
        return FAMILIES[fmt].native
    raise UserError(f"box format {fmt!r} does not exist; choose one of {', '.join(BOX_FORMATS)}, or a model family")


def read_boxes(text: str, fmt: str) -> BoxReading:
    """All boxes of a reply's final text, what was malformed, and whether it says that there is nothing to find."""
    fmt = box_format(fmt)
    text = final_text(text)
    boxes: list[Box] = []
    malformed = 0
    for entry in _entries(text, fmt):
        box = _box(entry, fmt)
        if box is not None:
            boxes.append(box)
        else:
            malformed += bool(entry.strip(" \t\r\n[]"))
    empty = 0 if boxes else len(_EMPTY[fmt].findall(text))
    # An opening that leads to no entry at all: unclosed, or with another tag inside.
    malformed += max(0, text.lower().count(_OPENINGS[fmt]) - len(boxes) - malformed - empty)
    none = False
    if not boxes and not malformed:
        none = bool(empty or _EMPTY_LIST.fullmatch(text.strip()) or _NO_FINDING.search(text))
    return BoxReading(boxes, malformed, none)


def parse_boxes(text: str, fmt: str) -> list[Box]:
    """The well-formed boxes of a reply, xyxy in the format's own space, in the order of the text; see `read_boxes`."""
    return read_boxes(text, fmt).boxes


def format_boxes(boxes: Sequence[Sequence[float]], fmt: str, decimals: int | None = None) -> str:
    """Boxes (xyxy, in the format's own space) as a model of that format writes them; no boxes give its "nothing found".

    decimals: digits after the point; by default 4 for unit formats ("bbox", "click") and 0 for the native ones.
    """
    fmt = box_format(fmt)
    if decimals is None:
        decimals = 4 if fmt in ("bbox", "click") else 0
    rows = []
    for x1, y1, x2, y2 in boxes:
        numbers = (x1, y1, x2 - x1, y2 - y1) if fmt == "click" else (x1, y1, x2, y2)
        rows.append([f"{number:.{decimals}f}" for number in numbers])
    if fmt == "bbox":
        return "\n".join(f"<bbox>[{', '.join(row)}]</bbox>" for row in rows) or "<bbox>[]</bbox>"
    if fmt == "click":
        return "\n".join(f"<click>{', '.join(row)}</click>" for row in rows) or "<click></click>"
    if fmt == "bbox_2d":
        return "[" + ", ".join(f'{{"bbox_2d": [{", ".join(row)}]}}' for row in rows) + "]"
    if fmt == "box_tokens":
        text = "".join(f"<|box_start|>({a},{b}),({c},{d})<|box_end|>" for a, b, c, d in rows)
        return text or "<|box_start|><|box_end|>No finding"
    return "<box>[" + ", ".join(f"[{', '.join(row)}]" for row in rows) + "]</box>"


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


def _loads(text: str) -> Any:
    """JSON of finite numbers only; raises ValueError for anything else, too deep nesting included."""
    try:
        return json.loads(text, parse_float=_finite_float, parse_int=_small_int, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _call(tag: str, body: str) -> ToolCall:
    body = body.strip()
    if len(body) > MAX_CALL_CHARS:
        return ToolCall("", error=f"The tool call is longer than {MAX_CALL_CHARS} characters.")
    named = _NAMED_CALL.fullmatch(body) if tag == "use_tool" else None
    try:
        value = {"name": named[1], "arguments": _loads(named[2] or "{}")} if named else _loads(body)
        if isinstance(value, dict) and isinstance(value.get("arguments"), str):
            value = {**value, "arguments": _loads(value["arguments"])}
    except ValueError as error:
        return ToolCall(named[1] if named else "", error=f"The tool call is not valid JSON: {error}")
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return ToolCall("", error='A tool call is a JSON object {"name": ..., "arguments": {...}}.')
    arguments = value.get("arguments", {})
    if not isinstance(arguments, dict):
        return ToolCall(value["name"], error='The "arguments" of a tool call must be a JSON object.')
    return ToolCall(value["name"], arguments)


def parse_tool_calls(text: str) -> list[ToolCall]:
    """The tool calls in a reply, in order, those inside its reasoning left out.

    `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, or the same in `<use_tool>`, where the name may stand
    before the JSON of the arguments, or alone. A last call without its closing tag counts. Bad JSON gives a `ToolCall`
    with an error text.
    """
    if "<" not in text:
        return []
    return [_call(tag, body) for tag, body in _calls(strip_reasoning(text))[0]]
