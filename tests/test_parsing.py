"""Tables of accepted and rejected texts, round trips, totality, and growth with the length of the text."""

# ruff: noqa: RUF001 - digits of other scripts are what is tested

from __future__ import annotations

import math
import random
from collections.abc import Callable
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.random_texts import random_text
from vision_rl.answers.boxes import Box
from vision_rl.answers.formats import FORMATS
from vision_rl.answers.parsing import (
    BoxReading,
    ToolCall,
    count_answers,
    final_text,
    format_boxes,
    format_row,
    parse_answer,
    parse_confidence,
    parse_tool_calls,
    read_boxes,
    reasoning_is_closed,
    strip_reasoning,
)
from vision_rl.errors import UserError

BOX_FORMATS = tuple(name for name, row in FORMATS.items() if not row.points)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("yes", "yes"),
        ("  a cat \n", "a cat"),
        ("<answer>red</answer>", "red"),
        ("<ANSWER> red </ANSWER>", "red"),
        ("<think>blue</think>red", "red"),
        ("<Thinking>blue</Thinking> red", "red"),
        ("<reasoning>blue</reasoning>\n<answer>red</answer>", "red"),
        ("the prompt opened it </think> red", "red"),
        ("<think>never closed <answer>red</answer>", ""),
        ("red <think>and why", "red"),
        ("<think>a</think>red<think>b</think>", "red"),
        ("<think><reasoning>a</think>red", "red"),
        ("<think>a<think>b</think>red", "red"),
        ("<answer>blue</answer> no: <answer>red</answer>", "red"),
        ("<answer>cut off", "cut off"),
        ("red</answer>", "red</answer>"),
        ("<answer>red</answer><confidence>0.9</confidence>", "red"),
        ("red <confidence>0.9</confidence>", "red"),
        ('<tool_call>{"name": "x"}</tool_call>red', "red"),
        ("<think>hm</think><answer>It is <|begin_of_box|>red<|end_of_box|>.</answer>", "red"),
        ("<|begin_of_box|>2<|end_of_box|>", "2"),
        ("<|begin_of_box|>2<|end_of_box|> no, <|begin_of_box|> 3 <|end_of_box|>", "3"),
        ("<|begin_of_box|>cut", "cut"),
        ("3 < 4", "3 < 4"),
        ("", ""),
    ],
)
def test_answers(text: str, answer: str) -> None:
    assert parse_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "closed", "answers"),
    [
        ("x", True, 0),
        ("<think>x", False, 0),
        ("<think>x</reasoning>", False, 0),
        ("<think><answer>a</answer></think><answer>b</answer>", True, 1),
        ("<answer>a</answer><answer>b</answer>", True, 2),
        ("<answer><|begin_of_box|>a<|end_of_box|></answer>", True, 1),
        ("<|begin_of_box|>a<|end_of_box|><|begin_of_box|>b<|end_of_box|>", True, 2),
    ],
)
def test_reasoning_and_answer_tags(text: str, closed: bool, answers: int) -> None:
    assert reasoning_is_closed(text) is closed
    assert count_answers(text) == answers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.5", 0.5),
        (" -3 ", -3.0),
        ("+.5", 0.5),
        ("7.", 7.0),
        *[
            (text, None)
            for text in (
                "",
                ".",
                "1e3",
                "1e309",
                "nan",
                "inf",
                "-inf",
                "0x1",
                "1_000",
                "٣",
                "５",
                "1 2",
                "--1",
                "9" * 33,
            )
        ],
    ],
)
def test_numbers(text: str, number: float | None) -> None:
    """A plain decimal number in ASCII digits, at most 32 characters: no exponent, nan, inf, "_"."""
    reading = read_boxes(f"<bbox>[{text}, 0, 99, 1]</bbox>", "bbox")
    assert (reading.boxes, reading.malformed) == (([], 1) if number is None else ([(number, 0, 99, 1)], 0))


