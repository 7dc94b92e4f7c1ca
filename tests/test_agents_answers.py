"""The two agents with a scripted model: point formats, a row's own metric, choices, cut replies, polygons, Arc's weights."""

from __future__ import annotations

import asyncio
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

import grounding_agent
import vqa_agent
from vision_rl.agent import media
from vision_rl.agent.client import thinking
from vision_rl.agent.grounding_prompts import RANKED
from vision_rl.rewards.grounding import grounding_reward
from vision_rl.rewards.tools import arc_reward
from vision_rl.settings import AgentSettings, ArcWeights, Terms
from vision_rl.types import Reward

LLM = SimpleNamespace(endpoint="http://model", model="m", sampling_parameters={})
TARGET = [0.2, 0.2, 0.4, 0.4]


@pytest.fixture()
def ask(monkeypatch: pytest.MonkeyPatch) -> Any:
    def ask(agent: Any, reply: str, finish: str = "stop", row: Any = (), **changes: Any) -> tuple[str, Reward]:
        sent: list[str] = []

        async def create(*, model: str, messages: Any, **parameters: Any) -> Any:
            sent.append(messages[0]["content"][-1]["text"])
            message = SimpleNamespace(content=reply)
            return SimpleNamespace(choices=[SimpleNamespace(message=message, finish_reason=finish)])

        completions = SimpleNamespace(completions=SimpleNamespace(create=create))
        for module in (grounding_agent, vqa_agent):
            monkeypatch.setattr(module, "client_for", lambda llm, settings: SimpleNamespace(chat=completions))
        for module in (grounding_agent, media):  # the VQA agent's pictures are shown by `media_message`
            monkeypatch.setattr(module, "show", lambda *_: [SimpleNamespace(url="u", size=(1932, 1092))])
        reward = {"reward": "vqa" if agent is vqa_agent else "iou"}
        settings = dataclasses.asdict(AgentSettings(**{**reward, **changes}))
        task: dict[str, Any] = {
            "question": "Click it.",
            "image_paths": ["a.png"],
            "image_sizes": [[1920, 1080]],
            "media": "images",
            "answers": ["hello"],
        }
        task |= {"boxes": [TARGET], "meta": {}, "settings": settings, **dict(row)}
        _, found = asyncio.run(agent.answer(task, LLM))
        return sent[0], found

    return ask


def test_points_are_asked_for_and_scored_in_the_space_that_was_named(ask: Any) -> None:
    text, reward = ask(grounding_agent, "(300, 300)", answer_format="point", family="qwen3_vl")
    assert "(x, y), each from 0 to 1000" in text and reward.value == 1.0
    text, reward = ask(grounding_agent, "(579, 327)", answer_format="point", family="qwen2_5_vl", reward="gaussian")
    assert "in pixels of the image" in text and reward.value == pytest.approx(1.0, abs=1e-3)
    _, reward = ask(grounding_agent, "click(start_box='(300,300)')", answer_format="ui_tars", family="ui_tars")
    assert reward.value == 1.0
    text, reward = ask(grounding_agent, '[{"bbox_2d": [384, 216, 768, 432]}]', answer_format="bbox_2d", family="pixels")
    assert "(1920 x 1080 pixels)" in text and reward.value == pytest.approx(1.0)


def test_ranked_points_are_asked_for_and_scored_by_rank(ask: Any) -> None:
    text, reward = ask(
        grounding_agent, "(900, 900) (300, 300)", answer_format="point", family="qwen3_vl", reward="ranked"
    )
    assert RANKED in text and reward.value == pytest.approx(0.5)  # 1 / sqrt(2 points x rank 2)
    assert RANKED not in ask(grounding_agent, "(300, 300)", answer_format="point", family="qwen3_vl")[0]


def test_a_reply_that_the_length_limit_cut_is_reported_and_priced(ask: Any) -> None:
    reply = "<bbox>[0.2, 0.2, 0.4, 0.4]</bbox><bbox>[0.5, 0."
    whole, cut = (ask(grounding_agent, reply, finish)[1] for finish in ("stop", "length"))
    assert (whole.components["truncated"], cut.components["truncated"]) == (0.0, 1.0)
    assert whole.value == pytest.approx(0.4) and cut.value == pytest.approx(0.9)
    _, answer = ask(vqa_agent, "hello", "length", terms=Terms(truncated_price=0.25))
    assert answer.value == pytest.approx(0.75) and answer.components["truncated"] == 1.0


def test_a_rows_own_metric_and_choices_score_it(ask: Any) -> None:
    assert ask(vqa_agent, "helo", row={"metric": "anls"})[1].value == pytest.approx(0.8)
    assert ask(vqa_agent, "helo", row={"metric": "anls"}, reward="exact_match")[1].value == 0.0
    row = {"metric": "multiple_choice", "choices": ["cat", "dog"], "answers": ["B"]}
    text, reward = ask(vqa_agent, "A dog", row=row)
    assert "B. dog" in text and reward.value == 1.0
    half = "<bbox>[0.2, 0.2, 0.4, 0.3]</bbox>"
    assert ask(grounding_agent, half, row={"metric": "acc_at_iou_0.5"})[1].value == 1.0
    assert ask(grounding_agent, half)[1].value == pytest.approx(0.5)


def test_polygons_of_a_row_are_its_targets(ask: Any) -> None:
    row = {"boxes": [[0.0, 0.0, 1.0, 1.0]], "meta": {"polygons": [[0.0, 0.0, 1.0, 0.0, 0.0, 1.0]]}}
    for reply, value in (("(0.2, 0.2)", 1.0), ("(0.8, 0.8)", 0.0)):
        assert ask(grounding_agent, reply, answer_format="point", row=row)[1].value == value


def test_arc_is_computed_once_with_the_configured_weights(ask: Any) -> None:
    reply, weights = "<bbox>[0.2, 0.2, 0.4, 0.35]</bbox>", ArcWeights(task=1.0, gate=1.0)
    for chosen in (ArcWeights(), weights):
        _, reward = ask(grounding_agent, reply, reward="arc", arc=chosen)
        direct = grounding_reward(reply, [TARGET], kind="arc", weights=chosen)
        assert reward.value == direct.value
        assert reward.value == pytest.approx(arc_reward(0.75, tuple(TARGET), [], chosen).value)  # type: ignore[arg-type]


@pytest.mark.parametrize("agent", [grounding_agent, vqa_agent])
@pytest.mark.parametrize(
    ("meta", "sent"),
    [
        ({}, {}),
        ({"thinking": "yes"}, {}),
        ({"thinking": True}, {"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}),
        ({"thinking": False}, {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}),
    ],
)
def test_a_row_switches_thinking(ask: Any, agent: Any, meta: Any, sent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def noted(task: Any) -> dict[str, Any]:
        seen.append(thinking(task))
        return {}

    monkeypatch.setattr(agent, "thinking", noted)
    ask(agent, "hello", row={"meta": meta}, max_turns=1)
    assert seen == [sent]
