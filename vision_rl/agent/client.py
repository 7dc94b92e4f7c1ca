"""The OpenAI client of agents, evaluation and baselines: one per event loop, for as long as the loop lives.

A client per rollout that is never closed stalls requests: the garbage collector closes its socket, the next connection
gets the same file descriptor, and the old client's late `aclose()` removes the new connection's writer from the event
loop. One shared client has no such race and saves the TLS context that each new one builds (20 ms against 80 ms of CPU).
So it was with openai 2; openai 3 no longer stalls, but a client per rollout still costs four times the CPU.
"""

from __future__ import annotations

import asyncio
import json
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import httpx2 as httpx  # the client library of openai 3
import openai
from openai._base_client import get_platform
from openai.types.chat import ChatCompletion

from vision_rl.agent.rollout_key import ATTEMPT_HEADER, PREFIX, ROLLOUT_HEADER, rollout_key, split_address
from vision_rl.errors import UserError
from vision_rl.settings import TOKEN_VARIABLE

# Uvicorn closes an idle connection after 5 s; leaving the pool earlier means never writing into a closing socket.
IDLE_SECONDS = 3.0
MAX_RETRIES = 2


@dataclass(frozen=True)
class LLM:
    """The model that an agent asks; Agent Lightning's `agl.LLM`, which training rollouts get, has the same fields."""

    endpoint: str
    model: str
    sampling_parameters: Mapping[str, Any] = field(default_factory=dict)


_platform = cache(get_platform)
_Clients = dict[bool, openai.AsyncOpenAI]
_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Clients] = weakref.WeakKeyDictionary()


class _CheckedClient(openai.AsyncOpenAI):
    """OpenAI's client, which looks at nothing of what a server sends: proxies and overloaded servers answer with
    status 200 and something that is no chat completion, as they do with a broken one.

    Each of its copies, and a rollout has one, would look up the operating system in a thread (openai/_base_client.py,
    `request`), an eighth of what a rollout costs its runner.
    """

    def copy(self, **options: Any) -> Self:
        client = super().copy(**options)
        client._platform = _platform()
        return client

    with_options = copy

    async def post(self, path: str, **options: Any) -> Any:
        try:
            reply = await super().post(path, **options)
        except json.JSONDecodeError as error:
            raise ValueError(f"{self.base_url} answered with broken JSON ({error})") from error
        return _checked(reply, str(self.base_url)) if options.get("cast_to") is ChatCompletion else reply


def shared_client(*, trainer: bool = False) -> openai.AsyncOpenAI:
    """The running event loop's client; give it an address with `.with_options(base_url=...)`, which shares its pool.

    `trainer`: the one for the trainer's own proxy, wherever it is: a web proxy named in the environment is passed by.
    """
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    if trainer not in clients:
        limits = httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=IDLE_SECONDS)
        # A web proxy named in the environment serves requests to the world, never those to this machine.
        direct = {f"all://{host}": None for host in ("127.0.0.1", "localhost")}
        http_client = httpx.AsyncClient(limits=limits, mounts=direct, follow_redirects=True, trust_env=not trainer)
        key = os.environ.get("OPENAI_API_KEY", "none")
        clients[trainer] = _CheckedClient(
            api_key=key, base_url="http://unset.invalid", max_retries=MAX_RETRIES, http_client=http_client
        )
    return clients[trainer]


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


def client_for(llm: LLM, settings: Mapping[str, Any]) -> openai.AsyncOpenAI:
    """OpenAI's client for the model that an agent was given, with the timeout of its settings.

    Its calls raise `openai.OpenAIError` once their retries are spent, and `ValueError` for a reply with status 200 that
    is no chat completion. To the trainer's own proxy it shows the run's token.
    """
    # Only the trainer's own proxy has such addresses; nobody else must see its token.
    trainer = "/rollout/" in llm.endpoint
    token = os.environ.get(TOKEN_VARIABLE) if trainer else None
    client = shared_client(trainer=trainer)
    return client.with_options(
        api_key=token or client.api_key, base_url=openai_base_url(llm.endpoint), timeout=settings["timeout_seconds"]
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


def _checked(completion: Any, endpoint: str) -> ChatCompletion:
    """The completion if its first choice has a message of text; the client library checks nothing of it."""
    if not isinstance(completion, ChatCompletion):
        raise ValueError(f"{endpoint} answered with something that is no chat completion: {str(completion)[:80]!r}")
    if not completion.choices:
        raise ValueError(f"{endpoint} answered without choices")
    message = completion.choices[0].message
    content = getattr(message, "content", None)
    if message is None or not (content is None or isinstance(content, str)):
        raise ValueError(f"{endpoint} answered with a message that is no text: {str(content)[:80]!r}")
    if content is not None and not content.isascii():
        # JSON can hold half a surrogate pair; the files that replies are kept in cannot.
        message.content = content.encode(errors="replace").decode()
    return completion


def was_cut(completion: ChatCompletion) -> bool:
    """Whether the length limit cut the reply off."""
    return getattr(completion.choices[0], "finish_reason", None) == "length"  # some servers leave it out