@pytest.mark.parametrize(
    ("fmt", "text", "boxes"),
    [
        ("bbox", "<bbox>[0.1, 0.2, 0.3, 0.4]</bbox>", [(0.1, 0.2, 0.3, 0.4)]),
        ("bbox", "<BBOX> 0.1,0.2,0.3,0.4 </BBOX>", [(0.1, 0.2, 0.3, 0.4)]),
        ("bbox", "<bbox>[0,0,1,1]</bbox> and <bbox>[0, 0, .5, .5]</bbox>", [(0, 0, 1, 1), (0, 0, 0.5, 0.5)]),
        ("bbox", "<bbox>[0.5, 0.6]</bbox>", [(0.5, 0.6, 0.5, 0.6)]),
        ("bbox", "<think><bbox>[0,0,1,1]</bbox></think><bbox>[0, 0, .5, .5]</bbox>", [(0, 0, 0.5, 0.5)]),
        ("bbox", "<answer><bbox>[0,0,1,1]</bbox></answer>", [(0, 0, 1, 1)]),
        ("bbox", "<bbox>[0.9, 0.9, 0.1, 0.1]</bbox>", [(0.9, 0.9, 0.1, 0.1)]),
        ("bbox", "<bbox>[2420, 146, 2512, 170]</bbox>", [(2420, 146, 2512, 170)]),
        ("click", "<click>0.1, 0.2, 0.3, 0.4</click>", [(0.1, 0.2, 0.4, 0.6000000000000001)]),
        ("click", "<click>1,2,3,4</click>\n<click>5, 6</click>", [(1, 2, 4, 6), (5, 6, 5, 6)]),
        ("bbox_2d", '```json\n[{"bbox_2d": [10, 20, 30, 40], "label": "a [b]"}]\n```', [(10, 20, 30, 40)]),
        ("bbox_2d", '{"bbox_2d":[1,2,3,4]} {"bbox_2d" : [5,6,7,8]', [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("bbox_2d", '[{"point_2d": [10, 20]}]', [(10, 20, 10, 20)]),
        ("box_tokens", "<|box_start|>(1,2),(3,4)<|box_end|>", [(1, 2, 3, 4)]),
        ("box_tokens", "the button(1, 2), (3, 4)", [(1, 2, 3, 4)]),
        ("box_tag", "<ref>x</ref><box>[[1, 2, 3, 4]]</box>", [(1, 2, 3, 4)]),
        ("box_tag", "<box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("box_tag", "x[[1, 2, 3, 4]] y[[5, 6, 7, 8]]", [(1, 2, 3, 4), (5, 6, 7, 8)]),
        ("qwen2_5_vl", '[{"bbox_2d": [1, 2, 3, 4]}]', [(1, 2, 3, 4)]),
        ("internvl", "<box>[[1, 2, 3, 4]]</box>", [(1, 2, 3, 4)]),
    ],
)
def test_accepted_boxes(fmt: str, text: str, boxes: list[Box]) -> None:
    assert read_boxes(text, fmt) == BoxReading(boxes, 0, False)
    assert read_boxes(text, fmt).boxes == boxes


@pytest.mark.parametrize(
    ("fmt", "text", "malformed"),
    [
        ("bbox", "[0.1, 0.2, 0.3, 0.4]", 0),  # no tag: not this format
        ("bbox", "<click>0.1, 0.2, 0.3, 0.4</click>", 0),
        ("bbox", "<bbox>[0.1, 0.2, 0.3]</bbox>", 1),
        ("bbox", "<bbox>[0.1, 0.2, 0.3, 0.4, 0.5]</bbox>", 1),
        ("bbox", "<bbox>[nan, 0.2, 0.3, 0.4]</bbox>", 1),
        ("bbox", "<bbox>[0.1, inf, 0.3, 0.4]</bbox>", 1),
        ("bbox", "<bbox>[0.1, 0.2, 1e309, 0.4]</bbox>", 1),
        ("bbox", "<bbox>[٠.١, ٠.٢, ٠.٣, ٠.٤]</bbox>", 1),
        ("bbox", "<bbox>[1/2, 0.2, 0.3, 0.4]</bbox>", 1),
        ("bbox", "<bbox>[__import__('os')]</bbox>", 1),
        ("bbox", "<bbox>[0.1, 0.2, 0.3, 0.4]", 1),
        ("bbox", "<bbox><bbox>[0.1, 0.2, 0.3, 0.4", 2),
        ("bbox", "<bbox>[[0.1, 0.2, 0.3, 0.4]]</bbox>", 1),
        ("bbox", "<think><bbox>[0,0,1,1]</bbox>", 0),
        ("bbox", "<tool_call><bbox>[0,0,1,1]</bbox></tool_call>", 0),
        ("bbox_2d", '[{"bbox_2d": [1, 2, 3, 4', 1),
        ("box_tokens", "<|box_start|>(1,2,3,4)<|box_end|>", 1),
        ("box_tokens", "(1),(2,3,4)", 1),
        ("box_tag", "<box>[1, 2, 3, 4]</box>", 1),
    ],
)
def test_rejected_boxes(fmt: str, text: str, malformed: int) -> None:
    assert read_boxes(text, fmt) == BoxReading([], malformed, False)


@pytest.mark.parametrize(
    ("fmt", "text", "none"),
    [
        *[(fmt, format_boxes([], fmt), True) for fmt in BOX_FORMATS],
        *[(fmt, "No finding.", True) for fmt in BOX_FORMATS],
        ("bbox", "There are no findings here", True),
        ("bbox", "<bbox></bbox>", True),
        ("bbox_2d", "```json\n[]\n```", True),
        ("box_tag", "[]", True),
        ("bbox", "", False),
        ("bbox", "nothing", False),
        ("bbox", "<think>no finding</think>", False),
        ("bbox", "no finding <bbox>[0,0,1,1]</bbox>", False),
        ("bbox", "no finding <bbox>[0,0,1]</bbox>", False),
        ("bbox_2d", "text []", False),
    ],
)
def test_saying_that_there_is_nothing(fmt: str, text: str, none: bool) -> None:
    assert read_boxes(text, fmt).none is none


@given(
    fmt=st.sampled_from(BOX_FORMATS),
    boxes=st.lists(st.tuples(*[st.floats(0, 4000)] * 4), max_size=5),
    around=st.sampled_from(["{}", "<think>(1,2),(3,4)</think>{}", "I see: {}", "<answer>{}</answer>"]),
)
def test_written_boxes_are_read_back(fmt: str, boxes: list[Box], around: str) -> None:
    text = around.replace("{}", format_boxes(boxes, fmt, decimals=6))
    assert read_boxes(text, fmt).boxes == [pytest.approx(box, abs=2e-6) for box in boxes]


def test_decimals_of_written_boxes() -> None:
    box = [(0.123456, 0.2, 0.3, 0.4)]
    assert format_boxes(box, "bbox") == "<bbox>[0.1235, 0.2000, 0.3000, 0.4000]</bbox>"
    assert format_boxes(box, "click", 1) == "<click>0.1, 0.2, 0.2, 0.2</click>"
    assert format_boxes([(1.4, 2.6, 3, 4)], "qwen2_vl") == "<|box_start|>(1,3),(3,4)<|box_end|>"


def test_unknown_format() -> None:
    with pytest.raises(UserError, match="does not exist"):
        format_row("yolo")


@pytest.mark.parametrize(
    ("text", "confidence"),
    [
        ("<confidence>0.8</confidence>", 0.8),
        ("<confidence> 80% </confidence>", 0.8),
        ("<confidence>80</confidence>", 0.8),
        ("<confidence>1</confidence>", 1.0),
        ("<confidence>.8</confidence>", 0.8),
        ("<confidence>9/10</confidence>", 0.9),
        ("<confidence>4 / 5.</confidence>", 0.8),
        ("Confidence: 0.75.", 0.75),
        ("my confidence = 90 %", 0.9),
        ("confidence 0.2 ... confidence: 0.3", 0.3),
        ("confidence 9/10", 0.9),
        ("confidence: 8 out of 10", 0.8),
        ("confidence: 8 of 10, I think", 0.8),
        ("Confidence: 85%", 0.85),
        ("confidence is 85 percent", 0.85),
        ("confidence level: .8", 0.8),
        ("confidence 0.9/1.0", 0.9),
        ("confidence: 0.5%", 0.005),
        ("confidence: 95% sure", 0.95),
        ("confidence: 100", 1.0),
        ("<confidence>0.1</confidence><confidence>0.9</confidence>", 0.9),
        ("<think><confidence>0.1</confidence></think>", None),
        *[
            (form.format(stated), None)
            for form in ("<confidence>{}</confidence>", "confidence: {}")
            for stated in (
                *(
                    "101",
                    "-0.1",
                    "nan",
                    "1e-1",
                    "high",
                    "low",
                    "٠.٨",
                    "5",
                    "10",
                    "7.5",
                    "0,8",
                    "11/10",
                    "5/0",
                    "0.5/0.8",
                ),
                *("0.7-0.9", "80-90%", "0.7 to 0.9", "0.8 or 0.9", "0.7, 0.9", "1/2/3", "150%", "0.5.5", "0.8x"),
                *("9" * 40, "9/10/2026", "1.5/", "8 out of 10%"),
            )
        ],
        ("<confidence>0.8 or so</confidence>", None),
        ("0.8", None),
        ("", None),
    ],
)
def test_confidence(text: str, confidence: float | None) -> None:
    assert parse_confidence(text) == confidence


ZOOM = {"region": [0.1, 0.2, 0.3, 0.4], "zoom_factor": 2}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (
            '<tool_call>{"name": "zoom", "arguments": {"region": [0.1, 0.2, 0.3, 0.4], "zoom_factor": 2}}</tool_call>',
            [("zoom", ZOOM)],
        ),
        (
            '<tool_call>\n{"name": "zoom", "arguments": "{\\"region\\": [0.1, 0.2, 0.3, 0.4], \\"zoom_factor\\": 2}"}\n'
            "</tool_call>",
            [("zoom", ZOOM)],
        ),
        ('<use_tool>zoom {"region": [0.1, 0.2, 0.3, 0.4], "zoom_factor": 2}</use_tool>', [("zoom", ZOOM)]),
        ('<use_tool>zoom: {"a": 1}</use_tool>', [("zoom", {"a": 1})]),
        ("<use_tool> wait_for_ui </use_tool>", [("wait_for_ui", {})]),
        ('<USE_TOOL>{"name": "a"}</USE_TOOL> <tool_call>{"name": "b"}</tool_call>', [("a", {}), ("b", {})]),
        ('<tool_call>{"name": "a"}', [("a", {})]),
        ('<think><tool_call>{"name": "a"}</tool_call></think>', []),
        ("no call", []),
        ("<b>", []),
    ],
)
def test_tool_calls(text: str, calls: list[tuple[str, dict[str, object]]]) -> None:
    assert parse_tool_calls(text) == [ToolCall(name, arguments) for name, arguments in calls]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "not valid JSON"),
        ("zoom", "not valid JSON"),
        ("{", "not valid JSON"),
        ("{'name': 'zoom'}", "not valid JSON"),
        ("[" * 5000, "not valid JSON"),
        ("x" * 20_000, "longer than"),
        ('{"name": "zoom", "arguments": {"a": NaN}}', "NaN is not a number"),
        ('{"name": "zoom", "arguments": {"a": Infinity}}', "Infinity is not a number"),
        ('{"name": "zoom", "arguments": {"a": 1e309}}', "too large"),
        (f'{{"name": "zoom", "arguments": {{"a": {"9" * 400}}}}}', "too large"),
        ('{"name": "zoom", "arguments": "{"}', "not valid JSON"),
        ("[]", "JSON object"),
        ("null", "JSON object"),
        ('{"arguments": {}}', "JSON object"),
        ('{"name": 3}', "JSON object"),
        ('{"name": ""}', "JSON object"),
        ('{"name": "zoom", "arguments": [1]}', "must be a JSON object"),
    ],
)
def test_bad_tool_calls_carry_an_error(body: str, message: str) -> None:
    (call,) = parse_tool_calls(f"<tool_call>{body}</tool_call>")
    assert message in call.error
    assert call.arguments == {}


