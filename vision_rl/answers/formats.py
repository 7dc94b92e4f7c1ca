"""The forms in which models write boxes and points: one row each, with prompt, reader and writer.

`agent.answer_format` names a row, or "native" for the row of the model's family (`vision_rl.answers.coordinates.FAMILIES`). What
the prompt asked for decides how a reply is read; nothing is guessed from the numbers. A row says in whose space its
numbers are ("" for that of the model's family). Servers drop special tokens from the text by default, so forms with such
tokens are read without them as well.

Sources: Qwen2-VL arXiv 2409.12191, Qwen2.5-VL and Qwen3-VL cookbooks (spatial understanding, computer use), InternVL2
documentation, GLM-4.5V cookbook, Gemma and PaliGemma (big_vision) documentation, Florence-2 arXiv 2311.06242, Molmo
arXiv 2409.17146, DeepSeek-VL2 README, UI-TARS action_parser.py, OpenCUA and Kimi-VL (pyautogui).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vision_rl.answers.boxes import Box

MAX_NUMBER_CHARS = 32
NUMBER_PATTERN = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_MAX_ENTRY_CHARS = 256
_NUMBER = re.compile(rf"({NUMBER_PATTERN})\s*(%?)")
OWN = "(part of another answer)"
"""An entry that says again what another one says: the point of an object with a box, a pointer moved to where it clicks."""
_PLACEHOLDER = re.compile(r"\s*(?!(?:nan|inf)\b)[a-z]\w*(?:[\s,]+(?!(?:nan|inf)\b)[a-z]\w*){1,3}\s*", re.IGNORECASE)
_INNER_LIST = re.compile(r"\[([^\[\]]*)\]")
_XY_ATTRIBUTES = re.compile(
    r"\bx[0-9]{0,4}\s*=\s*[\"']([^\"']{0,64})[\"']\s+y[0-9]{0,4}\s*=\s*[\"']([^\"']{0,64})[\"']"
)
_LISTS = re.compile(r"\[\s*(\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*)\s*\]")
# No two repeats of white space stand next to each other: that would take quadratic time on a long run of blanks.
_EMPTY_LIST = r"(?:\[\s*\]\s*)?"
_CLICKS = "click|left_click|left_single|left_double|double_click|right_single|right_click|long_press"
_GUI_CLICKS = "click|doubleClick|tripleClick|rightClick|middleClick"
_GUI_OPTIONS = r"(?:button|clicks|interval|duration)\s*=\s*[^,()\n]{0,40}"
_CLICK_IN_PLACE = re.compile(rf"\bpyautogui\.(?:{_GUI_CLICKS})\(\s*(?:{_GUI_OPTIONS}(?:,\s*{_GUI_OPTIONS}){{0,3}})?\)")
_ARGUMENT = r"[^,()=\n]{0,40}"
_ARGUMENTS_OF_A_CALL = re.compile(r"(?:[^{}<]|<(?!/?function\b))+")
_ACTION = re.compile(r"(?:[\"']action[\"']\s{0,8}:\s{0,8}[\"']|<parameter=action>\s{0,8})(\w{1,32})")
# In prose a bracket may hold anything: only numbers, or the template's letters, make it an entry.
_COORDINATES = r"(?:[\s0-9.,+-]|\b[a-z][0-9]?\b){1,256}"


@dataclass(frozen=True)
class AnswerFormat:
    """One form of boxes or points.

    form: how a prompt describes it. entry: how one is written, {0} to {3} being its numbers. pattern: finds entries;
    the groups are joined by commas; rows finds several in one. keys: entries are values of JSON keys. opening: what
    begins an entry; one that leads to none counts as malformed. joint and frame: between and around entries. nothing:
    what says that there is nothing to find; empty reads it. space: the family in whose space the numbers always are.
    order: of four numbers. points: two numbers are asked for, and -1, -1 says that there is nothing. spaced: numbers
    may be parted by blanks alone. in_call: the answer is itself a tool call. bins: a whole number n stands for the
    middle of a bin, n + 0.5.
    """

    name: str
    form: str
    entry: str
    pattern: re.Pattern[str]
    nothing: str
    opening: re.Pattern[str] | None = None
    keys: bool = False
    empty: re.Pattern[str] | None = None
    rows: re.Pattern[str] | None = None
    joint: str = ""
    frame: str = "{}"
    space: str = ""
    order: str = "xyxy"
    points: bool = False
    spaced: bool = False
    in_call: bool = False
    bins: bool = False

    def entries(self, text: str) -> Iterator[tuple[str, int]]:
        """(content, place in the text where it ends) of everything that has the form's outer shape; `OWN` is the content of
        what belongs to another entry."""
        if self.keys:
            yield from self._values(text)
            return
        if self.name in _POINTERS:
            yield from _one_for_each_click(_POINTERS[self.name](self.pattern, text))
            return
        for found in self.pattern.finditer(text):
            groups = [group for group in found.groups() if group is not None]
            if self.name == "box_tokens" and any(group.count(",") != 1 for group in groups):
                yield "?", found.end()
            elif self.rows is None:
                yield ",".join(groups), found.end()
            else:
                for row in self.rows.findall(groups[0]):
                    yield row if isinstance(row, str) else ",".join(row), found.end()

    def _values(self, text: str) -> Iterator[tuple[str, int]]:
        """The values of JSON keys. An object's point is `OWN` where the object has a box; [[x1, y1], [x2, y2]] is one box."""
        found = list(self.pattern.finditer(text))
        for number, value in enumerate(found):
            beside = [other for other in found[max(0, number - 1) : number + 2] if other["key"] != value["key"]]
            if value["key"] == "point_2d" and any(_in_one_object(text, value, other) for other in beside):
                yield OWN, value.end()
            elif value["lists"] is None:
                yield value["flat"], value.end()
            else:
                inner = _INNER_LIST.findall(value["lists"])
                corners = len(inner) == 2 and all(part.count(",") == 1 for part in inner)
                for content in [",".join(inner)] if corners else inner:
                    yield content, value.end()

    def box(self, content: str) -> Box | None:
        """The numbers of an entry as an xyxy box in the format's own space (a point has no area), else None."""
        content = content.strip()
        if self.space == "unit" and content[:1] + content[-1:] in ("[]", "()"):
            content = content[1:-1].strip()
        if len(content) > _MAX_ENTRY_CHARS:
            return None
        if self.spaced or (self.space == "unit" and "," not in content):
            content = content.replace(" %", "%")
            content = re.sub(r"[\s,]+", ",", content.strip(", "))
        numbers = [self._number(part) for part in content.removesuffix(",").split(",")]
        values = [number for number in numbers if number is not None]
        if len(values) != len(numbers) or len(values) not in (2, 4):
            return None
        if len(values) == 2:
            return values[0], values[1], values[0], values[1]
        if self.points and self.name != "ui_tars":  # UI-TARS's own parser takes both
            return None
        a, b, c, d = values
        if self.order == "xywh":
            return a, b, a + c, b + d
        return (b, a, d, c) if self.order == "yxyx" else (a, b, c, d)

    def _number(self, text: str) -> float | None:
        """A plain number, perhaps in quotes; "20%" is 0.2 in unit space, and none in any other."""
        text = text.strip()
        if text[:1] == text[-1:] and text[:1] in ("'", '"'):
            text = text[1:-1].strip()
        found = _NUMBER.fullmatch(text)
        if found is None or len(found[1]) > MAX_NUMBER_CHARS or (found[2] and self.space != "unit"):
            return None
        return float(found[1]) / (100 if found[2] else 1) + (0.5 if self.bins else 0.0)

    def until_last_box(self, text: str) -> str:
        """A text that the length limit has cut off, without what stands behind its last whole box."""
        if self.rows is _INNER_LIST:
            text = text[: text.rfind("]") + 1] + "]"  # the outer list was never closed
        return text[: max((place for entry, place in self.entries(text) if self.box(entry)), default=0)]

    def is_placeholder(self, content: str) -> bool:
        """Whether an entry only repeats the prompt's template, letters standing where numbers belong."""
        return len(content) <= _MAX_ENTRY_CHARS and _PLACEHOLDER.fullmatch(content.strip().strip("[]")) is not None

    def is_refusal(self, box: Box) -> bool:
        """Whether an entry is the point -1, -1: there is nothing to find (OSWorld-G, ScreenSpot-Pro's negatives)."""
        return self.points and box == (-1.0, -1.0, -1.0, -1.0)

    def write(self, boxes: Sequence[Sequence[float]], decimals: int) -> str:
        """Boxes (xyxy, in the format's own space) as a model writes them; point formats write their centres."""
        return (
            self.frame.format(self.joint.join(self._entry(box, decimals) for box in boxes)) if boxes else self.nothing
        )

    def _entry(self, box: Sequence[float], decimals: int) -> str:
        x1, y1, x2, y2 = box
        numbers: tuple[float, ...] = (x1, y1, x2, y2)
        if self.points:
            numbers = ((x1 + x2) / 2, (y1 + y2) / 2)
        elif self.order != "xyxy":
            numbers = (x1, y1, x2 - x1, y2 - y1) if self.order == "xywh" else (y1, x1, y2, x2)
        if self.bins:
            numbers = tuple(number - 0.5 if decimals else min(max(math.floor(number), 0), 999) for number in numbers)
        return self.entry.format(*(f"{number:.{decimals}f}" for number in numbers))


