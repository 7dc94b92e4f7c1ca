"""What a chat request to the proxy may hold: an allow-list of fields, message keys and content parts.

A model server does more than sampling for whoever may name a field: vLLM's own part types open files
(`image_pil`) or tensors (`image_embeds`), template arguments and response grammars reach parsers, and gateways fetch
addresses and read the environment (litellm's `user_config`). What is not listed here is refused with a sentence, and
only what was checked is sent on, written anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from vision_rl.models.tokens import VISION_MARK
from vision_rl.rollout.sampling_fields import untrainable
from vision_rl.rollout.structured_output import PROMPT, REFUSE, Wanted, in_words

MAX_DEPTH = 32
"""Nested lists and objects of a body; a tool's JSON schema has about ten."""
MAX_CHOICES = 64
MAX_MESSAGES = 1024
MAX_TOKENS = 2**20
_DATA_URI = re.compile(r"data:image/[A-Za-z0-9.+-]+;base64,")
VIDEO_URI = "data:video/jpeg;base64,"
"""What the address of a video begins with: its frames follow as pictures in base64, separated by commas (vLLM's form,
vllm/multimodal/media/video.py). A video file is refused: nothing here decodes one for a client."""
NO_PICTURE = "pictures must be data: URIs, or file:// addresses in the data directory of the run"

Check = Callable[[Any], bool]


