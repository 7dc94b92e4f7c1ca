"""Read a reply as an action on a screen: a box or point, a GUI action by name, JSON, a function call, or one of some words.

A reader has two sides: `ask` says in a prompt how to answer, `read` takes a reply. A reply that does not hold exactly one
action of the form reads as None; nothing is guessed. Places are in unit space of the picture that the model saw last.

Names of GUI actions: UI-TARS (action_parser.py), pyautogui, and the computer_use tool of Qwen's cookbooks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vision_rl.answers.coordinates import Size, get_family, to_unit
from vision_rl.answers.formats import NUMBER_PATTERN
from vision_rl.answers.parsing import final_text, parse_json, parse_tool_calls, strip_reasoning
from vision_rl.answers.space import AnswerSpace
from vision_rl.settings import AgentSettings

Point = tuple[float, float]
SCROLL = 0.5
"""Share of the picture's height that a scroll moves."""

_NAMES = {
    "click": "click left_click left_single leftclick tap",
    "double_click": "double_click left_double doubleclick",
    "right_click": "right_click right_single rightclick",
    "hover": "hover moveto mouse_move move_to",
    "drag": "drag dragto left_click_drag select swipe",
    "scroll": "scroll",
    "type": "type write typewrite input_text",
    "press": "press key hotkey",
    "wait": "wait sleep",
    "finish": "finish finished terminate done answer",
}
_KNOWN = {word: name for name, words in _NAMES.items() for word in words.split()}
_CLICKS = ("click", "double_click", "right_click")
_PLACED = {"click": 1, "double_click": 1, "right_click": 1, "hover": 1, "drag": 2}
# Between a call's brackets: texts in quotes, places in brackets of their own, and what is neither.
_ARGUMENTS = r"((?:'(?:[^'\\\n]|\\.){0,2000}'|\"(?:[^\"\\\n]|\\.){0,2000}\"|\([^()\n]{0,100}\)|[^()\n\"']){0,300})"
_CALL = re.compile(
    rf"\b(?:pyautogui\.)?({'|'.join(sorted(_KNOWN, key=len, reverse=True))})\({_ARGUMENTS}\)", re.IGNORECASE
)
_KEYWORD = re.compile(r"\b[a-z_]\w{0,20}\s{0,4}=", re.IGNORECASE)
_NUMBER = re.compile(NUMBER_PATTERN)
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")
_DIRECTION = re.compile(r"\b(up|down)\b", re.IGNORECASE)
_OBJECT = re.compile(r"\{[^\0]{0,10000}\}")


@dataclass(frozen=True)
class Action:
    """What to do on a screen. name: a key of `_NAMES`.

    point, to: (x, y) in unit space, `to` being where a drag ends. text: what is typed, the key or keys ("Control+a") that
    are pressed, or the last word of "finish". amount: of a scroll, share of the picture's height, down being positive.
    """

    name: str
    point: Point | None = None
    to: Point | None = None
    text: str = ""
    amount: float = 0.0


@dataclass(frozen=True)
class Reader:
    """ask: (settings, (width, height) of the picture's file) -> how to answer. read: (reply, settings, that size, the size
    at which the model saw it) -> the action, or None."""

    ask: Callable[[AgentSettings, Size], str]
    read: Callable[[str, AgentSettings, Size, Size], Any]


def _read_click(reply: str, settings: AgentSettings, size: Size, seen: Size) -> Action | None:
    found = AnswerSpace.of(settings, size, seen).boxes(reply)
    if len(found) != 1:
        return None
    x1, y1, x2, y2 = found[0]
    return _checked(Action("click", ((x1 + x2) / 2, (y1 + y2) / 2)))


def _ask_click(settings: AgentSettings, size: Size) -> str:
    space = AnswerSpace.of(settings)
    if space.format.name == "bbox":
        return "Answer with <bbox>[x1, y1, x2, y2]</bbox>, each a fraction of the image's width or height."
    return f"Answer with {space.format.form}, {_place(space.unit, size)}."


def _place(space: str, size: Size) -> str:
    tops = {"unit": "1", "percent": "100", "thousand": "1000", "to_999": "999", "bins_1024": "1024"}
    if space in tops:
        return f"each number from 0 to {tops[space]} across the image's width or height"
    return "in pixels of the image" + (f" ({size[0]} x {size[1]})" if space == "original" else "")


def _ask_gui(settings: AgentSettings, size: Size) -> str:
    return (
        "Answer with one action: click(x, y), double_click(x, y), right_click(x, y), hover(x, y), drag(x1, y1, x2, y2), "
        'scroll(x, y, "down"), type("text"), press("key"), wait() or finish(). x and y are '
        f"{_place(get_family(settings.family).space, size)}."
    )


def _read_gui(reply: str, settings: AgentSettings, size: Size, seen: Size) -> Action | None:
    scale = lambda x, y: to_unit((x, y, x, y), settings.family, size, seen)[:2]  # noqa: E731
    calls = [call for call in parse_tool_calls(reply) if not call.error]
    if calls:
        return _only([_of_call(call.name, call.arguments, scale) for call in calls])
    found = _CALL.findall(final_text(reply))
    return _only([_of_text(_KNOWN[name.lower()], arguments, scale) for name, arguments in found])


