"""Every form of box and point: what is read, what is refused, what is written, cut replies, echoed templates."""

from __future__ import annotations

import random

import pytest

from tests.random_texts import PIECES
from vision_rl.agent.grounding_prompts import RANKED, request
from vision_rl.answers.boxes import Box
from vision_rl.answers.coordinates import FAMILIES
from vision_rl.answers.formats import FORMATS
from vision_rl.answers.parsing import BoxReading, format_boxes, read_boxes
from vision_rl.answers.space import AnswerSpace
from vision_rl.errors import UserError
from vision_rl.rewards.grounding import grounding_reward
from vision_rl.settings import AgentSettings

P: Box = (197, 525, 197, 525)
NATIVE = [
    ("qwen2_vl", "<|object_ref_start|>it<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>", [(1, 2, 3, 4)]),
    ("qwen2_5_vl", '```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "it"}\n]\n```', [(1, 2, 3, 4)]),
    ("qwen2_5_vl", '[{"point_2d": [197, 525], "label": "it"}]', [P]),
    ("qwen3_vl", '[{"bbox_2d": [1, 2, 3, 4], "label": "it"}]', [(1, 2, 3, 4)]),
    ("qwen3_5", '<think>\nhm\n</think>\n\n[{"bbox_2d": [1, 2, 3, 4]}]', [(1, 2, 3, 4)]),
    ("internvl", "<ref>it</ref><box>[[1, 2, 3, 4]]</box>", [(1, 2, 3, 4)]),
    (
        "glm4v",
        "<think>hm</think><answer><|begin_of_box|>[[100,200,500,600]]<|end_of_box|></answer>",
        [(100, 200, 500, 600)],
    ),
    ("glm4v", "<|begin_of_box|>[[1,2,3,4],[5,6,7,8]]<|end_of_box|>", [(1, 2, 3, 4), (5, 6, 7, 8)]),
    ("glm4v", "It is at <|begin_of_box|>[1, 2, 3, 4]<|end_of_box|>.", [(1, 2, 3, 4)]),
    ("glm4v", "[[1,2,3,4]]", [(1, 2, 3, 4)]),
    ("gemma", '```json\n[{"box_2d": [2, 1, 4, 3], "label": "it"}]\n```', [(1, 2, 3, 4)]),
    ("paligemma", "<loc0002><loc0001><loc0004><loc0003> it", [(1, 2, 3, 4)]),
    ("florence2", "it<loc_1><loc_2><loc_3><loc_4>", [(1.5, 2.5, 3.5, 4.5)]),
    ("deepseek_vl2", "<|ref|>it<|/ref|><|det|>[[1, 2, 3, 4]]<|/det|>", [(1, 2, 3, 4)]),
    ("molmo", '<point x="19.7" y="52.5" alt="it">it</point>', [(19.7, 52.5, 19.7, 52.5)]),
    ("molmo", '<points x1="1.0" y1="2.0" x2="3.0" y2="4.0" alt="a">a</points>', [(1, 2, 1, 2), (3, 4, 3, 4)]),
    ("kimi_vl", "pyautogui.click(x=0.197, y=0.525)", [(0.197, 0.525, 0.197, 0.525)]),
    ("ui_tars", "Thought: hm\nAction: click(start_box='<|box_start|>(197,525)<|box_end|>')", [P]),
    ("ui_tars", "Action: click(start_box='(197,525)')", [P]),
    ("ui_tars_1_5", "Action: click(point='<point>197 525</point>')", [P]),
    ("ui_tars_1_5", "Action: left_double(start_box='[1, 2, 3, 4]')", [(1, 2, 3, 4)]),
]
B: Box = (100, 200, 300, 400)


def _use(action: str, place: str = "") -> str:
    arguments = f'{{"action": "{action}"' + (f', "coordinate": {place}' if place else "") + "}"
    return f'<tool_call>{{"name": "computer_use", "arguments": {arguments}}}</tool_call>\n'