def _in_one_object(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
    """Whether no brace stands between two values."""
    between = text[min(one.end(), other.end()) : max(one.start(), other.start())]
    return "{" not in between and "}" not in between


def _one_for_each_click(calls: Iterable[tuple[str, str, int]]) -> Iterator[tuple[str, int]]:
    """The entries of a pointer's calls: (kind, content, end) in their order, kind being "move", "click", or "here" for a click
    where the pointer is. A move and then a click are one answer; a pointer that only moves is an answer alone."""
    pending, place, answered, end = "", "", False, 0
    for kind, content, end in calls:
        if kind != "here" and pending:
            yield OWN, end
        if kind == "move":
            pending = place = content
        elif kind == "click":
            pending, answered = "", True
            yield content, end
        elif place:
            if content:
                yield content, end
            if pending:
                answered = True
                yield pending, end
            pending = ""
    if pending:
        yield OWN if answered else pending, end


def _pyautogui_calls(pattern: re.Pattern[str], text: str) -> Iterator[tuple[str, str, int]]:
    for call in sorted((*pattern.finditer(text), *_CLICK_IN_PLACE.finditer(text)), key=lambda call: call.start()):
        if call.re is pattern:
            yield "move" if ".moveTo(" in call[0] else "click", ",".join(call.groups()), call.end()
        else:
            yield "here", OWN, call.end()  # counts as an opening of the form


def _computer_calls(pattern: re.Pattern[str], text: str) -> Iterator[tuple[str, str, int]]:
    """By the action that stands in the same object, or `<function>`, as the coordinate."""
    for part in _ARGUMENTS_OF_A_CALL.finditer(text):
        action = _ACTION.search(part[0])
        moves = action is not None and action[1].lower() in ("mouse_move", "move_to", "moveto", "hover")
        places = list(pattern.finditer(part[0]))
        for place in places:
            content = ",".join(group for group in place.groups() if group is not None)
            yield "move" if moves else "click", content, part.start() + place.end()
        if action is not None and not places and "click" in action[1].lower():
            yield "here", "", part.end()


_POINTERS = {"pyautogui": _pyautogui_calls, "computer_use": _computer_calls}


def _opening(text: str) -> re.Pattern[str]:
    return re.compile(re.escape(text), re.IGNORECASE)


_QUOTE = "[\"']"
_VALUE = r"\s*:\s*[\"']?\[(?:\s*(?P<lists>(?:\[[^\[\]]*\][\s,]*)+)\]|(?P<flat>[^\[\]]*)\])"


def _json(name: str, key: str, numbers: str, *, order: str = "xyxy", points: bool = False) -> AnswerFormat:
    """A JSON list of objects, in single quotes and with commas too many too; a reply may also use `point_2d` where boxes are
    due, as Qwen's models do."""
    keys = "bbox_2d|point_2d" if name == "bbox_2d" else key
    entry = f'{{{{"{key}": [{", ".join(f"{{{i}}}" for i in range(2 if points else 4))}]}}}}'
    return AnswerFormat(
        name, f'JSON [{{"{key}": [{numbers}]}}]', entry, re.compile(rf"\b(?P<key>{keys}){_QUOTE}?{_VALUE}"),
        nothing="[]", opening=re.compile(rf"\b(?:{keys}){_QUOTE}"), keys=True,
        empty=re.compile(rf"\b{key}{_QUOTE}?\s*:\s*\[\s*\]"), joint=", ", frame="[{}]", order=order, points=points,
    )  # fmt: skip


FORMATS: dict[str, AnswerFormat] = {
    row.name: row
    for row in (
        AnswerFormat(
            "bbox", "<bbox>[x1, y1, x2, y2]</bbox>", "<bbox>[{0}, {1}, {2}, {3}]</bbox>",
            re.compile(r"<bbox>([^<]*)</bbox>", re.IGNORECASE), nothing="<bbox>[]</bbox>", opening=_opening("<bbox>"),
            empty=re.compile(rf"<bbox>\s*{_EMPTY_LIST}</bbox>", re.IGNORECASE), joint="\n", space="unit",
        ),
        AnswerFormat(
            "click", "one <click>x, y, width, height</click> per box, x and y being its upper left corner",
            "<click>{0}, {1}, {2}, {3}</click>", re.compile(r"<click>([^<]*)</click>", re.IGNORECASE),
            nothing="<click></click>", opening=_opening("<click>"),
            empty=re.compile(r"<click>\s*</click>", re.IGNORECASE), joint="\n", space="unit", order="xywh",
        ),
        _json("bbox_2d", "bbox_2d", "x1, y1, x2, y2"),
        _json("box_2d", "box_2d", "y1, x1, y2, x2", order="yxyx"),
        _json("point_2d", "point_2d", "x, y", points=True),
        AnswerFormat(
            "box_tokens", "<|box_start|>(x1,y1),(x2,y2)<|box_end|>", "<|box_start|>({0},{1}),({2},{3})<|box_end|>",
            re.compile(r"\(([^()]*)\)\s*,\s*\(([^()]*)\)"), nothing="<|box_start|><|box_end|>No finding",
            opening=_opening("<|box_start|>"), empty=re.compile(r"<\|box_start\|>\s*<\|box_end\|>"),
        ),
        AnswerFormat(
            "box_tag", "<box>[[x1, y1, x2, y2]]</box>", "[{0}, {1}, {2}, {3}]", _LISTS, nothing="<box>[]</box>",
            opening=_opening("<box>"), empty=re.compile(r"<box>\s*\[\s*\]\s*</box>", re.IGNORECASE), rows=_INNER_LIST,
            joint=", ", frame="<box>[{}]</box>",
        ),
        AnswerFormat(
            "glm_box", "<|begin_of_box|>[[x1,y1,x2,y2]]<|end_of_box|>", "[{0},{1},{2},{3}]",
            re.compile(rf"(\[{_COORDINATES}\](?:\s*,\s*\[{_COORDINATES}\])*)"), nothing="<|begin_of_box|>[]<|end_of_box|>",
            opening=_opening("<|begin_of_box|>"), empty=re.compile(r"<\|begin_of_box\|>\s*\[\s*\]\s*<\|end_of_box\|>"),
            rows=_INNER_LIST, joint=",", frame="<|begin_of_box|>[{}]<|end_of_box|>",
        ),
        AnswerFormat(
            "det", "<|det|>[[x1, y1, x2, y2]]<|/det|>", "[{0}, {1}, {2}, {3}]", _LISTS, nothing="<|det|>[]<|/det|>",
            opening=_opening("<|det|>"), empty=re.compile(r"<\|det\|>\s*\[\s*\]\s*<\|/det\|>"), rows=_INNER_LIST,
            joint=", ", frame="<|det|>[{}]<|/det|>", space="deepseek_vl2",
        ),
        AnswerFormat(
            "loc", "<locY1><locX1><locY2><locX2>, four digits each", "<loc{0:0>4}><loc{1:0>4}><loc{2:0>4}><loc{3:0>4}>",
            re.compile(r"<loc([0-9.]{1,32})>" * 4), nothing="No finding", joint=" ; ", space="paligemma",
            order="yxyx",
        ),
        AnswerFormat(
            "florence", "<loc_x1><loc_y1><loc_x2><loc_y2>", "<loc_{0}><loc_{1}><loc_{2}><loc_{3}>",
            re.compile(r"<loc_([0-9.+-]{1,32})>" * 4), nothing="No finding", space="florence2", bins=True,
        ),
        AnswerFormat(
            "point", "(x, y)", "({0}, {1})",
            re.compile(rf"[(\[]((?=[^()\[\]]{{0,256}},){_COORDINATES})[)\]]"), nothing="(-1, -1)", joint=", ",
            points=True,
        ),
        AnswerFormat(
            "point_tag", "<point>x y</point>", "<point>{0} {1}</point>",
            re.compile(r"<point>([^<]*)</point>", re.IGNORECASE), nothing="<point>-1 -1</point>", opening=_opening("<point>"),
            joint="\n", points=True, spaced=True,
        ),
        AnswerFormat(
            "molmo", '<point x="x" y="y">the thing</point>', '<point x="{0}" y="{1}">target</point>',
            re.compile(r"<points?\b([^<>]{0,65536})>", re.IGNORECASE), nothing="There are none.",
            rows=_XY_ATTRIBUTES, empty=re.compile(r"\bthere are none\b", re.IGNORECASE), opening=_opening("<point "), joint="\n",
            space="molmo", points=True,
        ),
        AnswerFormat(
            "ui_tars", "Action: click(start_box='<|box_start|>(x,y)<|box_end|>')",
            "click(start_box='<|box_start|>({0},{1})<|box_end|>')",
            re.compile(
                rf"\b(?:{_CLICKS})\(\s*(?:start_box|point|start_point)\s*=\s*[\"']?\s*(?:<\|box_start\|>|<point>)?\s*"
                r"[(\[]?([^()\[\]<>\"'\n]{0,256})[)\]<\"']"
            ),
            nothing="click(start_box='<|box_start|>(-1,-1)<|box_end|>')", joint="\n", frame="Action: {}", points=True,
            spaced=True,
        ),
        AnswerFormat(
            "pyautogui", "pyautogui.click(x=x, y=y)", "pyautogui.click(x={0}, y={1})",
            re.compile(
                rf"\bpyautogui\.(?:{_GUI_CLICKS}|moveTo)\((?!\s*{_GUI_OPTIONS})\s*(?:x\s*=\s*)?({_ARGUMENT}),\s*(?:y\s*=\s*)?({_ARGUMENT})"
                r"(?:,[^()\n]{0,80})?\)"
            ),
            nothing="pyautogui.click(x=-1, y=-1)", opening=_opening("pyautogui."), joint="\n", points=True,
        ),
        AnswerFormat(
            "computer_use",
            '<tool_call>{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [x, y]}}</tool_call>',
            '<tool_call>\n{{"name": "computer_use", "arguments": {{"action": "left_click", "coordinate": [{0}, {1}]}}}}\n'
            "</tool_call>",
            re.compile(
                rf"{_QUOTE}coordinate{_QUOTE}\s*:\s*{_QUOTE}?[(\[]([^()\[\]]*)[)\]]"
                r"|<parameter=coordinate>\s*[(\[]?([^()\[\]<]*)[)\]]?\s*</parameter>"
            ),
            nothing='<tool_call>\n{"name": "computer_use", "arguments": {"action": "left_click", "coordinate": [-1, -1]}}\n'
            "</tool_call>",
            opening=re.compile(rf"{_QUOTE}coordinate{_QUOTE}|<parameter=coordinate>"), joint="\n", points=True, in_call=True,
        ),
    )
}  # fmt: skip