def _only(actions: Sequence[Action | None]) -> Action | None:
    """The one action of a reply; a pointer that moves and then clicks or drags is one, as for pyautogui."""
    *moves, last = actions or [None]
    if last is None or any(move is None or move.name != "hover" for move in moves):
        return None
    before = moves[-1].point if moves and moves[-1] is not None else None
    if before is not None and last.name == "drag" and last.to is None:
        last = replace(last, point=before, to=last.point)
    elif before is not None and last.name in _CLICKS:
        last = replace(last, point=last.point or before)
    elif moves:
        return None
    return _checked(last)


def _of_text(name: str, arguments: str, scale: Callable[[float, float], Point]) -> Action:
    """An action written as code: its numbers in order, its texts in quotes."""
    quoted = [re.sub(r"\\(.)", r"\1", one or two) for one, two in _QUOTED.findall(arguments)]
    if name in ("type", "press", "finish"):
        text = "+".join(quoted) if name == "press" else (quoted or [""])[0]
        if name == "press":
            text = "+".join(text.replace("+", " + ").split()).replace("+++", "+") if len(text) > 1 else text
        return Action(name, text=text)
    numbers = [float(one) for one in _NUMBER.findall(_KEYWORD.sub(" ", arguments)) if len(one) <= 32]
    points = [scale(*pair) for pair in _pairs(numbers, _PLACED.get(name, 1))]
    way = _DIRECTION.search(arguments)
    amount = _amount(way[1] if way else "") if name == "scroll" else 0.0
    point, to = [*points, None, None][:2]
    return Action(name, point, to, amount=amount)


def _pairs(numbers: Sequence[float], wanted: int) -> list[Point]:
    """Up to `wanted` places: two numbers each, or four, of which the middle counts."""
    if len(numbers) >= 4 * wanted:
        boxes = [numbers[4 * i : 4 * i + 4] for i in range(wanted)]
        return [((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes]
    return [(numbers[2 * i], numbers[2 * i + 1]) for i in range(min(wanted, len(numbers) // 2))]


def _of_call(tool: str, arguments: Mapping[str, Any], scale: Callable[[float, float], Point]) -> Action | None:
    """A call of computer_use, or of a tool that is named as the action is."""
    name = _KNOWN.get(str(arguments.get("action", tool)).lower())
    if name is None:
        return None
    places = [arguments.get(key) for key in ("start_coordinate", "coordinate", "coordinate2", "end_coordinate")]
    try:
        points = [scale(float(place[0]), float(place[1])) for place in places if place is not None]
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        return None
    keys = arguments.get("keys", arguments.get("key", arguments.get("text", "")))
    text = "+".join(map(str, keys)) if isinstance(keys, list) else str(keys)
    pixels = arguments.get("pixels", 0)
    way = str(arguments.get("direction") or ("up" if isinstance(pixels, int | float) and pixels > 0 else "down"))
    point, to = [*points, None, None][:2]
    return Action(name, point, to, text=text, amount=_amount(way) if name == "scroll" else 0.0)


def _amount(way: str) -> float:
    return -SCROLL if way.lower() == "up" else SCROLL


def _checked(action: Action) -> Action | None:
    """The action if it has all that its name asks for, and no place outside of the picture."""
    points = [point for point in (action.point, action.to) if point is not None]
    if not all(0 <= number <= 1 for point in points for number in point):
        return None
    if len(points) < _PLACED.get(action.name, 0) or (action.name in ("type", "press") and not action.text):
        return None
    return action


def _read_json(reply: str, settings: AgentSettings, size: Size, seen: Size) -> dict[str, Any] | None:
    found = _OBJECT.search(final_text(reply))
    try:
        value = parse_json(found[0]) if found else None
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _read_function(reply: str, settings: AgentSettings, size: Size, seen: Size) -> dict[str, Any] | None:
    calls = parse_tool_calls(strip_reasoning(reply))
    return {"name": calls[0].name, "arguments": calls[0].arguments} if len(calls) == 1 and not calls[0].error else None


def words(choices: Sequence[str]) -> Reader:
    """A reader of one of several words, as its place in `choices`: what a gymnasium `Discrete` space takes."""
    known = {choice.lower(): number for number, choice in enumerate(choices)}
    pattern = re.compile(
        rf"(?<!\w)({'|'.join(map(re.escape, sorted(known, key=len, reverse=True)))})(?!\w)", re.IGNORECASE
    )

    def read(reply: str, settings: AgentSettings, size: Size, seen: Size) -> int | None:
        found = {one.lower() for one in pattern.findall(final_text(reply))}
        return known[found.pop()] if len(found) == 1 else None

    return Reader(lambda settings, size: f"Answer with one word: {', '.join(choices)}.", read)


READERS = {
    "click": Reader(_ask_click, _read_click),
    "gui": Reader(_ask_gui, _read_gui),
    "json": Reader(lambda settings, size: "Answer with one JSON object.", _read_json),
    "function": Reader(
        lambda settings, size: 'Answer with one <tool_call>{"name": <name>, "arguments": <object>}</tool_call>.',
        _read_function,
    ),
}
"""By the name that `Environments.reader` takes."""