class CallError(Exception):
    """What the client gets: an HTTP status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class ChatRequest:
    """A request that was checked. body: what the model server gets.

    urls: the addresses of pictures and videos. stream: the client wants events; usage: and a last one with the numbers of
    tokens. untrainable: why a training rollout may not make it, "" if it may. wanted: the form that was asked for in words.
    """

    body: dict[str, Any]
    urls: list[str] = field(default_factory=list)
    stream: bool = False
    usage: bool = False
    untrainable: str = ""
    wanted: Wanted | None = None


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object of a request body. Raises `CallError` for anything else, and for one nested too deeply."""
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise CallError(400, f"the body is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CallError(400, "the body must be a JSON object")
    level: list[Any] = [parsed]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return parsed
    raise CallError(400, f"the body is nested more than {MAX_DEPTH} deep")


def checked(body: dict[str, Any], *, traced: bool, structured_output: str = REFUSE) -> ChatRequest:
    """The request with nothing in it but what was checked. Raises `CallError` naming the field and what it may be.

    traced: a rollout's call, which has one choice. `data:` URIs and paths are not looked into here (`pictures.py`). A null
    is an absent field everywhere, and what cannot change the reply is left out.
    """
    given = {name: value for name, value in _cleaned(body).items() if name not in DROPPED}
    for name in given:
        if name not in FIELDS:
            raise CallError(400, f"the field {name[:80]!r} is not served here; docs/workers.md lists those that are")
    for name, value in given.items():
        check, wanted = FIELDS[name]
        if not check(value):
            raise CallError(400, f"{name} must be {wanted}")
    for name in ("model", "messages"):
        if name not in given:
            raise CallError(400, f"the field {name!r} is missing")
    if traced and given.get("n", 1) != 1:
        raise CallError(400, "a rollout's call has one choice: n must be 1")
    usage = bool(given.pop("stream_options", {}).get("include_usage"))
    given.pop("modalities", None)
    request = ChatRequest(given, stream=bool(given.pop("stream", False)), usage=usage)
    given["messages"] = [_message(message, request.urls) for message in given["messages"]]
    if traced:
        if structured_output == PROMPT:
            try:
                request.wanted = in_words(given)
            except ValueError as error:
                raise CallError(400, str(error)) from error
        request.untrainable = untrainable(given)
        if "tools" in given:
            given["tools"] = [_not_strict(tool) for tool in given["tools"]]
    return request


def _cleaned(value: Any) -> Any:
    """A value without nulls and notes in its objects; a JSON schema stays as it is, where a null may be a default."""
    if isinstance(value, list):
        return [_cleaned(one) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        name: one if name in _SCHEMAS else _cleaned(one)
        for name, one in value.items()
        if one is not None and name not in _NOTES
    }


def _not_strict(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool whose calls no grammar makes right: vLLM compiles one as soon as a tool is `strict`, and masks the reply by it
    (tool_parsers/structural_tag_registry.py). openai-agents and pydantic-ai say so of every tool."""
    function = {name: value for name, value in tool["function"].items() if name != "strict"}
    return {**tool, "function": function}


def _message(message: Any, urls: list[str]) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise CallError(400, "a message must be an object with a role and content")
    kept = dict(message)
    for name in kept:
        if name not in _MESSAGE:
            raise CallError(400, f"a message may not have {name[:80]!r}")
        if not _MESSAGE[name][0](kept[name]):
            raise CallError(400, f"a message's {name} must be {_MESSAGE[name][1]}")
    if "role" not in kept:
        raise CallError(400, "a message must have a role")
    if isinstance(kept.get("content"), str):
        _check_text(kept["content"])
    elif isinstance(kept.get("content"), list):
        kept["content"] = [_part(part, urls) for part in kept["content"]]
    return kept


def _check_text(text: str) -> None:
    """Raise `CallError` for a text with a vision token in it, which the model server would take for a picture."""
    if mark := VISION_MARK.search(text):
        raise CallError(
            400,
            f"a text holds {mark.group()!r}, by which vision models mark pictures; send pictures as parts, and write it "
            "otherwise in a text (with a blank in it, as this project's agents do)",
        )


def _part(part: Any, urls: list[str]) -> dict[str, Any]:
    """A content part of one of the three types, written anew; the address of a picture or video is noted."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and set(part) == {"type", "text"} and isinstance(part["text"], str):
        _check_text(part["text"])
        return {"type": "text", "text": part["text"]}
    if kind == "image_url" and set(part) == {"type", "image_url"}:
        image = part["image_url"]
        if isinstance(image, dict) and set(image) <= {"url", "detail"}:
            image = image.get("url")
        if isinstance(image, str):
            if image.startswith(VIDEO_URI):  # what it is read as must not depend on its address
                raise CallError(403, NO_PICTURE)
            urls.append(image)
            return {"type": "image_url", "image_url": {"url": image}}
    if kind == "video_url" and set(part) == {"type", "video_url"} and _only(part["video_url"], ("url",)):
        video = part["video_url"]["url"]
        if isinstance(video, str) and video.startswith(VIDEO_URI):
            urls.append(video)
            return {"type": "video_url", "video_url": {"url": video}}
    raise CallError(
        400,
        'a content part must be {"type": "text", "text": "..."}, '
        '{"type": "image_url", "image_url": {"url": "data:image/... or file:///..."}} or '
        f'{{"type": "video_url", "video_url": {{"url": "{VIDEO_URI}..."}}}} with the frames in base64, separated by commas',
    )


def is_data_uri(url: str) -> bool:
    """Whether an address is a picture in base64."""
    return _DATA_URI.match(url) is not None


# Checks of one value each.


def is_number(value: Any, least: float, most: float) -> bool:
    """A JSON number within bounds; not a boolean, NaN is outside every bound."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def _number(least: float, most: float) -> tuple[Check, str]:
    return (lambda value: is_number(value, least, most)), f"a number from {least:g} to {most:g}"


def _whole(least: int, most: int) -> tuple[Check, str]:
    wanted = f"a whole number from {least} to {most}"
    return (lambda value: isinstance(value, int) and is_number(value, least, most)), wanted


def _texts(value: Any, most: int) -> bool:
    return isinstance(value, list) and len(value) <= most and all(isinstance(one, str) for one in value)


def _only(value: Any, required: Sequence[str], optional: Sequence[str] = ()) -> bool:
    return isinstance(value, dict) and set(required) <= set(value) <= {*required, *optional}


def _is_tool(tool: Any) -> bool:
    if not (_only(tool, ("type", "function")) and tool["type"] == "function"):
        return False
    function = tool["function"]
    return (
        _only(function, ("name",), ("description", "parameters", "strict"))
        and isinstance(function["name"], str)
        and isinstance(function.get("description", ""), str)
        and isinstance(function.get("parameters", {}), dict)
    )


def _is_tool_call(call: Any) -> bool:
    return (
        _only(call, ("type", "function"), ("id", "index"))
        and call["type"] == "function"
        and _only(call["function"], ("name", "arguments"))
        and all(isinstance(text, str) for text in call["function"].values())
    )


def _is_tool_choice(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("auto", "none", "required")
    return _only(value, ("type", "function")) and value["type"] == "function" and _only(value["function"], ("name",))


def _is_response_format(value: Any) -> bool:
    if _only(value, ("type",)):
        return value["type"] in ("text", "json_object")
    if not (_only(value, ("type", "json_schema")) and value["type"] == "json_schema"):
        return False
    named = value["json_schema"]
    return (
        _only(named, ("name", "schema"), ("description", "strict"))
        and isinstance(named["name"], str)
        and isinstance(named["schema"], dict)
    )


def _is_bias(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= 1024
        and all(key.isdecimal() and is_number(bias, -100, 100) for key, bias in value.items())
    )


_TEXT: tuple[Check, str] = (lambda value: isinstance(value, str)), "a text"
_SWITCH: tuple[Check, str] = (lambda value: isinstance(value, bool)), "true or false"
FIELDS: dict[str, tuple[Check, str]] = {
    "model": _TEXT,
    "messages": (
        lambda value: isinstance(value, list) and 0 < len(value) <= MAX_MESSAGES,
        f"a list of 1 to {MAX_MESSAGES} messages",
    ),
    "tools": (lambda value: isinstance(value, list) and all(map(_is_tool, value)), "a list of functions"),
    "tool_choice": (_is_tool_choice, '"auto", "none", "required" or a function\'s name'),
    "parallel_tool_calls": _SWITCH,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "top_k": _whole(-1, 2**31 - 1),
    "min_p": _number(0, 1),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "repetition_penalty": _number(0, 100),
    "logit_bias": (_is_bias, "an object of at most 1024 token ids with numbers from -100 to 100"),
    "max_tokens": _whole(0, MAX_TOKENS),
    "max_completion_tokens": _whole(0, MAX_TOKENS),
    "min_tokens": _whole(0, MAX_TOKENS),
    "stop": (lambda value: isinstance(value, str) or _texts(value, 32), "a text or at most 32 texts"),
    "stop_token_ids": (
        lambda value: isinstance(value, list) and len(value) <= 128 and all(isinstance(one, int) for one in value),
        "a list of at most 128 token ids",
    ),
    "ignore_eos": _SWITCH,
    "skip_special_tokens": _SWITCH,
    "seed": _whole(-(2**63), 2**63 - 1),
    "n": _whole(1, MAX_CHOICES),
    "logprobs": _SWITCH,
    "top_logprobs": _whole(0, 20),
    "return_token_ids": _SWITCH,
    "response_format": (
        _is_response_format,
        '{"type": "text"}, {"type": "json_object"} or '
        '{"type": "json_schema", "json_schema": {"name": "...", "schema": {...}}}',
    ),
    "chat_template_kwargs": (
        lambda value: _only(value, ("enable_thinking",)) and isinstance(value["enable_thinking"], bool),
        '{"enable_thinking": true or false}',
    ),
    "stream": _SWITCH,
    "stream_options": (
        lambda value: _only(value, (), ("include_usage", "include_obfuscation")),
        'an object with "include_usage"',
    ),
    "modalities": (lambda value: value == ["text"], '["text"]'),
    "user": _TEXT,
}
"""The fields of a chat request: name -> (check, what it may be)."""
DROPPED = frozenset(
    ("store", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention", "safety_identifier")
)
"""Fields that official clients send to other servers, and that cannot change a reply."""
_NOTES = frozenset(("cache_control", "annotations", "provider_specific_fields"))
"""What clients note on messages, parts and tool calls; no template shows it to a model."""
_SCHEMAS = frozenset(("parameters", "schema"))
_MESSAGE: dict[str, tuple[Check, str]] = {
    "role": (
        lambda value: value in ("system", "developer", "user", "assistant", "tool"),
        "system, developer, user, assistant or tool",
    ),
    "content": (lambda value: isinstance(value, str | list), "a text or a list of parts"),
    "name": _TEXT,
    "tool_calls": (lambda value: isinstance(value, list) and all(map(_is_tool_call, value)), "a list of calls"),
    "tool_call_id": _TEXT,
    "reasoning": _TEXT,
    "reasoning_content": _TEXT,
}
