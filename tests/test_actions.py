"""Replies as actions: a table of what is read from each dialect, and of what is not."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_rl.answers.actions import READERS, SCROLL, Action, words
from vision_rl.settings import AgentSettings

SIZE = (200, 100)
UNIT: dict[str, Any] = {"family": "unit", "answer_format": "bbox"}
THOUSAND: dict[str, Any] = {"family": "qwen3_vl", "answer_format": "native"}
PIXELS: dict[str, Any] = {"family": "qwen2_5_vl", "answer_format": "native"}


def read(reader: str, reply: str, settings: dict[str, Any]) -> Any:
    return READERS[reader].read(reply, AgentSettings(**settings), SIZE, (100, 50))


def computer(action: str, **arguments: Any) -> str:
    body = ", ".join(f'"{name}": {value}' for name, value in arguments.items())
    return f'<tool_call>{{"name": "computer_use", "arguments": {{"action": "{action}"{", " if body else ""}{body}}}}}</tool_call>'


@pytest.mark.parametrize(
    ("reply", "settings", "action"),
    [
        ("click(0.5, 0.25)", UNIT, Action("click", (0.5, 0.25))),
        ("<think>click(1, 2) or drag(1, 2)?</think>\nclick(500, 250)", THOUSAND, Action("click", (0.5, 0.25))),
        ("Action: click(start_box='(500,250)')", THOUSAND, Action("click", (0.5, 0.25))),
        ("Action: click(start_box='<|box_start|>(50,25)<|box_end|>')", PIXELS, Action("click", (0.5, 0.5))),
        ("Action: left_double(start_box='[400, 200, 600, 300]')", THOUSAND, Action("double_click", (0.5, 0.25))),
        ("Action: drag(start_box='(100,200)', end_box='(300,400)')", THOUSAND, Action("drag", (0.1, 0.2), (0.3, 0.4))),
        ("Action: scroll(start_box='(100,200)', direction='up')", THOUSAND, Action("scroll", (0.1, 0.2), amount=-SCROLL)),
        ("Action: type(content='it\\'s (a) \"test\"')", THOUSAND, Action("type", text='it\'s (a) "test"')),
        ("Action: hotkey(key='ctrl c')", THOUSAND, Action("press", text="ctrl+c")),
        ("Action: finished(content='done')", THOUSAND, Action("finish", text="done")),
        ("pyautogui.click(x=50, y=25)", PIXELS, Action("click", (0.5, 0.5))),
        ("pyautogui.click(x=50, y=25, clicks=1)", PIXELS, Action("click", (0.5, 0.5))),
        ("pyautogui.rightClick(50, 25)", PIXELS, Action("right_click", (0.5, 0.5))),
        ("pyautogui.hotkey('ctrl', 'a')", PIXELS, Action("press", text="ctrl+a")),
        ("pyautogui.write('hello')", PIXELS, Action("type", text="hello")),
        ("press(\"Enter\")", UNIT, Action("press", text="Enter")),
        ("press('+')", UNIT, Action("press", text="+")),
        ("wait()", UNIT, Action("wait")),
        (computer("left_click", coordinate="[500, 250]"), THOUSAND, Action("click", (0.5, 0.25))),
        (computer("left_click_drag", start_coordinate="[0, 0]", coordinate="[1000, 500]"), THOUSAND,
         Action("drag", (0.0, 0.0), (1.0, 0.5))),
        (computer("key", keys='["Control", "a"]'), THOUSAND, Action("press", text="Control+a")),
        (computer("type", text='"ab"'), THOUSAND, Action("type", text="ab")),
        (computer("scroll", coordinate="[500, 500]", pixels="-5"), THOUSAND, Action("scroll", (0.5, 0.5), amount=SCROLL)),
        ('<tool_call>{"name": "click", "arguments": {"coordinate": [500, 250]}}</tool_call>', THOUSAND,
         Action("click", (0.5, 0.25))),
        ("pyautogui.moveTo(50, 25)\npyautogui.click()", PIXELS, Action("click", (0.5, 0.5))),
        ("pyautogui.moveTo(10, 10)\npyautogui.dragTo(50, 25)", PIXELS, Action("drag", (0.1, 0.2), (0.5, 0.5))),
        (computer("mouse_move", coordinate="[500, 250]") + computer("left_click"), THOUSAND, Action("click", (0.5, 0.25))),
        (computer("mouse_move", coordinate="[1, 1]") + computer("right_click", coordinate="[500, 250]"), THOUSAND,
         Action("right_click", (0.5, 0.25))),
        (computer("mouse_move", coordinate="[500, 250]"), THOUSAND, Action("hover", (0.5, 0.25))),
        (computer("left_click"), THOUSAND, None),
        (computer("mouse_move", coordinate="[1, 1]") + computer("type", text='"a"'), THOUSAND, None),
        ("hover(0.1, 0.1) wait()", UNIT, None),
        ("click(0.5, 0.25) and then click(0.1, 0.1)", UNIT, None),
        ("click(0.5)", UNIT, None),
        ("click(1.5, 0.2)", UNIT, None),
        ("click(nan, inf)", UNIT, None),
        ("drag(0.1, 0.1)", UNIT, None),
        ("type()", UNIT, None),
        ("I would click there", UNIT, None),
        (computer("left_click", coordinate="[500]"), THOUSAND, None),
        (computer("left_click", coordinate='{"x": 1}'), THOUSAND, None),
        (computer("fly", coordinate="[1, 1]"), THOUSAND, None),
        ("<tool_call>{broken</tool_call>", THOUSAND, None),
        ("", UNIT, None),
    ],
)  # fmt: skip
def test_gui_actions(reply: str, settings: dict[str, Any], action: Action | None) -> None:
    assert read("gui", reply, settings) == action


@pytest.mark.parametrize(
    ("reply", "settings", "point"),
    [
        ("<bbox>[0.25, 0.5, 0.75, 1]</bbox>", UNIT, (0.5, 0.75)),
        ('[{"bbox_2d": [0, 0, 100, 50]}]', PIXELS, (0.5, 0.5)),
        ('{"bbox_2d": [400, 200, 600, 300], "label": "b"}', THOUSAND, (0.5, 0.25)),
        ("<bbox>[0, 0, 1, 1]</bbox><bbox>[0, 0, 1, 1]</bbox>", UNIT, None),
        ("<bbox>[0.9, 0.9, 1.9, 1.9]</bbox>", UNIT, None),
        ("<bbox>[]</bbox>", UNIT, None),
        ("no", UNIT, None),
    ],
)
def test_a_click_is_the_middle_of_the_one_box(reply: str, settings: dict[str, Any], point: Any) -> None:
    action = read("click", reply, settings)
    assert (action and action.point) == (pytest.approx(point) if point else None)


@pytest.mark.parametrize(
    ("reader", "reply", "value"),
    [
        ("json", 'I do {"key": [1, {"a": null}]}', {"key": [1, {"a": None}]}),
        ("json", "[1]", None),
        ("json", '{"a": 1', None),
        ("json", '{"a": 1e999}', None),
        (
            "function",
            '<tool_call>{"name": "go", "arguments": {"far": 2}}</tool_call>',
            {"name": "go", "arguments": {"far": 2}},
        ),
        ("function", '<tool_call>{"name": "go"}</tool_call><tool_call>{"name": "go"}</tool_call>', None),
        ("function", "go", None),
    ],
)
def test_json_and_calls(reader: str, reply: str, value: Any) -> None:
    assert read(reader, reply, UNIT) == value


def test_one_of_some_words() -> None:
    reader = words(("left", "right", "move forward"))
    said = {
        "Left.": 0,
        "I go right, right now": 1,
        "move forward": 2,
        "left or right": None,
        "leftover": None,
        "": None,
    }
    assert {reply: reader.read(reply, AgentSettings(**UNIT), SIZE, SIZE) for reply in said} == said
    assert reader.ask(AgentSettings(**UNIT), SIZE) == "Answer with one word: left, right, move forward."


@given(st.text(max_size=300), st.sampled_from(sorted(READERS)), st.sampled_from([UNIT, THOUSAND, PIXELS]))
def test_any_text_gives_an_action_or_none(reply: str, reader: str, settings: dict[str, Any]) -> None:
    read(reader, reply, settings)
    assert READERS[reader].ask(AgentSettings(**settings), SIZE)


@pytest.mark.parametrize("piece", ["click(", "click('", "a=", "{", "<tool_call>", "\\'", "1,"])
def test_a_hundred_thousand_characters_take_no_second(piece: str) -> None:
    started = time.process_time()
    for reader in READERS:
        read(reader, piece * (100_000 // len(piece)), UNIT)
    assert time.process_time() - started < 4
