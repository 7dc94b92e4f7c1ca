"""`/v1/responses`: the chat call that a request stands for, the official client on it, and vLLM's own word for "exact"."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response
from PIL import Image

from scripts import fake_backend
from scripts.engine_stack import Stack, running_stack
from tests.pictures import data_uri, noise_picture
from vision_rl.rollout.chat_request import CallError, checked
from vision_rl.rollout.responses import chat_body, events, response
from vision_rl.rollout.trace import turns_from_spans
from vision_rl.serving.serve import MODEL_NAME, serve
from vision_rl.tiny import checkpoint_dir

LOOK = {"type": "function", "name": "look", "description": "Look closer.", "parameters": {"type": "object"}}
CHAT_LOOK = {"type": "function", "function": {key: value for key, value in LOOK.items() if key != "type"}}
MODEL = fake_backend.MODEL


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


CALL = {
    "type": "function_call",
    "call_id": "c1",
    "name": "look",
    "arguments": '{"x": 1}',
    "id": "fc_1",
    "status": "completed",
}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"x": 1}'}}
SAID = {
    "type": "message",
    "id": "msg_1",
    "role": "assistant",
    "status": "completed",
    "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
CALLING = {"role": "assistant", "tool_calls": [CHAT_CALL]}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "red"}
CHAT_RESULT = {"role": "tool", "tool_call_id": "c1", "content": "red"}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ("What?", [message("user", "What?")]),
        ([message("user", "What?")], [message("user", "What?")]),
        (
            [{"type": "message", **message("developer", [{"type": "input_text", "text": "Be brief."}])}],
            [message("developer", [text("Be brief.")])],
        ),
        (
            [
                message(
                    "user", [{"type": "input_image", "image_url": "file:///a.png", "detail": "auto", "file_id": None}]
                )
            ],
            [message("user", [{"type": "image_url", "image_url": {"url": "file:///a.png"}}])],
        ),
        ([SAID], [message("assistant", "Let me see.")]),
        ([SAID, CALL], [message("assistant", "Let me see.") | {"tool_calls": [CHAT_CALL]}]),
        ([CALL, CALL], [{"role": "assistant", "tool_calls": [CHAT_CALL, CHAT_CALL]}]),
        ([CALL, RESULT, CALL], [CALLING, CHAT_RESULT, CALLING]),
        (
            [THOUGHT, SAID, CALL],
            [{"role": "assistant", "reasoning": "Hm.", "content": "Let me see.", "tool_calls": [CHAT_CALL]}],
        ),
        ([THOUGHT, CALL], [{"role": "assistant", "reasoning": "Hm.", "tool_calls": [CHAT_CALL]}]),
        ([SAID, SAID], [message("assistant", "Let me see.")] * 2),
        (
            [{**RESULT, "output": [{"type": "input_image", "image_url": "file:///b.png"}]}],
            [{**CHAT_RESULT, "content": [{"type": "image_url", "image_url": {"url": "file:///b.png"}}]}],
        ),
        ([{**THOUGHT, "content": None}, SAID], [message("assistant", "Let me see.")]),
    ],
)
def test_items_are_messages(items: Any, messages: list[dict[str, Any]]) -> None:
    assert chat_body({"input": items})["messages"] == messages
    assert chat_body({"input": items, "instructions": "I."})["messages"] == [message("system", "I."), *messages]


@pytest.mark.parametrize(
    ("fields", "chat"),
    [
        (
            {"temperature": 0.5, "top_p": 1, "top_k": 3, "seed": 1},
            {"temperature": 0.5, "top_p": 1, "top_k": 3, "seed": 1},
        ),
        ({"max_output_tokens": 7}, {"max_completion_tokens": 7}),
        ({"store": False, "metadata": {"a": "b"}, "truncation": "disabled", "background": False}, {}),
        ({"previous_response_id": None, "conversation": None, "temperature": None, "new_field": None}, {}),
        ({"tools": [LOOK | {"strict": None}]}, {"tools": [CHAT_LOOK]}),
        ({"tools": [], "reasoning": {"effort": None}, "text": {"format": {"type": "text"}}}, {}),
        ({"tool_choice": "required"}, {"tool_choice": "required"}),
        (
            {"tool_choice": {"type": "function", "name": "look"}},
            {"tool_choice": CHAT_LOOK | {"function": {"name": "look"}}},
        ),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        (
            {"text": {"format": {"type": "json_schema", "name": "A", "schema": {"type": "object"}, "strict": True}}},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "A", "schema": {"type": "object"}, "strict": True},
                }
            },
        ),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["reasoning.encrypted_content"], "stream": True}, {"stream": True}),
    ],
)
def test_fields_of_a_request(fields: dict[str, Any], chat: dict[str, Any]) -> None:
    assert chat_body({"model": "m", "input": "x", **fields}) == {
        "model": "m",
        "messages": [message("user", "x")],
        **chat,
    }


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"store": True}, "store is not served: nothing is kept"),
        ({"previous_response_id": "resp_1"}, "previous_response_id is not served: nothing is kept"),
        ({"conversation": "conv_1"}, "conversation is not served"),
        ({"prompt": {"id": "p"}}, "prompt is not served"),
        ({"background": True}, "background is not served"),
        ({"truncation": "auto"}, "truncation must be"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort is not served"),
        ({"text": {"verbosity": "low"}}, "text.verbosity is not served"),
        ({"text": "x"}, "text must be an object"),
        ({"tools": [{"type": "web_search"}]}, "no built-in tools"),
        ({"tools": {}, "input": 1}, "input must be a list"),
        ({"include": ["file_search_call.results"]}, "include may hold"),
        ({"max_output_tokens": -1}, "max_output_tokens must be"),
        ({"input": None}, "input must be a list"),
        ({"input": ["x"]}, "an item of input must be an object"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "not 'item_reference'"),
        ({"input": [{**CALL, "x": 1}]}, "a function_call may not have 'x'"),
        ({"input": [{**THOUGHT, "encrypted_content": "x"}]}, "may not have 'encrypted_content'"),
        ({"input": [message("user", [{"type": "input_file", "file_id": "x"}])]}, "a content part must be"),
        ({"input": [message("user", [{"type": "input_image", "file_id": "x"}])]}, "a content part must be"),
        ({"input": [message("user", {"type": "input_text"})]}, "content must be a list"),
        ({"messages": []}, "'messages' is not served"),
        ({"n": 2}, "'n' is not served"),
        ({"max_tokens": 2}, "'max_tokens' is not served"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(CallError, match=said):
        chat_body({"model": "m", "input": "x", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"input": [message("nobody", "x")]},
        {"input": [{**CALL, "call_id": 3}]},
        {"input": [{**CALL, "arguments": {}}]},
        {"input": [{**RESULT, "call_id": None}]},
        {"input": [message("user", [{"type": "input_text"}])]},
        {"input": [message("user", [{"type": "input_image", "image_url": 1}])]},
        {"input": []},
        {"input": "x", "instructions": 3},
        {"input": "x", "tools": [LOOK | {"name": 3}]},
        {"input": "x", "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
        {"input": "x", "temperature": "hot"},
    ],
)
def test_values_are_checked_as_those_of_a_chat_request(fields: dict[str, Any]) -> None:
    with pytest.raises(CallError):
        checked(chat_body({"model": "m", **fields}), traced=True)


words = st.text(min_size=1, max_size=8)
call = st.builds(
    lambda i, n, a: {"id": i, "type": "function", "function": {"name": n, "arguments": json.dumps(a)}},
    *(words, words, st.dictionaries(words, words, max_size=2)),
)
reply = st.builds(
    lambda t, c, r: {
        "role": "assistant",
        **({"reasoning": r} if r else {}),
        **({"content": t} if t or not (c or r) else {}),
        **({"tool_calls": c} if c else {}),
    },
    *(st.just("") | words, st.lists(call, max_size=2), st.just("") | words),
)
turn = st.builds(lambda r, u: (r, message("user", u)), reply, words)


@settings(deadline=None)
@given(question=words, turns=st.lists(turn, max_size=3))
def test_a_conversation_sent_back_is_the_chat_clients(question: str, turns: list[tuple[dict[str, Any], Any]]) -> None:
    """Whatever a model replies, an agent that sends output items back asks what one that sends messages back asks."""
    items: list[Any] = [message("user", question)]
    messages: list[Any] = [message("user", question)]
    for said, asked in turns:
        completion = {"choices": [{"message": {"content": None, **said}, "finish_reason": "stop"}]}
        output = response(completion, {})["output"]
        Response.model_validate(response(completion, {"input": "x", "model": "m"}) | {"model": "m"})
        items += [*output, asked]
        messages += [said, asked]
    assert chat_body({"input": items})["messages"] == messages


def test_a_reply_that_was_cut_is_incomplete() -> None:
    completion = {"choices": [{"message": {"content": "re"}, "finish_reason": "length"}]}
    answer = response(completion, {})
    assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert answer["output"][0]["status"] == "incomplete" and b"event: response.incomplete\n" in events(answer)


# The official client


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("pictures")) as running:
        yield running


@pytest.fixture()
def rollout(stack: Stack) -> Iterator[tuple[openai.OpenAI, Any]]:
    """A client of one rollout, and the rollout."""
    claimed, address = stack.claim()
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=20) as client:
        yield client, claimed


def test_a_response_is_traced(stack: Stack, rollout: tuple[openai.OpenAI, Any]) -> None:
    client, claimed = rollout
    picture = {"type": "input_image", "image_url": data_uri(noise_picture(seed=2))}
    asked: Any = [message("user", [picture, {"type": "input_text", "text": "What is it?"}])]
    answer = client.responses.create(model=MODEL, input=asked, temperature=0.5, max_output_tokens=9, instructions="I.")
    assert (answer.output_text, answer.status, answer.temperature) == (fake_backend.REPLY, "completed", 0.5)
    assert answer.usage is not None and answer.usage.output_tokens == 4
    [turn] = turns_from_spans(stack.spans(claimed))
    assert turn.response_ids == fake_backend.RESPONSE_IDS and turn.image_refs[0].startswith("sha256:")
    sent = stack.stats()["last"]
    assert (sent["temperature"], sent["max_completion_tokens"], sent["logprobs"]) == (0.5, 9, True)
    assert [one["role"] for one in stack.stats()["messages"]] == ["system", "user"]


def test_a_stream_is_the_same_response(stack: Stack, rollout: tuple[openai.OpenAI, Any]) -> None:
    client, claimed = rollout
    tools: Any = [LOOK]
    for question, kinds in (("What?", ["message"]), ("TOOL", ["function_call"])):
        with client.responses.stream(model=MODEL, input=question, tools=tools) as stream:
            seen = [event.type for event in stream]
            whole = stream.get_final_response()
        assert [item.type for item in whole.output] == kinds
        assert seen[0] == "response.created" and seen[-1] == "response.completed"
    assert len(turns_from_spans(stack.spans(claimed))) == 2
    with client.responses.stream(model=MODEL, input="What?") as stream:
        assert "".join(e.delta for e in stream if e.type == "response.output_text.delta") == fake_backend.REPLY


def test_a_tool_loop(stack: Stack, rollout: tuple[openai.OpenAI, Any]) -> None:
    """The output of the first response goes back as it came, as every agent does it."""
    client, claimed = rollout
    tools, items = [LOOK], [message("user", "TOOL")]  # type: Any, Any
    first = client.responses.create(model=MODEL, input=items, tools=tools)
    [called] = first.output
    assert called.type == "function_call" and called.name == "look"
    items += [*first.output, {"type": "function_call_output", "call_id": called.call_id, "output": "it is red"}]
    assert client.responses.create(model=MODEL, input=items, tools=tools).output_text == fake_backend.REPLY
    back = stack.stats()["messages"]
    assert [one["role"] for one in back] == ["user", "assistant", "tool"]
    assert back[1]["tool_calls"][0]["id"] == back[2]["tool_call_id"] == called.call_id
    assert "look" in turns_from_spans(stack.spans(claimed))[0].text


def test_responses_of_a_group_are_one_request(stack: Stack) -> None:
    before = stack.stats()["requests"]
    from agentlightning.types import EnqueueRolloutRequest

    requests = [EnqueueRolloutRequest(input={}, metadata={"data_id": "g"}) for _ in range(4)]
    stack.call(stack.store.enqueue_many_rollouts(requests))
    for claimed in stack.call(stack.memory.dequeue_many_rollouts(limit=4)):
        path = f"{stack.address}/rollout/{claimed.rollout_id}/attempt/{claimed.attempt.attempt_id}/v1/responses"
        body = {"model": MODEL, "input": "What?", "temperature": 1.0}
        assert httpx.post(path, json=body, trust_env=False).status_code == 200
    assert stack.stats()["requests"] == before + 1 and stack.stats()["n"][-1] == 4


def test_without_a_rollout_it_is_served_and_not_traced(stack: Stack) -> None:
    before = stack.call(stack.memory.statistics())["total_spans"]
    with openai.OpenAI(base_url=f"{stack.address}/v1", api_key="none", max_retries=0) as client:
        assert client.responses.create(model=MODEL, input="What?").output_text == fake_backend.REPLY
        with pytest.raises(openai.BadRequestError, match="previous_response_id is not served"):
            client.responses.create(model=MODEL, input="What?", previous_response_id="resp_1")
        with pytest.raises(openai.NotFoundError, match="is not served here"):
            client.responses.retrieve("resp_1")
    assert stack.call(stack.memory.statistics())["total_spans"] == before


# vLLM itself


@pytest.mark.e2e
@pytest.mark.long
def test_vllm_reads_the_same_tokens_by_either_protocol(tmp_path: Path) -> None:
    """Greedy, a conversation with pictures, a tool and its picture: every turn's prompt and reply, token by token."""
    for name in ("red", "blue"):
        Image.new("RGB", (84, 84), name).save(tmp_path / f"{name}.png")
    urls = [(tmp_path / f"{name}.png").as_uri() for name in ("red", "blue")]
    chat: list[Any] = [
        message("system", "Answer briefly."),
        message("user", [{"type": "image_url", "image_url": {"url": urls[0]}}, text("What color is it?")]),
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CHAT_CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "image_url", "image_url": {"url": urls[1]}}]},
        message("assistant", "blue"),
        message("user", "And now?"),
    ]
    items: list[Any] = [
        message(
            "user", [{"type": "input_image", "image_url": urls[0]}, {"type": "input_text", "text": "What color is it?"}]
        ),
        *(SAID, CALL),
        {**RESULT, "output": [{"type": "input_image", "image_url": urls[1]}]},
        {**SAID, "content": [{"type": "output_text", "text": "blue", "annotations": []}]},
        message("user", "And now?"),
    ]
    with serve(checkpoint_dir(), cpu=True, max_model_len=1024, media_root=str(tmp_path), tool_parser="hermes") as url:
        stack = Stack(url, tmp_path / "pictures", media_roots=[tmp_path])
        parameters = {"model": f"hosted_vllm/{MODEL_NAME}", "api_base": url}
        stack.proxy.update_model_list([{"model_name": MODEL_NAME, "litellm_params": parameters}])
        try:
            for last_message, last_item, tools in (
                (2, 1, True),
                (4, 4, True),
                (6, 6, True),
                (2, 1, False),
                (6, 6, False),
            ):
                common = {"model": MODEL_NAME, "temperature": 0.0}
                bodies = {
                    "chat/completions": {**common, "messages": chat[:last_message], "max_tokens": 8},
                    "responses": {**common, "instructions": "Answer briefly.", "input": items[:last_item]}
                    | {"max_output_tokens": 8},
                }
                turns = []
                for route, body in bodies.items():
                    claimed, address = stack.claim()
                    if tools:
                        body["tools"] = [CHAT_LOOK if "chat" in route else LOOK]
                    sent = httpx.post(f"{address}/{route}", json=body, trust_env=False, timeout=120)
                    assert sent.status_code == 200, sent.text
                    turns += turns_from_spans(stack.spans(claimed))
                by_chat, by_responses = turns
                assert by_chat.prompt_ids == by_responses.prompt_ids and by_chat.image_refs == by_responses.image_refs
                assert by_chat.response_ids == by_responses.response_ids and by_chat.response_ids
                # The second prompt comes from vLLM's prefix cache, which changes the last bits.
                assert by_chat.logprobs == pytest.approx(by_responses.logprobs, abs=1e-4)
        finally:
            stack.close()