WAYS = [
    *[("bbox_2d", text, [B]) for text in (
        "[{'bbox_2d': [100, 200, 300, 400]}]", '[{"bbox_2d": [100, 200, 300, 400,]},]', "bbox_2d: [100, 200, 300, 400]",
        '{"bbox_2d": "[100, 200, 300, 400]"}', '{"bbox_2d": ["100", "200", "300", "400"]}',
        '{"bbox_2d": [[100, 200], [300, 400]]}', '{"bbox_2d": [[100, 200, 300, 400]]}',
        '{"bbox_2d": [100, 200, 300, 400], "point_2d": [150, 250]}',
        "{'point_2d': [150, 250], 'label': 'it', 'bbox_2d': [100, 200, 300, 400]}",
    )],
    ("bbox_2d", '{"bbox_2d": [[1, 2, 3, 4], [100, 200, 300, 400]]}', [(1, 2, 3, 4), B]),
    ("bbox_2d", '[{"bbox_2d": [100, 200, 300, 400]}, {"point_2d": [197, 525]}]', [B, P]),  # two objects
    ("point_2d", '{"bbox_2d": [100, 200, 300, 400], "point_2d": [197, 525]}', [P]),
    ("box_2d", "[{'box_2d': [200, 100, 400, 300,]}]", [B]),
    *[("pyautogui", text, [P]) for text in (
        "pyautogui.moveTo(197, 525)\npyautogui.click()", "pyautogui.moveTo(x=197, y=525, duration=1)\npyautogui.doubleClick()",
        "pyautogui.moveTo(1, 2)\npyautogui.click(x=197, y=525)", "pyautogui.moveTo(1, 2)\npyautogui.moveTo(197, 525)",
        "pyautogui.moveTo(197, 525)\npyautogui.click(button='right')\npyautogui.click()",
    )],
    ("pyautogui", "pyautogui.click(1, 2)\npyautogui.click(197, 525)", [(1, 2, 1, 2), P]),
    *[("computer_use", text, [P]) for text in (
        '{"action": "left_click", "coordinate": "[197, 525]"}', "{'action': 'left_click', 'coordinate': [197, 525]}",
        "<tool_call>\n<function=computer_use>\n<parameter=action>\nleft_click\n</parameter>\n<parameter=coordinate>\n"
        "[197, 525]\n</parameter>\n</function>\n</tool_call>",
    )],
    *[("computer_use", text, [P]) for text in (
        _use("mouse_move", "[197, 525]") + _use("left_click"), _use("mouse_move", "[1, 2]") + _use("left_click", "[197, 525]"),
        _use("mouse_move", "[1, 2]") + _use("mouse_move", "[197, 525]"),
        _use("mouse_move", "[197, 525]") + _use("double_click") * 2,
        '{"coordinate": [197, 525], "action": "mouse_move"} {"action": "right_click"}', _use("mouse_move", "[197, 525]"),
        _use("left_click", "[197, 525]") + _use("type"), _use("screenshot") + _use("left_click", "[197, 525]"),
        _use("left_click", "[197, 525]") + _use("mouse_move", "[0, 0]"),
        *("<function=computer_use><parameter=action>mouse_move</parameter><parameter=coordinate>[197, 525]</parameter></function>"
          f"<function=computer_use><parameter=action>{click}</parameter></function>" for click in ("left_click", "triple_click")),
    )],
    ("computer_use", _use("left_click", "[1, 2]") + _use("left_click", "[197, 525]"), [(1, 2, 1, 2), P]),
    *[("click", f"<click>{text}</click>", [(0.25, 0.5, 0.5, 0.75)]) for text in (
        "(0.25, 0.5, 0.25, 0.25)", "[0.25, 0.5, 0.25, 0.25]", "0.25 0.5 0.25 0.25", "25%, 50%, 25%, 25%", "25 % 50 % 25 % 25 %",
        "0.25, 0.5, 0.25, 0.25,",
    )],
    ("bbox", "<bbox>(0.25, 0.5, 0.5, 0.75)</bbox>", [(0.25, 0.5, 0.5, 0.75)]),
    ("bbox", "<bbox>[25%, 50%, 50%, 75%]</bbox>", [(0.25, 0.5, 0.5, 0.75)]),
]  # fmt: skip
"""Ways of writing that say the same: quotes, brackets, blanks, percent signs, an object's own point, a move and its click."""
POINTS = [
    ("point", "(197, 525)", [P]),
    ("point", "[197, 525]", [P]),
    ("point", "The button (see above) is at (197,525).", [P]),
    ("point_tag", "<point>197 525</point>", [P]),
    ("point_tag", "<point>197, 525</point>", [P]),
    ("point_2d", '{"point_2d": [197, 525]}', [P]),
    ("pyautogui", "```python\npyautogui.click(x=197, y=525)\n```", [P]),
    ("pyautogui", "pyautogui.click(197, 525)", [P]),
    ("pyautogui", "pyautogui.doubleClick(x=197, y=525, button='left')", [P]),
    ("computer_use", format_boxes([P], "computer_use"), [P]),
    ("computer_use", '{"action": "left_click", "coordinate": [197, 525]}', [P]),
]


