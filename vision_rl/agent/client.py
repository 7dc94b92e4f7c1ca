"""The agent's OpenAI client: the address and key of the model that it was given."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from vision_rl.agent.rollout_key import ATTEMPT_HEADER, PREFIX, ROLLOUT_HEADER, rollout_key, split_address
from vision_rl.errors import UserError
from vision_rl.settings import TOKEN_VARIABLE, AgentSettings
from vision_rl.types import LLM

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletion


def openai_base_url(endpoint: str) -> str:
    """Agent Lightning's endpoints come with and without `/v1`; the client wants it.

    A bare host gets it too; any other path is the API's own (`/v1beta/openai`) and stays. Raises `UserError` for what is
    no address.
    """
    endpoint = endpoint.rstrip("/")
    try:
        parts = urlsplit(endpoint)
        parts.port  # noqa: B018  # read for its ValueError
    except ValueError as error:
        raise UserError(f"{endpoint} is not a URL ({error}); give one like http://host:8000/v1") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"{endpoint!r} is not a URL; give one like http://host:8000/v1")
    path = parts.path
    return endpoint + "/v1" if not path or (path.startswith("/rollout/") and not path.endswith("/v1")) else endpoint


def client_for(llm: LLM, settings: AgentSettings) -> openai.AsyncOpenAI:
    """OpenAI's client for the model that an agent was given, with the timeout of its settings.

    Its calls raise `openai.OpenAIError` once their retries are spent, and `ValueError` for a reply with status 200 that
    is no chat completion. To the trainer's own proxy it shows the run's token.
    """
    from vision_rl.agent.openai_client import shared_client  # one second, which only those who ask a model pay

    # Only the trainer's own proxy has such addresses; nobody else must see its token.
    trainer = "/rollout/" in llm.endpoint
    token = os.environ.get(TOKEN_VARIABLE) if trainer else None
    client = shared_client(trainer=trainer)
    return client.with_options(
        api_key=token or client.api_key, base_url=openai_base_url(llm.endpoint), timeout=settings.timeout_seconds
    )


class Connection(NamedTuple):
    """What the client of any framework needs. headers: they name the rollout beside the run's token, as its key does."""

    base_url: str
    api_key: str
    headers: dict[str, str]


def connection(llm: Any) -> Connection:
    """Address and key of the model that an agent was given (`agl.LLM`, or `LLM` outside of training).

    In training the address is the same for all rollouts of a run, and the key is this rollout's, so that a framework
    that keeps its clients by address keeps one. `llm.endpoint`, which holds the rollout, makes it keep one per rollout.
    """
    key, named = getattr(llm, "api_key", None), split_address(llm.endpoint)
    if named is None:
        return Connection(openai_base_url(llm.endpoint), key or os.environ.get("OPENAI_API_KEY", "none"), {})
    proxy, *identity = named
    own = key if key and key.startswith(PREFIX) else rollout_key(key, *identity)
    return Connection(openai_base_url(proxy), own, dict(zip((ROLLOUT_HEADER, ATTEMPT_HEADER), identity, strict=True)))


def thinking(task: Mapping[str, Any]) -> dict[str, Any]:
    """The parameter of a call by which the chat template of Qwen3.5 and its kin opens the reply for thinking, or does not, as
    `meta.thinking` of the row says; none for a row that does not say."""
    wanted = task.get("meta", {}).get("thinking")
    return {"extra_body": {"chat_template_kwargs": {"enable_thinking": wanted}}} if isinstance(wanted, bool) else {}


def was_cut(completion: ChatCompletion) -> bool:
    """Whether the length limit cut the reply off."""
    return getattr(completion.choices[0], "finish_reason", None) == "length"  # some servers leave it out
