"""OpenAI's Responses API, served as the chat call that a request stands for; nothing is kept between two requests.

`chat_body` turns a request into the body of a chat request, which is checked, traced and joined with its group as any;
`response` and `events` turn the reply back. The conversation that a client sends back as items is the one that a chat
client would send back as messages, so that the model server renders the same tokens (tests/test_responses.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from vision_rl.rollout.chat_request import DROPPED, FIELDS, CallError

_OWN = {"messages", "tools", "tool_choice", "response_format", "stream_options", "logprobs", "top_logprobs", "n"}
_SAME = FIELDS.keys() - _OWN - {"max_tokens", "max_completion_tokens", "return_token_ids"}
"""Fields of sampling, which mean the same in both protocols."""
_WITHOUT_EFFECT = {*DROPPED, "stream_options", "max_tool_calls"} - {"store"}
"""The last counts calls of built-in tools, and there are none."""
_STATELESS = "nothing is kept between requests; send the whole conversation as input"
_REFUSED = {
    "store": _STATELESS,
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "background": "a response comes with its request; leave it out",
    "prompt": "there are no stored prompts; send instructions and input",
}
_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (_LOGPROBS, "reasoning.encrypted_content")
"""The second has no effect: the reasoning of a model server comes in plain."""
_ITEM_KEYS = {
    "message": ("type", "id", "status", "phase", "role", "content"),
    "function_call": ("type", "id", "status", "call_id", "name", "arguments"),
    "function_call_output": ("type", "id", "status", "call_id", "output"),
    "reasoning": ("type", "id", "status", "summary", "content"),
}


def chat_body(asked: dict[str, Any]) -> dict[str, Any]:
    """The chat request that a request to `/v1/responses` stands for.

    Raises `CallError` naming what has no equal there; values are checked by `chat_request.checked`.
    """
    given = _given(asked)
    body = {name: given.pop(name) for name in _SAME & given.keys()}
    for name in _WITHOUT_EFFECT:
        given.pop(name, None)
    for name, reason in _REFUSED.items():
        if given.pop(name, False) is not False:
            raise CallError(400, f"{name} is not served: {reason}")
    if given.pop("truncation", "disabled") != "disabled":
        raise CallError(400, 'truncation must be "disabled": what a model has seen must stand in its trace')
    if "max_output_tokens" in given:
        check, wanted = FIELDS["max_completion_tokens"]
        if not check(given["max_output_tokens"]):
            raise CallError(400, f"max_output_tokens must be {wanted}")
        body["max_completion_tokens"] = given.pop("max_output_tokens")
    _only_switched_off("reasoning", given.pop("reasoning", None), without_effect=("summary", "generate_summary"))
    text = _object("text", given.pop("text", {}))
    if (form := _text_format(text.pop("format", {}))) is not None:
        body["response_format"] = form
    _only_switched_off("text", text)
    body |= _logprobs(given.pop("include", []), given.pop("top_logprobs", None))
    if tools := given.pop("tools", []):
        body["tools"] = [_tool(tool) for tool in _list("tools", tools)]
    if "tool_choice" in given:
        body["tool_choice"] = _tool_choice(given.pop("tool_choice"))
    body["messages"] = _messages(given.pop("instructions", None), given.pop("input", None))
    if given:
        raise CallError(
            400, f"the field {next(iter(given))[:80]!r} is not served here; docs/workers.md lists those that are"
        )
    return body


def _given(value: dict[str, Any]) -> dict[str, Any]:
    """Without nulls: a null is an absent field."""
    return {name: one for name, one in value.items() if one is not None}


def _object(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CallError(400, f"{name} must be an object")
    return _given(value)


def _list(name: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise CallError(400, f"{name} must be a list")
    return value


def _only_switched_off(name: str, value: Any, without_effect: Sequence[str] = ()) -> None:
    if set_ := [key for key in _object(name, value or {}) if key not in without_effect]:
        raise CallError(400, f"{name}.{set_[0][:80]} is not served; leave it out")


def _text_format(form: Any) -> dict[str, Any] | None:
    """`text.format` as chat's `response_format`, which holds the parts of a schema in an object of their own."""
    form = _object("text.format", form)
    kind = form.pop("type", "text")
    if kind == "text":
        return None
    return {"type": kind, kind: form} if form else {"type": kind}