@pytest.mark.parametrize(("fmt", "text", "boxes"), [*NATIVE, *POINTS, *WAYS])
def test_what_families_and_gui_agents_write_is_read(fmt: str, text: str, boxes: list[Box]) -> None:
    assert read_boxes(text, fmt) == BoxReading(boxes, 0, False)


def test_a_box_with_its_own_point_is_one_answer() -> None:
    reply = '{"bbox_2d": [0.2, 0.2, 0.4, 0.4], "point_2d": [0.3, 0.3]}'
    assert grounding_reward(reply, [(0.2, 0.2, 0.4, 0.4)], AnswerSpace("bbox_2d")).value == 1.0
    moved = "pyautogui.moveTo(0.3, 0.3)\npyautogui.click()"
    assert grounding_reward(moved, [(0.2, 0.2, 0.4, 0.4)], AnswerSpace("pyautogui"), kind="point").value == 1.0


def test_every_format_has_an_accepted_reply() -> None:
    shown = {FAMILIES[fmt].native if fmt in FAMILIES else fmt for fmt, *_ in [*NATIVE, *POINTS]}
    assert shown == set(FORMATS) - {"bbox", "click"}  # those two are in test_parsing.py
    assert {fmt for fmt, *_ in NATIVE} == set(FAMILIES) - {"unit", "pixels"}


@pytest.mark.parametrize(
    ("fmt", "text", "malformed"),
    [
        ("glm4v", "[see above] and [12]", 1),
        ("glm4v", "<|begin_of_box|>[[nan,2,3,4]]<|end_of_box|>", 1),
        ("glm4v", "<|begin_of_box|>a cat<|end_of_box|>", 1),
        ("gemma", '[{"box_2d": [2, 1, 4]}]', 1),
        ("gemma", '[{"bbox_2d": [1, 2, 3, 4]}]', 0),
        ("paligemma", "<loc0002><loc0001><loc0004> it", 0),
        ("florence2", "<loc_1><loc_2><loc_3>", 0),
        ("deepseek_vl2", "<|det|>[1, 2]<|/det|>", 1),
        ("molmo", '<point x="1e3" y="2">it</point>', 1),
        ("molmo", '<point alt="it">it</point>', 1),
        ("point", "(197, 525, 300, 600)", 1),
        ("point", "(see 3, above)", 0),
        ("point", "197, 525", 0),
        ("point", "(197, nan)", 0),
        ("point_tag", "<point>197</point>", 1),
        ("point_tag", "<point>197 525", 1),
        ("point_2d", '{"point_2d": [1, 2, 3, 4]}', 1),
        ("ui_tars", "Action: click(start_box='<|box_start|>(197", 0),
        ("ui_tars", "Action: type(content='(197,525)')", 0),
        ("ui_tars", "Action: click(start_box='(197)')", 1),
        ("pyautogui", "pyautogui.click(x=__import__('os'), y=2)", 1),
        ("pyautogui", "pyautogui.write('(197, 525)')", 1),
        ("computer_use", '{"action": "left_click", "coordinate": [197]}', 1),
        ("pyautogui", "pyautogui.click()", 1),  # where?
        ("computer_use", _use("left_click"), 0),
        ("computer_use", _use("mouse_move", "[197]") + _use("left_click"), 1),
        ("bbox_2d", '{"bbox_2d": [10%, 20%, 30%, 40%]}', 1),  # a percentage of what is said in unit space only
        ("bbox_2d", '{"bbox_2d": [[1, 2], [3, 4]', 1),
        ("click", "<click>(0.1, 0.2, 0.3, 0.4</click>", 1),
        ("click", "<click>0.1, 0.2 0.3, 0.4</click>", 1),
        ("computer_use", '<think>{"coordinate": [197, 525]}</think>', 0),
    ],
)
def test_what_is_no_answer_is_not_read(fmt: str, text: str, malformed: int) -> None:
    reading = read_boxes(text, fmt)
    assert (reading.boxes, reading.malformed, reading.none) == ([], malformed, False)


