"""Requests of an evaluation: tokens and latency per row, and one pause for all after a 429.

Agents see a chat completion, not the requests behind it, so this listens at the HTTP client that they share
(`vision_rl.agent.client`), by httpx's event hooks. A context variable says which row a request belongs to.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import httpx2 as httpx  # the client library of openai 3

from vision_rl.agent.openai_client import shared_client

LONGEST_PAUSE = 300.0
"""Seconds; a longer Retry-After is waited for in pieces, each ended by a request that the server may refuse again."""
_STARTED = "vision_rl.started"


@dataclass
class Usage:
    """The requests of one row. seconds: of those that were answered, without pauses and retries. truncated: the length limit
    cut the last reply off."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    rate_limited: int = 0
    errors: int = 0
    truncated: bool = False


_usage: ContextVar[Usage | None] = ContextVar("usage", default=None)


@contextmanager
def metered() -> Iterator[Usage]:
    """Count the requests that are made inside the block, by this task."""
    usage = Usage()
    token = _usage.set(usage)
    try:
        yield usage
    finally:
        _usage.reset(token)


class Traffic:
    """The hooks on the running event loop's client; `paused_seconds` sums up the pauses that servers asked for."""

    def __init__(self) -> None:
        self.paused_seconds = 0.0
        self._open_at = 0.0

    @contextmanager
    def attached(self) -> Iterator[Traffic]:
        """Listen to the shared client for as long as the block runs."""
        client: httpx.AsyncClient = shared_client()._client
        before = client.event_hooks
        client.event_hooks = {"request": [self._on_request], "response": [self._on_response]}
        try:
            yield self
        finally:
            client.event_hooks = before

    async def _on_request(self, request: httpx.Request) -> None:
        while (wait := self._open_at - time.monotonic()) > 0:
            # Spread out, or all of them come back in the same instant and are refused together.
            await asyncio.sleep(wait + random.uniform(0, 0.1 * wait))
        request.extensions[_STARTED] = time.monotonic()

    async def _on_response(self, response: httpx.Response) -> None:
        usage = _usage.get()
        if response.status_code == 429:
            self._pause(retry_after(response.headers))
            if usage:
                usage.rate_limited += 1
            return
        if usage is None:
            return
        if response.status_code != 200:
            usage.errors += 1
            return
        await response.aread()
        usage.calls += 1
        usage.seconds += time.monotonic() - response.request.extensions[_STARTED]
        prompt, completion, usage.truncated = _read(response)
        usage.prompt_tokens += prompt
        usage.completion_tokens += completion

    def _pause(self, seconds: float | None) -> None:
        """Hold all requests back; overlapping pauses count once."""
        until = time.monotonic() + min(seconds or 0.0, LONGEST_PAUSE)
        start = max(self._open_at, time.monotonic())
        if until > start:
            self.paused_seconds += until - start
            self._open_at = until


def retry_after(headers: httpx.Headers) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds or a date); None where neither makes sense."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * scale
        except ValueError:
            continue
        return max(0.0, seconds) if seconds < float("inf") else None
    date = email.utils.parsedate_tz(headers.get("retry-after", ""))
    return max(0.0, email.utils.mktime_tz(date) - time.time()) if date else None


def _read(response: httpx.Response) -> tuple[int, int, bool]:
    """(prompt, completion) tokens of a chat completion, zeros where the server does not say, and whether it was cut off."""
    try:
        body = response.json()
    except ValueError:
        return 0, 0, False
    body = body if isinstance(body, dict) else {}
    usage, choices = body.get("usage"), body.get("choices")
    usage = usage if isinstance(usage, dict) else {}
    first = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    prompt, completion = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return (
        prompt if isinstance(prompt, int) else 0,
        completion if isinstance(completion, int) else 0,
        first.get("finish_reason") == "length",
    )
