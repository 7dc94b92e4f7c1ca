"""The OpenAI client of agents, evaluation and baselines: one per event loop.

A client per rollout that is never closed stalls requests: the garbage collector closes its socket, the next connection
gets the same file descriptor, and the old client's late `aclose()` removes the new connection's writer from the event
loop. One shared client has no such race and saves the TLS context that each new one builds (20 ms against 80 ms of CPU).
"""

from __future__ import annotations

import asyncio
import json
import os
import weakref
from collections.abc import Mapping
from functools import cache
from itertools import count
from typing import Any, Self

import httpx2 as httpx  # the client library of openai 3
import openai
from openai._base_client import get_platform
from openai.types.chat import ChatCompletion

# Uvicorn closes an idle connection after 5 s; leaving the pool earlier means never writing into a closing socket.
IDLE_SECONDS = 3.0
MAX_RETRIES = 2


_platform = cache(get_platform)
_clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[bool, openai.AsyncOpenAI]] = (
    weakref.WeakKeyDictionary()
)


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
        for attempt in count():
            try:
                reply = await super().post(path, **options)
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.base_url} answered with broken JSON ({error})") from error
            if options.get("cast_to") is not ChatCompletion:
                return reply
            refusal = self._provider_error(reply)
            if refusal is None:
                return _checked(reply, str(self.base_url))
            passing = refusal.status_code in (408, 409, 429) or refusal.status_code >= 500
            if attempt >= self.max_retries or not passing:
                raise refusal
            await asyncio.sleep(0.5 * 2**attempt)

    def _provider_error(self, reply: Any) -> openai.APIStatusError | None:
        """The error that a provider put into a reply of status 200, as the one of its own status: OpenRouter and its kin do so
        with a limit of rate, a provider that is down, and an answer that a content filter withheld."""
        if not isinstance(reply, ChatCompletion):
            return None
        choice = reply.choices[0] if reply.choices else None
        body = (reply.model_extra or {}).get("error") or ((choice and choice.model_extra) or {}).get("error")
        reason = choice and choice.finish_reason
        if reason == "content_filter":
            body = {"message": "the provider's content filter withheld the answer", "code": 400}
        elif reason == "error":
            body = body or {"message": "the provider ended the answer with an error"}
        if not body:
            return None
        error = dict(body) if isinstance(body, Mapping) else {"message": str(body)}
        error["message"] = str(error.get("message") or error)[:2000]
        status = _status_of(error)
        response = httpx.Response(status, request=httpx.Request("POST", self.base_url))
        return self._make_status_error(f"Error code: {status} - {error['message']}", body=error, response=response)


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


def _status_of(body: Mapping[str, Any]) -> int:
    """The HTTP status that a provider's error stands for; 502 where it says none."""
    code = str(body.get("code") or body.get("status") or "")
    if code.isdecimal() and 400 <= int(code) <= 599:
        return int(code)
    return 429 if "rate_limit" in f"{code} {body.get('type')}" or code == "insufficient_quota" else 502


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