@pytest.mark.parametrize("fmt", FORMATS)
def test_written_forms_are_read_back(fmt: str) -> None:
    boxes: list[Box] = [(100, 200, 300.5, 400.25), (0, 0, 40, 60)]
    expected = [((a + c) / 2, (b + d) / 2) * 2 for a, b, c, d in boxes] if FORMATS[fmt].points else boxes
    assert read_boxes(f"<think>(1,2),(3,4)</think>{format_boxes(boxes, fmt, 6)}", fmt) == BoxReading(
        [pytest.approx(box, abs=2e-6) for box in expected],  # type: ignore[misc]
        0,
        False,
    )
    assert read_boxes(format_boxes([], fmt), fmt) == BoxReading([], 0, True)


@pytest.mark.parametrize("fmt", [name for name, row in FORMATS.items() if row.points])
def test_the_point_minus_one_says_that_there_is_nothing(fmt: str) -> None:
    refusal = format_boxes([(-1, -1, -1, -1)], fmt)
    assert read_boxes(refusal, fmt) == BoxReading([], 0, True)
    space = AnswerSpace(fmt)
    right = (0.1, 0.1, 0.3, 0.3)
    assert grounding_reward(refusal, [], space, kind="point").value == 1.0
    assert grounding_reward(refusal, [right], space, kind="point").value == 0.0
    hedged = space.write([right]) + "\n" + refusal
    assert grounding_reward(hedged, [right], space, kind="point").value == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("fmt", "template"),
    [
        ("bbox_2d", '[{"bbox_2d": [x1, y1, x2, y2], "label": "it"}]'),
        ("bbox", "<bbox>[x1, y1, x2, y2]</bbox>"),
        ("click", "<click>x, y, width, height</click>"),
        ("box_tokens", "<|box_start|>(x1,y1),(x2,y2)<|box_end|>"),
        ("box_tag", "<box>[[x1, y1, x2, y2]]</box>"),
        ("glm_box", "<|begin_of_box|>[[x1,y1,x2,y2]]<|end_of_box|>"),
        ("box_2d", '[{"box_2d": [y1, x1, y2, x2]}]'),
        ("point", "(x, y)"),
        ("point_tag", "<point>x y</point>"),
        ("molmo", '<point x="x" y="y">it</point>'),
        ("ui_tars", "click(start_box='<|box_start|>(x,y)<|box_end|>')"),
        ("pyautogui", "pyautogui.click(x=x, y=y)"),
        ("computer_use", '{"action": "left_click", "coordinate": [x, y]}'),
    ],
)
def test_an_echoed_template_is_no_box_and_costs_the_format(fmt: str, template: str) -> None:
    assert read_boxes(template, fmt) == BoxReading([], 0, False, 1)
    true = (0.2, 0.2, 0.4, 0.4)
    gold = AnswerSpace(fmt).write([true], 6)
    reward = grounding_reward(f"The form is {template}\n{gold}", [true], AnswerSpace(fmt), kind="point")
    assert reward.value == pytest.approx(0.9)
    assert (reward.components["boxes/extra"], reward.components["format/placeholder"]) == (0.0, 1.0)
    letters = template.replace("x1", "nan").replace("x", "nan")
    assert read_boxes(letters, fmt).placeholders == 0


CUT = [
    ("bbox_2d", '[{"bbox_2d": [0.2, 0.2, 0.4, 0.4], "label": "it"}, {"bbox_2d": [0.5, 0.'),
    ("bbox", "<bbox>[0.2, 0.2, 0.4, 0.4]</bbox>\n<bbox>[0.5, 0."),
    ("box_tag", "<box>[[0.2, 0.2, 0.4, 0.4], [0.5, 0."),
    ("glm_box", "<|begin_of_box|>[[0.2,0.2,0.4,0.4],[0.5,"),
    ("point", "(0.3, 0.3), (0.5, 0."),
    ("ui_tars", "click(start_box='<|box_start|>(0.3,0.3)<|box_end|>')\nclick(start_box='<|box_start|>(0.5,0."),
]


