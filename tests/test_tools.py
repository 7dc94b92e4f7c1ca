"""The tools: which calls are accepted, what comes back, and where a zoomed view lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

import vision_rl.serving
from scripts.tiny_models.zoom import zoom_checkpoint_dir
from vision_rl.agent.tools import TOOLS, ToolBox, tools_text
from vision_rl.answers.boxes import iou_pair
from vision_rl.answers.parsing import ToolCall, parse_tool_calls
from vision_rl.answers.zoom import MAX_ASPECT, SizeLimits, View, crop_box, zoom
from vision_rl.models.processor import load_processor
from vision_rl.models.table import model_info
from vision_rl.rewards.tools import TOOL_NAMES

REGION = [0.25, 0.25, 0.75, 0.5]
LIMITS = SizeLimits(28, 14, 56 * 56, 112 * 112)


@pytest.fixture()
def toolbox(tmp_path: Path) -> ToolBox:
    for name, shade in (("a.png", 50), ("b.png", 200)):
        picture = Image.new("RGB", (400, 200), (shade, shade, shade))
        ImageDraw.Draw(picture).rectangle((300, 100, 399, 199), fill=(255, 255, 0))
        picture.save(tmp_path / name)
    tree = [
        {"role": "button", "name": "OK {number}", "bounds": [0.6, 0.2, 0.8, 0.4]},
        {"role": "link", "name": "far", "bounds": [0, 0, 0.1, 0.1]},
        "not a node",
        {"role": "broken", "bounds": None},
    ]
    return ToolBox([str(tmp_path / "a.png"), str(tmp_path / "b.png")], {"accessibility": tree}, LIMITS)


ACCEPTED = [
    ("zoom_ui_element", {"region": REGION, "zoom_factor": 2}),
    ("zoom_ui_element", {"region": REGION, "zoom_factor": 1}),
    ("zoom_ui_element", {"region": REGION, "zoom_factor": 4.0}),
    ("zoom_ui_element", {"region": [0, 0, 1, 1], "zoom_factor": 1.5}),
    ("zoom_ui_element", {"region": [-0.05, 0.5, 0.5, 1.08], "zoom_factor": 2}),  # a little outside: clamped
    ("zoom_ui_element", {"region": [0.5, 0.5, 0.5001, 0.5001], "zoom_factor": 1}),  # too small: widened
    ("zoom_ui_element", {"region": [0, 0.5, 1, 0.501], "zoom_factor": 4}),  # too thin: widened
    ("inspect_element", {"region": REGION, "type": "structure"}),
    ("inspect_element", {"region": REGION, "type": "properties"}),
    ("inspect_element", {"region": [0.999, 0.999, 1, 1], "type": "structure"}),
    ("inspect_element", {"region": REGION, "type": "accessibility"}),
    ("wait_for_ui", {"duration": 0.1}),
    ("wait_for_ui", {"duration": 5}),
]
REJECTED = [
    ("zoom_ui_element", {}, "region must be four numbers"),
    ("zoom_ui_element", {"region": REGION}, "zoom_factor must be a number from 1 to 4"),
    ("zoom_ui_element", {"region": REGION, "zoom_factor": 0.9}, "from 1 to 4"),
    ("zoom_ui_element", {"region": REGION, "zoom_factor": 4.01}, "from 1 to 4"),
    ("zoom_ui_element", {"region": REGION, "zoom_factor": "2"}, "from 1 to 4"),
    ("zoom_ui_element", {"region": REGION, "zoom_factor": True}, "from 1 to 4"),
    ("zoom_ui_element", {"region": REGION, "zoom_factor": float("nan")}, "from 1 to 4"),
    ("zoom_ui_element", {"region": REGION, "zoom_factor": 2, "speed": 1}, "unknown argument speed"),
    ("zoom_ui_element", {"region": [0.1, 0.2, 0.3], "zoom_factor": 2}, "four numbers"),
    ("zoom_ui_element", {"region": "0,0,1,1", "zoom_factor": 2}, "four numbers"),
    ("zoom_ui_element", {"region": [0, 0, 1, True], "zoom_factor": 2}, "four numbers"),
    ("zoom_ui_element", {"region": [0, 0, 1, float("inf")], "zoom_factor": 2}, "four numbers"),
    ("zoom_ui_element", {"region": [0, 0, 1, None], "zoom_factor": 2}, "four numbers"),
    ("zoom_ui_element", {"region": [10, 20, 30, 40], "zoom_factor": 2}, "fractions"),
    ("zoom_ui_element", {"region": [0, 0, 1000, 1000], "zoom_factor": 2}, "fractions"),
    ("zoom_ui_element", {"region": [0.5, 0, 0.5, 1], "zoom_factor": 2}, "x1 < x2"),
    ("zoom_ui_element", {"region": [0.8, 0.1, 0.2, 0.4], "zoom_factor": 2}, "x1 < x2"),
    ("zoom_ui_element", {"region": [1.02, 0, 1.08, 1], "zoom_factor": 2}, "x1 < x2"),  # nothing left after clamping
    ("inspect_element", {"region": REGION}, "type must be one of"),
    ("inspect_element", {"region": REGION, "type": "answer"}, "type must be one of"),
    ("inspect_element", {"region": REGION, "type": ["structure"]}, "type must be one of"),
    ("wait_for_ui", {}, "from 0.1 to 5"),
    ("wait_for_ui", {"duration": 0}, "from 0.1 to 5"),
    ("wait_for_ui", {"duration": 3600}, "from 0.1 to 5"),
    ("wait_for_ui", {"duration": -1}, "from 0.1 to 5"),
    ("click", {"x": 1}, "there is no tool 'click'"),
    ("", {}, "there is no tool ''"),
]


@pytest.mark.parametrize(("name", "arguments"), ACCEPTED)
def test_accepted(toolbox: ToolBox, name: str, arguments: dict[str, Any]) -> None:
    result = toolbox.run(ToolCall(name, arguments))
    assert not result.error and result.text
    assert (result.picture is None) == (name == "inspect_element")


@pytest.mark.parametrize(("name", "arguments", "reason"), REJECTED)
def test_rejected_with_a_text_for_the_model(
    toolbox: ToolBox, name: str, arguments: dict[str, Any], reason: str
) -> None:
    result = toolbox.run(ToolCall(name, arguments))
    assert result.error and result.picture is None
    assert result.text.startswith("Error: ") and reason in result.text


def test_a_malformed_call_is_answered_with_its_error(toolbox: ToolBox) -> None:
    [call] = parse_tool_calls('<tool_call>{"name": "zoom_ui_element", "arguments": {</tool_call>')
    assert toolbox.run(call).error and "JSON" in toolbox.run(call).text


@given(
    st.text(max_size=30),
    st.dictionaries(
        st.text(max_size=12),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=5),
        ),
        max_size=4,
    ),
)
@settings(max_examples=200, deadline=None)
def test_whatever_a_model_writes_is_answered(name: str, arguments: dict[str, Any]) -> None:
    box = ToolBox(["does-not-matter.png"], {}, LIMITS)
    for tool in (name, *TOOL_NAMES[1:]):
        if tool == "inspect_element" and "region" in arguments:
            continue  # would open the picture
        assert box.run(ToolCall(tool, arguments)).text


def test_the_tools_are_those_of_the_reward_and_described_in_text() -> None:
    assert {tool["function"]["name"] for tool in TOOLS} == set(TOOL_NAMES)
    described = [json.loads(line) for line in tools_text().splitlines() if line.startswith("{")]
    assert described == [tool["function"] for tool in TOOLS]


def test_waiting_shows_the_next_frame_then_nothing_new_and_does_not_sleep(toolbox: ToolBox) -> None:
    first = toolbox.run(ToolCall("wait_for_ui", {"duration": 5}))
    assert first.picture is not None and first.picture.getpixel((0, 0)) == (200, 200, 200)
    assert first.numbered(3) == "Picture 3 shows the screen 5 seconds later."
    zoomed = toolbox.run(ToolCall("zoom_ui_element", {"region": [0, 0, 0.5, 0.5], "zoom_factor": 1}))
    assert zoomed.picture is not None and zoomed.picture.getpixel((0, 0)) == (200, 200, 200)
    again = toolbox.run(ToolCall("wait_for_ui", {"duration": 5}))
    assert again.picture is None and again.text == "Nothing has changed after 5 seconds."


def test_inspecting_measures_the_region_only(toolbox: ToolBox) -> None:
    red = toolbox.run(ToolCall("inspect_element", {"region": [0.75, 0.5, 1, 1], "type": "properties"})).text
    assert red == "Region [0.75, 0.50, 1.00, 1.00]: 100 x 100 pixels, mean colour rgb(255, 255, 0), contrast 0.00."
    edges = toolbox.run(ToolCall("inspect_element", {"region": [0.5, 0.5, 1, 1], "type": "structure"})).text
    assert edges == "Region [0.50, 0.50, 1.00, 1.00]: 200 x 100 pixels, upright edges 0.5%, level edges 0.0%."


def test_the_accessibility_tree_names_elements_without_bounds(toolbox: ToolBox) -> None:
    text = toolbox.run(ToolCall("inspect_element", {"region": REGION, "type": "accessibility"})).text
    assert text == "Elements here: button 'OK {number}'."
    toolbox.meta = {}
    assert (
        "no accessibility tree"
        in toolbox.run(ToolCall("inspect_element", {"region": REGION, "type": "accessibility"})).text
    )


# Geometry

sides = st.integers(1, 900)
units = st.floats(0, 1)


@st.composite
def regions(draw: st.DrawFn) -> tuple[float, float, float, float]:
    x1, x2 = sorted((draw(units), draw(units)))
    y1, y2 = sorted((draw(units), draw(units)))
    return x1, y1, max(x2, x1 + 1e-4), max(y2, y1 + 1e-4)


@given(regions(), sides, sides, st.integers(1, 32))
def test_crops_lie_in_the_picture_hold_the_region_and_keep_side_and_aspect(
    region: tuple[float, float, float, float], width: int, height: int, least: int
) -> None:
    left, top, right, bottom = crop_box(region, (width, height), least)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    long, short = max(right - left, bottom - top), min(right - left, bottom - top)
    assert long <= MAX_ASPECT * short + 1
    if max(width, height) <= MAX_ASPECT * min(width, height):  # nothing had to be cut from a strip of a picture
        assert right - left >= min(least, width) and bottom - top >= min(least, height)
        clamped = [min(v, 1.0) for v in region]
        assert left <= clamped[0] * width + 1e-5 and right >= min(clamped[2] * width, width) - 1e-5
        assert top <= clamped[1] * height + 1e-5 and bottom >= min(clamped[3] * height, height) - 1e-5


@pytest.mark.parametrize(
    ("region", "size", "expected"),
    [
        ((0.5, 0.0, 1.0, 0.5), (224, 224), (112, 0, 224, 112)),
        ((0.1, 0.1, 0.2, 0.2), (1000, 500), (100, 50, 200, 100)),
        ((0.5, 0.5, 0.501, 0.501), (1000, 1000), (493, 493, 508, 508)),  # grows around its centre
        ((0.999, 0.0, 1.0, 0.001), (1000, 1000), (986, 0, 1000, 14)),  # and moves inwards at the border
        ((0.0, 0.5, 1.0, 0.501), (800, 800), (0, 350, 800, 451)),  # a strip is widened to 8:1
        ((0.0, 0.0, 1.0, 1.0), (3000, 10), (1460, 0, 1540, 10)),  # a strip of a picture is cut
        ((0.0, 0.0, 1.0, 1.0), (5, 7), (0, 0, 5, 7)),
    ],
)
def test_crop_table(region: Any, size: Any, expected: Any) -> None:
    assert crop_box(region, size, 14) == expected


@given(regions(), st.integers(20, 400), st.integers(20, 400), st.floats(1, 4))
@settings(max_examples=60, deadline=None)
def test_the_shown_size_is_one_that_the_processor_keeps(
    region: tuple[float, float, float, float], width: int, height: int, factor: float
) -> None:
    crop, view = zoom(Image.new("RGB", (width, height)), region, factor, LIMITS)
    assert crop.size == view.size == LIMITS.processed(view.size)
    assert min(view.size) >= LIMITS.factor and view.size[0] * view.size[1] <= LIMITS.max_pixels


def test_crops_are_enlarged_by_lanczos() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    crop, view = zoom(picture, (0.5, 0.0, 0.78, 0.28), 2, LIMITS)
    expected = picture.crop((100, 0, 156, 56)).resize((112, 112), Image.Resampling.LANCZOS)
    assert view.size == (112, 112) and crop.tobytes() == expected.tobytes()


@given(regions(), units, units, st.integers(80, 300), st.integers(80, 300), st.floats(1, 4))
@settings(max_examples=60, deadline=None)
def test_what_is_seen_at_a_place_of_the_view_lies_at_the_mapped_place_of_the_picture(
    region: tuple[float, float, float, float], u: float, v: float, width: int, height: int, factor: float
) -> None:
    """A picture whose colour is its position: red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width).round()[None, :]
    pixels[..., 1] = np.linspace(0, 255, height).round()[:, None]
    crop, view = zoom(Image.fromarray(pixels), region, factor, LIMITS)
    x, y = min(int(u * crop.width), crop.width - 1), min(int(v * crop.height), crop.height - 1)
    seen = np.asarray(crop)[y, x]
    place = ((x + 0.5) / crop.width, (y + 0.5) / crop.height)
    mapped = view.to_picture((*place, *place))
    # half a source pixel for the rounding of the ramp, one shown pixel for the resampling
    tolerance = [
        255 * (1.5 / n + (b - a) / m) + 2
        for n, m, a, b in zip((width, height), crop.size, view.box, view.box[2:], strict=False)
    ]
    assert abs(seen[0] - 255 * mapped[0]) <= tolerance[0]
    assert abs(seen[1] - 255 * mapped[1]) <= tolerance[1]