def test_ten_thousand_random_strings() -> None:
    generator = random.Random(0)
    for _ in range(10_000):
        text = random_text(generator)
        assert isinstance(parse_answer(text), str)
        confidence = parse_confidence(text)
        assert confidence is None or 0 <= confidence <= 1
        for call in parse_tool_calls(text):
            assert isinstance(call.name, str)
            assert isinstance(call.arguments, dict)
        for fmt in BOX_FORMATS:
            reading = read_boxes(text, fmt)
            assert reading.malformed >= 0
            assert all(len(box) == 4 and all(map(math.isfinite, box)) for box in reading.boxes)


@given(text=st.text())
def test_any_text(text: str) -> None:
    strip_reasoning(text)
    parse_answer(text)
    parse_confidence(text)
    parse_tool_calls(text)
    for fmt in BOX_FORMATS:
        read_boxes(text, fmt)


def operations(function: Callable[[str], object], text: str) -> float:
    """Best of several processor times; the ratio of two of them is what the test looks at."""
    best = math.inf
    for _ in range(3):
        start = process_time()
        function(text)
        best = min(best, process_time() - start)
    return best


HARD_UNITS = [
    *(
        "<bbox>",
        "<bbox>[",
        "<bbox>[0,0,1,1]</bbox>",
        "<click>",
        '"bbox_2d":[',
        '"bbox_2d": ',
        "[",
        "[[",
        "[1],",
        "[[1]",
    ),
    *(
        "(",
        "(1,2),",
        "(1,2)",
        "<|box_start|>",
        "<box>[[",
        "<think>",
        "</think>",
        "<think></think>",
        "<reasoning></think>",
    ),
    *(
        "<answer>",
        "<answer></answer>",
        "<tool_call>",
        "<tool_call></tool_call>",
        "<function=a>",
        "<function=a></function>",
        "<parameter=a>",
        "<use_tool>a ",
        "<confidence>",
    ),
    *("confidence ", "no  finding", "no ", " ", "\n", "1", "1,", "0.1 ", "<", "```json ", "<bbox> ", "<box>[ ", '_2d"'),
]


