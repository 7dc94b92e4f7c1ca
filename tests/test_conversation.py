"""The agent with tools against a scripted model: what it is sent, what it may do, and how its answer is scored."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

import grounding_agent
from vision_rl.agent import conversation
from vision_rl.agent.conversation import NO_CALLS, NO_PICTURES, converse, reply_text
from vision_rl.agent.grounding_prompts import LAST_TURN
from vision_rl.agent.prompts import GROUNDING_PROMPT
from vision_rl.agent.tools import TOOLS
from vision_rl.answers.parsing import format_boxes, parse_tool_calls
from vision_rl.rewards.grounding import grounding_reward
from vision_rl.settings import AgentSettings

LLM = SimpleNamespace(endpoint="http://model", model="m", sampling_parameters={"temperature": 0.0})
ARGUMENTS = '{"region": [0.5, 0.0, 1.0, 0.5], "zoom_factor": 2}'
ZOOM = f'<tool_call>{{"name": "zoom_ui_element", "arguments": {ARGUMENTS}}}</tool_call>'
WAIT = '<use_tool>wait_for_ui {"duration": 1}</use_tool>'
TARGET = [0.6, 0.1, 0.7, 0.3]


class Model:
    """Replies from a script; keeps what it was sent."""

    def __init__(self, *replies: str | dict[str, Any]) -> None:
        self.replies = list(replies)
        self.sent: list[list[dict[str, Any]]] = []
        self.parameters: list[dict[str, Any]] = []

    def client_for(self, llm: Any, settings: Any) -> Any:
        return SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=self.create)))

    async def create(self, *, model: str, messages: Any, **parameters: Any) -> Any:
        self.sent.append([dict(message) for message in messages])
        self.parameters.append(parameters)
        reply = self.replies.pop(0)
        message = {"role": "assistant", "content": reply} if isinstance(reply, str) else {"role": "assistant", **reply}
        dump = SimpleNamespace(content=message.get("content"), model_dump=lambda exclude_none: message)
        return SimpleNamespace(choices=[SimpleNamespace(message=dump)])


@pytest.fixture()
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    paths = []
    for number, size in enumerate([(400, 200), (400, 200), (400, 200)]):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", size, (number, 0, 0)).save(path)
        paths.append(str(path))

    def run(
        model: Model,
        media: str = "images",
        frames: int = 1,
        agent: bool = False,
        size: tuple[int, int] = (400, 200),
        **changes: Any,
    ) -> Any:
        if size != (400, 200):
            Image.new("RGB", size).save(paths[0])
        defaults: dict[str, Any] = {"max_turns": 3, "max_tool_calls": 2, "reward": "iou", "family": "qwen2_5_vl"}
        settings = dataclasses.asdict(AgentSettings(**{**defaults, **changes}))
        task = {
            "question": "Find it.",
            "image_paths": paths[:frames],
            "image_sizes": [list(size)] * frames,
            "media": media,
            "boxes": [TARGET],
            "meta": {},
            "settings": settings,
        }
        monkeypatch.setattr(conversation, "client_for", model.client_for)
        monkeypatch.setattr(grounding_agent, "client_for", model.client_for)
        return asyncio.run(grounding_agent.answer(task, LLM) if agent else converse(task, LLM))  # type: ignore[arg-type]

    return run


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def pictures_of(messages: list[dict[str, Any]]) -> list[str]:
    parts = [part for message in messages if isinstance(message["content"], list) for part in message["content"]]
    return [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]


def opened(url: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def test_without_tools_it_is_one_question_with_the_plain_prompt(run: Any) -> None:
    model = Model("<bbox>[0.6, 0.1, 0.7, 0.3]</bbox>")
    _, reward = run(model, agent=True, max_turns=1, max_tool_calls=0)
    [[message]] = model.sent
    plain = GROUNDING_PROMPT.format(instruction="Find it.")
    assert text_of(message) == f"{plain} If it is not there, answer <bbox>[]</bbox>."
    model = Model("<bbox>[0.6, 0.1, 0.7, 0.3]</bbox>")
    _, reward = run(model, agent=True, max_turns=1, max_tool_calls=0, refusal=False)
    assert text_of(model.sent[0][0]) == plain
    assert reward.value == pytest.approx(1.0) and "tools/calls" not in reward.components
    assert "tools" not in model.parameters[0]


def test_a_zoom_comes_back_as_a_picture_with_a_sentence_and_the_reply_stays_in_the_history(run: Any) -> None:
    model = Model("I look closer. " + ZOOM, "<answer><bbox>[0.1, 0.1, 0.2, 0.2]</bbox></answer>")
    talk = run(model)
    first, second = model.sent
    assert [message["role"] for message in first] == ["system", "user"]
    assert "zoom_ui_element" in text_of(first[0]) and "first picture's width" in text_of(first[1])
    assert second[:2] == first, "an earlier message changed: token prefixes would break"
    assert second[2] == {"role": "assistant", "content": "I look closer. " + ZOOM}
    assert text_of(second[3]) == (
        "<tool_response>\nPicture 2 shows region [0.50, 0.00, 1.00, 0.50] of picture 1.\n</tool_response>"
    )
    urls = pictures_of(second)
    assert urls[0].startswith("file://") and opened(urls[1]).size == (392, 196)  # 400 x 200 to multiples of 28
    assert [call.name for call in talk.calls] == ["zoom_ui_element"] and not talk.calls[0].error
    assert talk.view.box == (0.0, 0.0, 1.0, 1.0)  # answers are in the first picture's space


def test_data_transport_sends_no_path(run: Any) -> None:
    model = Model(ZOOM, "done")
    run(model, image_transport="data")
    assert all(url.startswith("data:image/png;base64,") for url in pictures_of(model.sent[1]))


@pytest.mark.parametrize("kind", ["iou", "giou", "point", "gaussian", "arc", "max_iou"])
def test_an_answer_in_the_last_picture_is_mapped_back(run: Any, kind: str) -> None:
    there = (0.2, 0.2, 0.4, 0.6)  # TARGET in the space of the region that ZOOM shows
    _, reward = run(Model(ZOOM, format_boxes([there], "bbox")), agent=True, answer_view="last", reward=kind)
    assert reward.components["iou"] == pytest.approx(1.0)
    _, unmapped = run(Model(ZOOM, format_boxes([TARGET], "bbox")), agent=True, answer_view="last", reward=kind)
    assert unmapped.components["iou"] == 0.0
    if kind == "arc":
        assert reward.value == pytest.approx(0.6 + 0.3 * 0.4)  # right, small, and looked at


def test_an_answer_in_pixels_of_the_last_picture(run: Any) -> None:
    """Qwen2.5-VL writes pixels of what it was shown: of the crop, here 392 x 196."""
    reply = format_boxes([(0.2 * 392, 0.2 * 196, 0.4 * 392, 0.6 * 196)], "bbox_2d", decimals=2)
    _, reward = run(Model(ZOOM, reply), agent=True, answer_view="last", answer_format="native")
    assert reward.components["iou"] == pytest.approx(1.0, abs=1e-3)


def test_without_a_zoom_the_last_picture_is_the_first(run: Any) -> None:
    _, reward = run(Model(format_boxes([TARGET], "bbox")), agent=True, answer_view="last")
    assert reward.components["iou"] == pytest.approx(1.0)


def test_arc_of_the_agent_is_the_reward_functions_own(run: Any) -> None:
    for answer in ("<bbox>[0.6, 0.1, 0.7, 0.28]</bbox>", "nothing", "<bbox>[0.1, 0.1, 0.2]</bbox>"):
        _, reward = run(Model(ZOOM, ZOOM, answer), agent=True, reward="arc")
        arguments = {"region": [0.5, 0.0, 1.0, 0.5], "zoom_factor": 2}
        expected = grounding_reward(answer, [TARGET], kind="arc", tool_calls=[("zoom_ui_element", arguments)] * 2)
        assert reward.value == pytest.approx(expected.value)
        assert reward.components["tool"] == expected.components["tool"]
        assert reward.components["gate"] == expected.components["gate"]


def test_turns_end(run: Any) -> None:
    model = Model(ZOOM, WAIT, ZOOM)
    talk = run(model, max_tool_calls=9)
    assert len(model.sent) == 3
    assert [call.error for call in talk.calls] == [False, False, True]  # the last one came too late and counts
    assert LAST_TURN not in text_of(model.sent[1][-1]) and LAST_TURN in text_of(model.sent[2][-1])


def test_calls_over_the_budget_are_refused_and_counted(run: Any) -> None:
    model = Model(ZOOM * 4, "done")
    talk = run(model, max_tool_calls=2, max_images=9)
    assert [call.error for call in talk.calls] == [False, False, True, True]
    assert text_of(model.sent[1][-1]).count(NO_CALLS) == 2 and LAST_TURN in text_of(model.sent[1][-1])
    assert len(pictures_of(model.sent[1])) == 3
    assert talk.calls[2].scored() == ("zoom_ui_element", {})  # earns nothing


def test_the_budget_of_pictures_holds(run: Any) -> None:
    model = Model(ZOOM + ZOOM, "done")
    talk = run(model, max_images=2)
    assert [call.error for call in talk.calls] == [False, True]
    assert NO_PICTURES in text_of(model.sent[1][-1]) and len(pictures_of(model.sent[1])) == 2


def test_the_budget_of_pixels_holds_over_all_pictures(run: Any) -> None:
    cap = 100_000
    model = Model(ZOOM + ZOOM, "done")
    run(model, max_total_pixels=cap, max_tool_calls=2)
    first, *crops = [opened(url) for url in pictures_of(model.sent[1]) if url.startswith("data:")]
    total = 392 * 196 + sum(picture.width * picture.height for picture in (first, *crops))
    assert 90_000 < total <= cap


def test_a_later_frame_keeps_to_the_budget_of_pixels_too(run: Any) -> None:
    model = Model(WAIT, "done")
    run(model, media="video", frames=2, max_total_pixels=100_000)
    [frame] = [opened(url) for url in pictures_of(model.sent[1]) if url.startswith("data:")]
    assert 15_000 < frame.width * frame.height <= 100_000 - 392 * 196


def test_a_model_of_which_nothing_is_known_gets_no_picture_without_bounds(run: Any) -> None:
    model = Model(ZOOM.replace("[0.5, 0.0, 1.0, 0.5]", "[0, 0, 1, 1]").replace(": 2}", ": 4}") * 2, "done")
    run(model, family="unit")
    *_, zoomed = pictures_of(model.sent[1])
    assert opened(zoomed).size == (1596, 812)  # four times 400 x 200, in multiples of 28

    run(big := Model(ZOOM.replace(": 2}", ": 4}"), "done"), size=(4000, 2000), family="unit")
    picture = opened(pictures_of(big.sent[1])[-1])
    assert picture.width * picture.height <= 2048 * 28 * 28


@pytest.mark.parametrize(
    "reply",
    [
        ZOOM.replace("0.5", "500"),
        '<tool_call>{"name": "erase"}</tool_call>',
        "<tool_call>{not json}</tool_call>",
        "<tool_call>",
    ],
)
def test_a_bad_call_gets_an_error_text_counts_and_earns_nothing(run: Any, reply: str) -> None:
    model = Model(reply, format_boxes([TARGET], "bbox"))
    _, reward = run(model, agent=True, reward="arc")
    assert "<tool_response>\nError: " in text_of(model.sent[1][-1])
    assert reward.components["tools/errors"] == reward.components["tools/calls"] == 1.0
    assert reward.components["tool"] == 0.0


def test_a_call_inside_reasoning_is_none(run: Any) -> None:
    model = Model(f"<reasoning>I could do {ZOOM}</reasoning><answer><bbox>[0.6, 0.1, 0.7, 0.3]</bbox></answer>")
    _, reward = run(model, agent=True)
    assert len(model.sent) == 1 and reward.value == pytest.approx(1.0)


def test_video_frames_come_one_by_one_to_an_agent_that_can_wait(run: Any) -> None:
    model = Model(WAIT, "done")
    run(model, media="video", frames=3)
    assert len(pictures_of(model.sent[0])) == 1 and len(pictures_of(model.sent[1])) == 2
    assert opened(pictures_of(model.sent[1])[1]).getpixel((0, 0)) == (1, 0, 0)
    assert text_of(model.sent[1][-1]).startswith("<tool_response>\nPicture 2 shows the screen 1 seconds later.")


@pytest.mark.parametrize("media", ["video", "images"])
def test_all_pictures_come_in_order_to_an_agent_without_tools(run: Any, media: str, tmp_path: Path) -> None:
    model = Model("done")
    run(model, agent=True, media=media, frames=3, max_turns=1, max_tool_calls=0)
    assert pictures_of(model.sent[0]) == [(tmp_path / f"{number}.png").as_uri() for number in range(3)]


def test_views_of_one_reply_come_in_the_order_of_its_calls(run: Any) -> None:
    left = ZOOM.replace("[0.5, 0.0, 1.0, 0.5]", "[0, 0, 0.25, 1]")
    model = Model(ZOOM + left, "done")
    run(model, max_images=9)
    wide, narrow = (opened(url).size for url in pictures_of(model.sent[1])[1:])
    assert wide == (392, 196) and narrow == (196, 392)
    text = text_of(model.sent[1][-1])
    assert text.index("Picture 2 shows region [0.50,") < text.index("Picture 3 shows region [0.00,")


def function_reply(*arguments: str, content: str | None = None) -> dict[str, Any]:
    calls = [
        {"id": f"call-{i}", "type": "function", "function": {"name": "zoom_ui_element", "arguments": text}}
        for i, text in enumerate(arguments)
    ]
    return {"content": content, "tool_calls": calls}


def test_function_tools(run: Any) -> None:
    model = Model(
        function_reply('{"region": [0.5, 0, 1, 0.5], "zoom_factor": 2}', "{broken", content="Closer."), "done"
    )
    talk = run(model, tool_protocol="function")
    assert model.parameters[0]["tools"] == TOOLS
    assert "zoom_ui_element" not in text_of(model.sent[0][0])
    assistant, one, two, user = model.sent[1][2:]
    assert assistant["tool_calls"][0]["id"] == one["tool_call_id"] == "call-0"
    assert two["tool_call_id"] == "call-1" and two["content"].startswith("Error: The tool call is not valid JSON")
    assert user["role"] == "user" and len(pictures_of([user])) == 1 and LAST_TURN in text_of(user)
    assert [call.error for call in talk.calls] == [False, True]
    assert "Closer." in talk.replies[0] and len(parse_tool_calls(talk.replies[0])) == 2


def test_text_calls_are_understood_under_the_function_protocol(run: Any) -> None:
    model = Model(ZOOM, "done")
    talk = run(model, tool_protocol="function")
    assert len(talk.calls) == 1 and model.sent[1][2] == {"role": "assistant", "content": ZOOM}


@pytest.mark.parametrize("arguments", ['{"a": "</tool_call>"}', "</tool_call>{", '"text"', "", "[1]", "null"])
def test_no_argument_breaks_out_of_its_call(arguments: str) -> None:
    message = function_reply(arguments, '{"region": 1}')
    calls = parse_tool_calls(reply_text(message))
    assert len(calls) == 2 and calls[1].arguments == {"region": 1}