def _logprobs(include: Any, top: Any) -> dict[str, Any]:
    for one in _list("include", include):
        if one not in _INCLUDED:
            raise CallError(400, f"include may hold {_INCLUDED[0]!r}, not {str(one)[:80]!r}")
    if _LOGPROBS not in include:
        return {}
    return {"logprobs": True} | ({"top_logprobs": top} if top else {})


def _tool(tool: Any) -> dict[str, Any]:
    function = _object("a tool", tool)
    if function.pop("type", None) != "function":
        raise CallError(400, 'a tool must be of the type "function"; there are no built-in tools here')
    return {"type": "function", "function": function}


def _tool_choice(choice: Any) -> Any:
    if isinstance(choice, dict) and set(choice) == {"type", "name"} and choice["type"] == "function":
        return {"type": "function", "function": {"name": choice["name"]}}
    return choice


# The conversation


def _messages(instructions: Any, conversation: Any) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    if isinstance(conversation, str):
        return [*messages, {"role": "user", "content": conversation}]
    for item in _list("input", conversation):
        _add(messages, _object("an item of input", item))
    return messages


def _add(messages: list[dict[str, Any]], item: dict[str, Any]) -> None:
    """Add an item to the messages. A reply is one message there and up to three kinds of items here, in this order:
    reasoning, text, function calls."""
    kind = item.get("type", "message")
    if kind not in _ITEM_KEYS:
        raise CallError(400, f"an item of input must be one of {', '.join(_ITEM_KEYS)}, not {str(kind)[:80]!r}")
    if unknown := [key for key in item if key not in _ITEM_KEYS[kind]]:
        raise CallError(400, f"a {kind} may not have {unknown[0][:80]!r}")
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if kind == "function_call_output":
        output = item.get("output")
        content = output if isinstance(output, str) else _parts(output)
        messages.append({"role": "tool", "tool_call_id": _call_id(item), "content": content})
    elif kind == "function_call":
        call = {key: item.get(key, "") for key in ("name", "arguments")}
        if last is None:
            messages.append(last := {"role": "assistant"})
        last.setdefault("tool_calls", []).append({"id": _call_id(item), "type": "function", "function": call})
    elif kind == "reasoning":
        if said := _reasoning(item):
            messages.append({"role": "assistant", "reasoning": said})
    else:
        message = {"role": item.get("role"), "content": _content(item)}
        if message["role"] == "assistant" and last is not None and set(last) == {"role", "reasoning"}:
            last.update(message)
        else:
            messages.append(message)


def _call_id(item: dict[str, Any]) -> str:
    if not isinstance(item.get("call_id"), str):
        raise CallError(400, f"a {item['type']} must have a call_id, a text")
    return str(item["call_id"])


