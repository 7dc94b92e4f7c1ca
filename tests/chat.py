"""One chat completion by the agents' own client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai.types.chat import ChatCompletion

from vision_rl.agent.client import client_for
from vision_rl.settings import AgentSettings
from vision_rl.types import LLM


async def chat(
    endpoint: str, model: str, messages: Sequence[Any], *, timeout_seconds: float, **parameters: Any
) -> ChatCompletion:
    client = client_for(LLM(endpoint, model), AgentSettings(timeout_seconds=timeout_seconds))
    completion: ChatCompletion = await client.chat.completions.create(model=model, messages=messages, **parameters)
    return completion
