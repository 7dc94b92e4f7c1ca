"""Every field that the proxy serves, in a training rollout's call: served as it is, dropped, or refused by name.

Through the real proxy, before a fake model server that shows what arrives.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from PIL import Image

from scripts import fake_backend
from scripts.engine_stack import Stack, running_stack
from vision_rl.agent.messages import user_message
from vision_rl.rollout.chat_request import DROPPED as LEFT_OUT
from vision_rl.rollout.chat_request import FIELDS
from vision_rl.rollout.proxy import VisionProxy
from vision_rl.rollout.trace import reward_from_spans, turns_from_spans
from vision_rl.serving.serve import MODEL_NAME, serve

SERVED, DROPPED, REFUSED = "served", "dropped", "refused"
TOOL = {"type": "function", "function": {"name": "zoom", "parameters": {"type": "object"}}}
NAMED = {"type": "function", "function": {"name": "zoom"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True}}
REQUIRED = {"model": fake_backend.MODEL, "messages": [{"role": "user", "content": "What?"}]}

TRAINING: dict[str, list[tuple[Any, str]]] = {
    "model": [(fake_backend.MODEL, SERVED)],
    "messages": [(REQUIRED["messages"], SERVED)],
    "tools": [([TOOL], SERVED)],
    "tool_choice": [("auto", SERVED), ("none", SERVED), ("required", REFUSED), (NAMED, REFUSED)],
    "parallel_tool_calls": [(False, SERVED)],
    "temperature": [(1.0, SERVED), (0.3, SERVED), (2, SERVED), (0, REFUSED), (0.001, REFUSED)],
    "top_p": [(1, SERVED), (0.9, REFUSED)],
    "top_k": [(-1, SERVED), (0, SERVED), (20, REFUSED)],
    "min_p": [(0, SERVED), (0.05, REFUSED)],
    "frequency_penalty": [(0, SERVED), (0.5, REFUSED)],
    "presence_penalty": [(0, SERVED), (-0.5, REFUSED)],
    "repetition_penalty": [(1.0, SERVED), (1.05, REFUSED)],
    "logit_bias": [({}, SERVED), ({"5": 1}, REFUSED)],
    "max_tokens": [(16, SERVED)],
    "max_completion_tokens": [(16, SERVED)],
    "min_tokens": [(0, SERVED), (4, REFUSED)],
    "stop": [("red", SERVED), (["red", "blue"], SERVED)],
    "stop_token_ids": [([7], SERVED)],
    "ignore_eos": [(True, SERVED)],
    "skip_special_tokens": [(False, SERVED)],
    "seed": [(1, SERVED)],
    "n": [(1, SERVED)],
    "logprobs": [(True, SERVED)],
    "top_logprobs": [(2, SERVED)],
    "return_token_ids": [(True, SERVED)],
    "response_format": [({"type": "text"}, SERVED), ({"type": "json_object"}, REFUSED), (SCHEMA, REFUSED)],
    "chat_template_kwargs": [({"enable_thinking": False}, SERVED)],
    "stream": [(True, DROPPED)],
    "stream_options": [({"include_usage": True, "include_obfuscation": False}, DROPPED)],
    "user": [("somebody", SERVED)],
    "modalities": [(["text"], DROPPED)],
    "store": [(True, DROPPED), (False, DROPPED)],
    "metadata": [({"run": "1"}, DROPPED)],
    "service_tier": [("auto", DROPPED)],
    "prompt_cache_key": [("k", DROPPED)],
    "prompt_cache_retention": [("24h", DROPPED)],
    "safety_identifier": [("s", DROPPED)],
}
"""A value of each kind, and what becomes of it."""
CASES = [(name, value, outcome) for name, values in TRAINING.items() for value, outcome in values]
NAMES = [f"{name}={value}"[:60] for name, value, _ in CASES]
RECORDED = {"temperature", "stop", "stop_token_ids", "ignore_eos", "seed"}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("pictures")) as running:
        yield running


def ask(stack: Stack, mode: str | None, **fields: Any) -> tuple[httpx.Response, Any]:
    """The reply to a call of a rollout in this mode (None: of no rollout), and the rollout."""
    if mode is None:
        return post(f"{stack.address}/v1/chat/completions", fields), None
    rollout = stack.call(stack.store.start_rollout(input={}, mode=mode))  # type: ignore[arg-type]
    path = f"/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1/chat/completions"
    return post(stack.address + path, fields), rollout


def post(address: str, fields: dict[str, Any]) -> httpx.Response:
    return httpx.post(address, json={**REQUIRED, **fields}, trust_env=False, timeout=120)


def test_the_table_has_every_field() -> None:
    """A field that is served one day must be thought about here first."""
    assert set(TRAINING) == {*FIELDS, *LEFT_OUT}


@pytest.mark.parametrize(("name", "value", "outcome"), CASES, ids=NAMES)
def test_a_training_rollouts_field(stack: Stack, name: str, value: Any, outcome: str) -> None:
    before = stack.stats()["requests"]
    reply, rollout = ask(stack, "train", **{name: value})
    if outcome == REFUSED:
        assert reply.status_code == 400 and stack.stats()["requests"] == before
        message = reply.json()["error"]["message"]
        assert message.startswith(f"{name}=") and "cannot be trained on" in message and f"Leave {name} out" in message
        assert len(message) < 280, "a failure's reason is cut at 300 characters"
        return
    assert reply.status_code == 200, reply.text
    arrived = {**stack.stats()["last"], "messages": stack.stats()["messages"]}
    assert (arrived.get(name) == value) is (outcome == SERVED)
    [turn] = turns_from_spans(stack.spans(rollout))
    assert turn.sampling == ({name: value} if name in RECORDED else {})


@pytest.mark.parametrize("mode", ["val", "test", None])
@pytest.mark.parametrize(
    ("name", "value", "outcome"), [case for case in CASES if case[2] == REFUSED], ids=lambda value: str(value)[:40]
)
def test_what_is_not_trained_on_may_have_it(
    stack: Stack, mode: str | None, name: str, value: Any, outcome: str
) -> None:
    reply, rollout = ask(stack, mode, **{name: value})
    assert reply.status_code == 200, reply.text
    assert stack.stats()["last"][name] == value
    if rollout is not None:
        [turn] = turns_from_spans(stack.spans(rollout))
        assert turn.sampling == {name: value}


@pytest.mark.parametrize("mode", ["train", "val", None])
def test_a_strict_tool_brings_no_grammar_into_a_rollout(stack: Stack, mode: str | None) -> None:
    """vLLM masks the whole reply as soon as one tool is strict, also where tool_choice is "auto"."""
    strict = {**TOOL, "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]
    ask(stack, mode, tools=[strict])
    assert stack.stats()["last"]["tools"] == [TOOL if mode else strict]


def test_a_temperature_that_the_server_refuses_is_refused_at_once(stack: Stack) -> None:
    for mode in ("train", "val", None):
        reply, _ = ask(stack, mode, temperature=2.1)
        assert reply.status_code == 400 and "temperature must be a number from 0 to 2" in reply.text


def test_an_unknown_rollout_is_refused(stack: Stack) -> None:
    address = f"{stack.address}/rollout/ro-none/attempt/at-none/chat/completions"
    reply = post(address, {"top_p": 0.5})
    assert reply.status_code == 404 and "no rollout ro-none" in reply.text


NULLS = ("temperature", "tools", "audio", "reasoning_effort", "functions", "anything")
CALL = {"id": "c1", "type": "function", "function": {"name": "zoom", "arguments": "{}"}}


@pytest.mark.parametrize("mode", ["train", None])
@pytest.mark.parametrize("name", NULLS)
def test_a_null_is_an_absent_field(stack: Stack, mode: str | None, name: str) -> None:
    """Also one whose field is not served: clients send the whole of what they know."""
    reply, _ = ask(stack, mode, **{name: None})
    assert reply.status_code == 200, reply.text
    assert name not in stack.stats()["last"]


@pytest.mark.parametrize(
    ("message", "arrives"),
    [
        (
            {"role": "user", "content": "x", "name": None, "audio": None, "refusal": None},
            {"role": "user", "content": "x"},
        ),
        (
            {"role": "assistant", "content": "x", "annotations": [], "function_call": None, "tool_calls": None},
            {"role": "assistant", "content": "x"},
        ),
        (
            {"role": "assistant", "content": "x", "provider_specific_fields": {"reasoning": None, "refusal": None}},
            {"role": "assistant", "content": "x"},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{**CALL, "provider_specific_fields": {"x": 1}}]},
            {"role": "assistant", "tool_calls": [CALL]},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "x", "annotations": [], "image_url": None}]},
            {"role": "user", "content": [{"type": "text", "text": "x"}]},
        ),
    ],
    ids=lambda value: str(sorted(value))[:60],
)
def test_what_clients_note_on_messages_does_not_reach_the_model(
    stack: Stack, message: dict[str, Any], arrives: dict[str, Any]
) -> None:
    reply, _ = ask(stack, "train", messages=[message, *REQUIRED["messages"]])
    assert reply.status_code == 200, reply.text
    assert stack.stats()["messages"] == [arrives, *REQUIRED["messages"]]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"modalities": ["text", "audio"]}, "modalities must be"),
        ({"reasoning_effort": "low"}, "'reasoning_effort' is not served"),
        ({"verbosity": "low"}, "'verbosity' is not served"),
        ({"messages": [{"role": "assistant", "content": "x", "refusal": "no"}]}, "may not have 'refusal'"),
        (
            {"messages": [{"role": "assistant", "content": "x", "thinking_blocks": []}]},
            "may not have 'thinking_blocks'",
        ),
    ],
    ids=str,
)
def test_what_could_change_the_reply_is_refused_by_name(stack: Stack, fields: dict[str, Any], said: str) -> None:
    for mode in ("train", None):
        reply, _ = ask(stack, mode, **fields)
        assert reply.status_code == 400 and said in reply.text


def test_a_schema_keeps_its_nulls_and_names(stack: Stack) -> None:
    """There they mean something: a default of null, a property that is called like a note."""
    schema = {"type": "object", "properties": {"annotations": {"default": None}, "x": {"enum": [None, 1]}}}
    tool = {"type": "function", "function": {"name": "zoom", "description": None, "parameters": schema, "strict": None}}
    asked = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": None, "description": None}}
    reply, _ = ask(stack, None, tools=[tool], response_format=asked)
    assert reply.status_code == 200, reply.text
    last = stack.stats()["last"]
    assert last["tools"] == [{"type": "function", "function": {"name": "zoom", "parameters": schema}}]
    assert last["response_format"] == {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def test_the_models_are_listed_under_a_rollouts_path_too(stack: Stack) -> None:
    _, address = stack.claim()
    for path in (address, address.removesuffix("/v1"), f"{stack.address}/v1"):
        listed = httpx.get(f"{path}/models", trust_env=False).json()["data"]
        assert [model["id"] for model in listed] == [fake_backend.MODEL]


# What is asked for in words


COLOR = {"type": "object", "properties": {"color": {"enum": ["red"]}}, "required": ["color"]}
COLOR_FORMAT = {"type": "json_schema", "json_schema": {"name": "color", "schema": COLOR, "strict": True}}
OTHER = {**COLOR, "properties": {"color": {"enum": ["blue"]}}}
OTHER_FORMAT = {"type": "json_schema", "json_schema": {"name": "color", "schema": OTHER}}
JSON_WORDS = "Answer with one JSON object and nothing else."


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    proxy: Any = functools.partial(VisionProxy, structured_output="prompt")
    with running_stack(tmp_path_factory.mktemp("pictures"), proxy=proxy) as running:
        yield running


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize(
    ("question", "fields", "said", "flaw"),
    [
        ("JSON", {"response_format": {"type": "json_object"}}, JSON_WORDS, ""),
        ("What?", {"response_format": {"type": "json_object"}}, JSON_WORDS, "the reply is not JSON"),
        ("JSON", {"response_format": COLOR_FORMAT}, orjson.dumps(COLOR).decode(), ""),
        ("What?", {"response_format": COLOR_FORMAT}, orjson.dumps(COLOR).decode(), "the reply is not JSON"),
        ("JSON", {"response_format": OTHER_FORMAT}, orjson.dumps(OTHER).decode(), "the reply does not fit its schema"),
        ("What?", {"tools": [TOOL], "tool_choice": "required"}, "Call one of", "the reply does not call a function"),
        ("What?", {"tools": [TOOL], "tool_choice": NAMED}, "Call the function zoom.", "the reply does not call zoom"),
    ],
)
def test_a_form_is_asked_for_in_words_and_looked_at_on_arrival(
    words: Stack, mode: str, question: str, fields: dict[str, Any], said: str, flaw: str
) -> None:
    reply, rollout = ask(words, mode, messages=[{"role": "user", "content": question}], **fields)
    assert reply.status_code == 200, reply.text
    arrived = words.stats()
    assert "response_format" not in arrived["last"] and arrived["last"].get("tool_choice") in (None, "auto")
    system, user = arrived["messages"]
    assert system["role"] == "system" and said in system["content"] and user["content"] == question
    [turn] = turns_from_spans(words.spans(rollout))
    assert turn.flaw.startswith(flaw) and bool(turn.flaw) is bool(flaw) and turn.sampling == {}


def test_the_words_stand_below_a_system_message(words: Stack) -> None:
    messages = [{"role": "system", "content": "You see."}, *REQUIRED["messages"]]
    ask(words, "train", messages=messages, response_format={"type": "json_object"})
    assert words.stats()["messages"] == [{"role": "system", "content": f"You see.\n\n{JSON_WORDS}"}, messages[1]]


def test_a_call_of_no_rollout_keeps_its_grammar(words: Stack) -> None:
    ask(words, None, response_format=COLOR_FORMAT)
    assert words.stats()["last"]["response_format"] == COLOR_FORMAT


@pytest.mark.parametrize("schema", [{"type": 5}, {"$ref": "http://127.0.0.1:9/x"}, {"$ref": "#/nowhere"}], ids=str)
def test_a_schema_that_cannot_be_checked_is_refused(words: Stack, schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    reply, _ = ask(words, "train", response_format=form)
    assert reply.status_code == 400 and "no usable JSON schema" in reply.text


@pytest.mark.parametrize(("question", "status", "earned"), [("What?", "succeeded", 0.0), ("JSON", "failed", None)])
def test_an_agent_that_fails_on_the_form_has_earned_nothing(
    words: Stack, question: str, status: str, earned: float | None
) -> None:
    """It is trained on instead of tried again, and counts as before where the form was right."""
    messages = [{"role": "user", "content": question}]
    _, rollout = ask(words, "train", messages=messages, response_format=COLOR_FORMAT)
    ids = rollout.rollout_id, rollout.attempt.attempt_id
    assert words.call(words.store.record(*ids, [], "failed", "ValidationError: color"))
    attempt = words.call(words.store.get_latest_attempt(rollout.rollout_id))
    assert attempt.status == status
    assert attempt.metadata["failure"].endswith("ValidationError: color")
    reward = reward_from_spans(words.spans(rollout))
    assert reward == (None if earned is None else {"reward": earned, "structured_output": 0.0})


@pytest.mark.slow
def test_litellms_own_message_is_a_second_turn(stack: Stack) -> None:
    """litellm notes `provider_specific_fields` on every message that it returns, and agents send the message back."""
    import litellm

    rollout = stack.call(stack.store.start_rollout(input={}, mode="train"))
    address = f"{stack.address}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1"
    model = {"model": f"hosted_vllm/{fake_backend.MODEL}", "api_base": address, "api_key": "none"}
    messages: list[Any] = [*REQUIRED["messages"]]
    for _ in range(2):
        reply: Any = litellm.completion(**model, messages=messages, temperature=0.7, max_retries=0)
        messages += [reply.choices[0].message.model_dump(), *REQUIRED["messages"]]
    assert [turn.sampling for turn in turns_from_spans(stack.spans(rollout))] == [{"temperature": 0.7}] * 2


# vLLM itself


@pytest.mark.e2e
@pytest.mark.long
def test_no_field_makes_the_actor_compute_other_numbers_than_vllm(
    tmp_path: Path, tiny_dir: Path, tiny_reference: Any
) -> None:
    """A field is refused in a training rollout's call, or vLLM's log-probabilities are the model's at the row's temperature.

    What each refused value would have done, by the same request of a validation rollout, is printed (`-s`).
    """
    picture = tmp_path / "red.png"
    Image.new("RGB", (84, 84), "red").save(picture)
    asked, turns = [], []
    with serve(tiny_dir, cpu=True, max_model_len=1024, media_root=str(tmp_path), tool_parser="hermes") as url:
        stack = Stack(url, tmp_path / "pictures", media_roots=[tmp_path])
        parameters = {"model": f"hosted_vllm/{MODEL_NAME}", "api_base": url}
        stack.proxy.update_model_list([{"model_name": MODEL_NAME, "litellm_params": parameters}])
        body = {
            "model": MODEL_NAME,
            "messages": [user_message("What color is it?", [picture.as_uri()])],
            "max_tokens": 24,
        }
        try:
            for name, value, outcome in CASES:
                if name in ("model", "messages"):
                    continue
                fields = {**body, **({"tools": [TOOL]} if name.endswith(("choice", "calls")) else {}), name: value}
                for mode in ("train", "val") if outcome == REFUSED else ("train",):
                    reply, rollout = ask(stack, mode, **fields)
                    refused = mode == "train" and outcome == REFUSED
                    assert reply.status_code == (400 if refused else 200), f"{name}={value}: {reply.text}"
                    if not refused:
                        asked.append((name, value, outcome))
                        turns += turns_from_spans(stack.spans(rollout))
        finally:
            stack.close()
    at = [max(turn.sampling.get("temperature", 1.0), 0.01) for turn in turns]
    reference = tiny_reference(
        [(turn.prompt_ids, turn.response_ids, [picture], one) for turn, one in zip(turns, at, strict=True)]
    )
    off = {}
    for (name, value, outcome), turn, expected in zip(asked, turns, reference, strict=True):
        off[f"{name}={value}"] = max(abs(a - b) for a, b in zip(turn.logprobs, expected.tolist(), strict=True))
        print(f"{outcome:8} {off[f'{name}={value}']:9.6f} {name}={value}"[:110])
        assert turn.response_ids and (outcome == REFUSED or off[f"{name}={value}"] < 1e-3), f"{name}={value}"
    assert off["response_format={'type': 'json_object'}"] > 0.1, "what the refusals are for"