@pytest.mark.slow
@pytest.mark.parametrize("unit", HARD_UNITS)
def test_time_grows_linearly(unit: str) -> None:
    def everything(text: str) -> None:
        parse_answer(text)
        parse_confidence(text)
        parse_tool_calls(text)
        count_answers(text)
        for fmt in BOX_FORMATS:
            read_boxes(text, fmt)

    small = unit * (2_000 // len(unit))
    # Sixteen times the text takes 16 times as long if linear, 256 times if quadratic; the floor is for coarse clocks.
    for head in ("", "<bbox>", "<use_tool>name", '"bbox_2d"'):
        least = max(operations(everything, head + small), 2e-4)
        assert operations(everything, head + small * 16) < 70 * least, head


ZOOM = {"region": [0.1, 0.2, 0.3, 0.4], "zoom_factor": 2}
QWEN_3_5 = """<function=zoom>
<parameter=region>
[0.1, 0.2, 0.3, 0.4]
</parameter>
<parameter=zoom_factor>
2
</parameter>
</function>"""


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        (f"<tool_call>\n{QWEN_3_5}\n</tool_call>", ZOOM),
        (f"I look closer.\n{QWEN_3_5}", ZOOM),  # without its wrapping
        (f"<tool_call>\n{QWEN_3_5.removesuffix('</function>')}", ZOOM),  # cut off behind its last value
        ("<tool_call><function=zoom><parameter=note>a <b> c</parameter></function></tool_call>", {"note": "a <b> c"}),
        ("<tool_call><function=zoom></function></tool_call>", {}),
        ('<tool_call>{"name": "zoom", "parameters": {"zoom_factor": 2}}</tool_call>', {"zoom_factor": 2}),
        (
            '<tool_call>{"type": "function", "function": {"name": "zoom", "arguments": "{\\"a\\": 1}"}}</tool_call>',
            {"a": 1},
        ),
    ],
)
def test_tool_calls_of_other_families_and_clients(text: str, arguments: dict[str, object]) -> None:
    assert parse_tool_calls(text) == [ToolCall("zoom", arguments)]
    assert "function" not in final_text(text) and parse_tool_calls(f"<think>{text}</think>") == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ('{"name": "zoom", "args": {"a": 1}}', "args"),
        ('{"name": "zoom", "region": [0, 0, 1, 1], "zoom_factor": 2}', "region, zoom_factor"),
        ('{"name": "zoom", "arguments": {"a": 1}, "parameters": {"a": 2}}', "arguments, parameters"),
    ],
)
def test_arguments_in_another_place_are_an_error_and_no_empty_call(body: str, found: str) -> None:
    [call] = parse_tool_calls(f"<tool_call>{body}</tool_call>")
    assert call.name == "zoom" and call.error.endswith(f'go into one object "arguments"; it has {found}.')
