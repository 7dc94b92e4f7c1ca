"""What a rollout leaves in the store: one span per model call, small, exact, and free of pictures.

A span keeps token ids and log-probabilities packed (a 1-megapixel image is 1,300 equal ids: a few bytes after zlib) and, in
place of each picture, its address: a `file://` path, or `sha256:<hex>` of a picture that was sent as a `data:` URI and is
kept once in the run's picture folder. So the trainer rebuilds exactly what the server saw, in order, for every turn.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SPAN_NAME = "vision_rl.llm_call"
REWARD_SPAN_NAME, REWARD_KEY = "agentlightning.annotation", "agentlightning.reward"
"""Agent Lightning's own names (agentlightning/semconv.py); the proxy does without its import, 1.3 core seconds."""
MAX_REWARD = 1e15
"""Sums of squares over a batch stay within float32, in which the advantages are computed."""


class UnusableReward(ValueError):
    """An agent emitted no reward, or one that no batch can hold."""


@dataclass(frozen=True)
class Turn:
    """One model call: ids as the server tokenised and sampled them, one log-probability per response token."""

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: list[float]
    image_refs: list[str]
    text: str
    finish_reason: str
    sampling: dict[str, Any] = field(default_factory=dict)
    """The fields by which the request asked for a way of sampling; what it leaves out is the run's."""
    flaw: str = ""
    """Why the reply has not the form that it was asked for in words."""


def pack(values: Sequence[int] | Sequence[float], dtype: str) -> str:
    """Numbers as base64 of zlib of their bytes; `dtype` is a little-endian numpy type such as "<i4" or "<f4"."""
    return base64.b64encode(zlib.compress(np.asarray(values, dtype=dtype).tobytes(), 1)).decode()


def unpack(text: str, dtype: str) -> list[Any]:
    """The inverse of `pack`."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype).tolist()


def turn_attributes(turn: Turn) -> dict[str, str]:
    """The span attributes of a turn. Log-probabilities are float32 in vLLM, so float32 loses nothing."""
    return {
        "prompt_ids": pack(turn.prompt_ids, "<i4"),
        "response_ids": pack(turn.response_ids, "<i4"),
        "logprobs": pack(turn.logprobs, "<f4"),
        "image_refs": json.dumps(turn.image_refs),
        "text": turn.text,
        "finish_reason": turn.finish_reason,
        "sampling": json.dumps(turn.sampling),
        "flaw": turn.flaw,
    }


def span(name: str, attributes: Mapping[str, Any], now: float) -> dict[str, Any]:
    """A span as the store's `record` takes it over HTTP."""
    status = {"status_code": "OK"}
    return {"name": name, "attributes": dict(attributes), "status": status, "start_time": now, "end_time": now}


def reward_attributes(components: Mapping[str, float]) -> dict[str, Any]:
    """The attributes of Agent Lightning's reward span, the primary component first."""
    return {
        f"{REWARD_KEY}.{index}.{part}": value
        for index, (name, number) in enumerate(components.items())
        for part, value in (("name", name), ("value", float(number)))
    }


def is_reward(value: Any) -> bool:
    """Whether a value can be a reward or a component of one: a finite number that a batch can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_REWARD


def turns_from_spans(spans: Sequence[Any]) -> list[Turn]:
    """The turns of one attempt in the order in which its model calls were made."""
    calls = sorted((span for span in spans if span.name == SPAN_NAME), key=lambda span: span.sequence_id)
    return [_turn(span.attributes) for span in calls]


def _turn(attributes: Mapping[str, Any]) -> Turn:
    return Turn(
        prompt_ids=unpack(attributes["prompt_ids"], "<i4"),
        response_ids=unpack(attributes["response_ids"], "<i4"),
        logprobs=unpack(attributes["logprobs"], "<f4"),
        image_refs=json.loads(attributes["image_refs"]),
        text=attributes["text"],
        finish_reason=attributes["finish_reason"],
        sampling=json.loads(attributes.get("sampling", "{}")),
        flaw=attributes.get("flaw", ""),
    )


def reward_from_spans(spans: Sequence[Any]) -> dict[str, float] | None:
    """The components of the last reward that the attempt emitted, the primary one under "reward".

    None if there is no reward, or if a component is not finite or beyond `MAX_REWARD`: it must not reach the batch.
    """
    from agentlightning import get_rewards_from_span

    for span in sorted(spans, key=lambda span: span.sequence_id, reverse=True):
        dimensions = get_rewards_from_span(span)
        if dimensions:
            components = {dimension.name: float(dimension.value) for dimension in dimensions}
            components.setdefault("reward", dimensions[0].value)
            return components if all(map(is_reward, components.values())) else None
    return None