def _reasoning(item: dict[str, Any]) -> str:
    parts = item.get("content") or item.get("summary") or []
    texts = [part.get("text") for part in _list("the content of reasoning", parts) if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _content(item: dict[str, Any]) -> Any:
    content = item.get("content", "")
    if isinstance(content, str):
        return content
    parts = _parts(content)
    # A reply's text is one part here, and no part but a text as a message.
    return parts[0]["text"] if item.get("role") == "assistant" and [one["type"] for one in parts] == ["text"] else parts


def _parts(content: Any) -> list[dict[str, Any]]:
    return [_part(_object("a content part", part)) for part in _list("content", content)]


def _part(part: dict[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text") and part.keys() <= {"type", "text", "annotations", "logprobs"}:
        return {"type": "text", "text": part.get("text")}
    if kind == "refusal" and part.keys() == {"type", "refusal"}:
        return {"type": "text", "text": part["refusal"]}
    if kind == "input_image" and {"type", "image_url"} <= part.keys() <= {"type", "image_url", "detail"}:
        return {"type": "image_url", "image_url": {"url": part["image_url"]}}
    raise CallError(
        400,
        'a content part must be {"type": "input_text", "text": "..."} or '
        '{"type": "input_image", "image_url": "data:image/... or file:///..."}',
    )


# The reply


def response(reply: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """A chat completion of one choice as the response to what was asked."""
    choice, given = reply["choices"][0], _given(asked)
    cut = choice.get("finish_reason") == "length"
    status = "incomplete" if cut else "completed"
    return {
        "id": _id("resp"),
        "object": "response",
        "created_at": reply.get("created", 0),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "model": reply.get("model"),
        "output": _output(choice, status),
        "usage": _usage(reply.get("usage") or {}),
        "instructions": given.get("instructions"),
        "max_output_tokens": given.get("max_output_tokens"),
        "metadata": given.get("metadata", {}),
        "parallel_tool_calls": given.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": {"effort": None, "summary": None},
        "store": False,
        "temperature": given.get("temperature"),
        "text": {"format": {"type": "text"}, **_given(given.get("text", {}))},
        "tool_choice": given.get("tool_choice", "auto"),
        "tools": given.get("tools", []),
        "top_p": given.get("top_p"),
        "truncation": "disabled",
    }


def _id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    thought = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": usage.get("prompt_tokens", 0),
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.get("completion_tokens", 0),
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage.get("total_tokens", 0),
    }


def _output(choice: dict[str, Any], status: str) -> list[dict[str, Any]]:
    message = choice["message"]
    output: list[dict[str, Any]] = []
    if thought := message.get("reasoning") or message.get("reasoning_content"):
        content = [{"type": "reasoning_text", "text": thought}]
        output.append({"type": "reasoning", "id": _id("rs"), "summary": [], "content": content, "status": status})
    calls = message.get("tool_calls") or []
    if message.get("content") or not (output or calls):
        part: dict[str, Any] = {"type": "output_text", "text": message.get("content") or "", "annotations": []}
        part["logprobs"] = (choice.get("logprobs") or {}).get("content") or []
        kept = {"type": "message", "id": _id("msg"), "role": "assistant", "status": status, "content": [part]}
        output.append(kept)
    for call in calls:
        kept = {
            "type": "function_call",
            "id": _id("fc"),
            "call_id": call.get("id"),
            "status": status,
            **call["function"],
        }
        output.append(kept)
    return output


def events(whole: dict[str, Any]) -> bytes:
    """A response as the events of a stream, each item in one piece."""
    begun = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    sent: list[tuple[str, dict[str, Any]]] = [
        ("response.created", {"response": begun}),
        ("response.in_progress", {"response": begun}),
    ]
    for index, item in enumerate(whole["output"]):
        at = {"output_index": index, "item_id": item["id"]}
        without: dict[str, Any] = {"arguments": ""} if "arguments" in item else {"content": []}
        empty = {**item, "status": "in_progress"} | without
        sent.append(("response.output_item.added", {"output_index": index, "item": empty}))
        if item["type"] == "function_call":
            sent.append(("response.function_call_arguments.delta", {**at, "delta": item["arguments"]}))
            done = {**at, "name": item["name"], "arguments": item["arguments"]}
            sent.append(("response.function_call_arguments.done", done))
        else:
            [part] = item["content"]
            place, kind = {**at, "content_index": 0}, part["type"]
            logprobs = {"logprobs": part["logprobs"]} if kind == "output_text" else {}
            sent.append(("response.content_part.added", {**place, "part": {**part, "text": ""}}))
            sent.append((f"response.{kind}.delta", {**place, "delta": part["text"], **logprobs}))
            sent.append((f"response.{kind}.done", {**place, "text": part["text"], **logprobs}))
            sent.append(("response.content_part.done", {**place, "part": part}))
        sent.append(("response.output_item.done", {"output_index": index, "item": item}))
    sent.append((f"response.{whole['status']}", {"response": whole}))
    return b"".join(
        b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, "sequence_number": number, **content}))
        for number, (kind, content) in enumerate(sent)
    )