@given(regions(), regions(), regions())
def test_mapping_has_an_inverse_and_changes_no_iou(a: Any, b: Any, part: Any) -> None:
    view = View((112, 112), part)
    there = view.from_picture(a)
    assert view.to_picture(there) == pytest.approx(a, abs=1e-9)
    assert iou_pair(view.from_picture(a), view.from_picture(b)) == pytest.approx(iou_pair(a, b), abs=1e-6)


@pytest.mark.slow
def test_vllm_reads_the_calls_that_qwen3_5_writes() -> None:
    """A parser of calls knows the types of the arguments from the tools' schema: a list stays a list, a number a number. What the
    model thought stays marked as such; the template has opened the thoughts in the prompt."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "x"}], tools=TOOLS)
    ToolParserManager.import_tool_parser(str(Path(vision_rl.serving.__file__).with_name("vllm_thoughts.py")))
    kind = ToolParserManager.get_tool_parser(model_info("Qwen/Qwen3.5-4B").family.parser_of("vllm"))
    parser = kind(load_processor(str(zoom_checkpoint_dir())).tokenizer, request.tools)
    said = {"region": [0.1, 0.2, 0.5, 0.6], "zoom_factor": 2}
    parts = "".join(f"<parameter={name}>\n{json.dumps(value)}\n</parameter>\n" for name, value in said.items())
    written = f"<tool_call>\n<function=zoom_ui_element>\n{parts}</function>\n</tool_call>"
    for before, content in (
        ("", None),
        ("Let me look.", "Let me look."),
        ("It is at [1, 2].\n</think>\n\n", "It is at [1, 2].\n</think>"),
        ("<think>\nHm.\n</think>\n\nLet me look.", "<think>\nHm.\n</think>\n\nLet me look."),
    ):
        found = parser.extract_tool_calls(before + written, request)
        [call] = found.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("zoom_ui_element", said)
        assert found.content == content