@pytest.mark.parametrize(("fmt", "text"), CUT)
def test_a_cut_reply_is_scored_on_its_whole_boxes(fmt: str, text: str) -> None:
    true = (0.2, 0.2, 0.4, 0.4)
    cut = grounding_reward(text, [true], AnswerSpace(fmt), kind="point", truncated=True)
    assert cut.components["point"] == cut.components["format/ok"] == cut.components["truncated"] == 1.0
    assert cut.value == pytest.approx(0.9)  # the price of running into the limit, a term of its own
    assert grounding_reward(text, [true], AnswerSpace(fmt), kind="point").components["truncated"] == 0.0
    nothing = grounding_reward(text[:8], [true], AnswerSpace(fmt), kind="point", truncated=True)
    assert (nothing.components["boxes/predicted"], nothing.components["format/ok"]) == (0.0, 0.0)


def test_formats_of_points_are_refused_where_a_box_is_needed() -> None:
    with pytest.raises(UserError, match=r"needs a box, but agent\.answer_format=point asks for a point; use point,"):
        grounding_reward("(1, 2)", [], AnswerSpace("point"), kind="iou")
    with pytest.raises(UserError, match="choose native or one of bbox, click"):
        _ = AnswerSpace("yolo").format


def asked(fmt: str, *, family: str = "qwen2_5_vl", reward: str = "iou") -> AgentSettings:
    """Settings that do not ask how to say that there is nothing."""
    return AgentSettings(answer_format=fmt, family=family, reward=reward, refusal=False)


@pytest.mark.parametrize("fmt", FORMATS)
def test_prompts_say_form_and_space(fmt: str) -> None:
    text = request("Click save.", asked(fmt))
    assert FORMATS[fmt].form in text
    assert ("pixels" in text) == (FORMATS[fmt].space == "")
    assert (FORMATS[fmt].nothing in text) == AnswerSpace(fmt).takes_points
    assert "(1920 x 1080 pixels)" in request("Click save.", asked("point", family="pixels"), size=(1920, 1080))


TAGS = [
    *(
        "<|begin_of_box|>",
        "<|end_of_box|>",
        "<|det|>",
        "<loc0001>",
        "<loc_1>",
        "<point ",
        "<point>",
        "</point>",
        'x="1"',
    ),
    *(
        ' y="2"',
        "click(start_box='",
        "')",
        "pyautogui.click(",
        "x=1, y=2)",
        '"coordinate": [',
        "(1, 2)",
        "(x, y)",
        "-1",
    ),
]


def test_ten_thousand_random_strings_through_every_form() -> None:
    generator = random.Random(5)
    names = list(FORMATS)
    for i in range(10_000):
        text = "".join(generator.choices([*PIECES, *TAGS], k=generator.randrange(40)))
        reading = read_boxes(text, names[i % len(names)], truncated=i % 3 == 0)
        assert reading.malformed >= 0 and not (reading.none and reading.boxes)
        assert all(abs(number) < 1e32 for box in reading.boxes for number in box)


@pytest.mark.slow
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("piece", [*TAGS, "(", "[", "((", "<bbox>", " ", "1,", "\n"])
def test_forms_take_linear_time(fmt: str, piece: str) -> None:
    read_boxes(piece * (100_000 // len(piece)), fmt)


@pytest.mark.parametrize("fmt", FORMATS)
def test_the_ranked_reward_asks_for_what_it_pays(fmt: str) -> None:
    """It counts the rank of the first point that hits; a prompt that asks for one would leave nothing to rank."""
    assert RANKED in request("Click save.", asked(fmt, reward="ranked"))
    assert RANKED not in request("Click save.", asked(fmt))
    written = format_boxes([(0.1, 0.1, 0.1, 0.1), (0.5, 0.5, 0.5, 0.5)], fmt, 3)
    assert len(read_boxes(written, fmt).boxes) == 2
