"""Who may talk to the store and the proxy: a bearer token, limits of size and rate, and what ASGI needs for that.

A browser cannot send a bearer token. It opens the dashboard with `?key=`, a value made from the token that allows to
read and nothing else, and keeps it as a cookie.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Collection
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs

import orjson

from vision_rl.agent.rollout_key import PREFIX, rollout_of

MAX_BODY_BYTES = 64 * 2**20
MAX_REQUESTS_PER_SECOND = 2000
"""Of one client address; far above what a machine full of workers sends, low enough to stop a loop gone wild."""
DASHBOARD_COOKIE = "vision_rl_dashboard"
_FORMATTER = logging.Formatter()
_TOKEN = re.compile(r"(?i)(bearer\s+|api[_-]?key['\"]?\s*[:=]\s*['\"]?|sk-)[A-Za-z0-9._~+/=-]{6,}")


class TooLarge(Exception):
    """A request body over the limit, found while it was read; `Access` answers with 413."""


def new_token() -> str:
    """256 bits, safe in URLs, environment variables and shells."""
    return secrets.token_urlsafe(32)


def dashboard_key(token: str) -> str:
    """What opens the dashboard for reading; the token cannot be had from it."""
    return hmac.new(token.encode(), b"dashboard", hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether an interface is reachable from this machine only, so that no token is needed."""
    return host == "localhost" or host == "::1" or host.startswith("127.")


class Access:
    """ASGI middleware: 401 without the token (if there is one), 429 above the rate, 413 for a body over its limit.

    dashboard: browsers may read (GET) with the key of `dashboard_key`. rollout_paths: what a rollout's own key opens
    (`agent/rollout_key.py`); the application finds (rollout, attempt) as `scope["rollout"]`.
    """

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        token: str | None,
        *,
        open_paths: Collection[str] = (),
        dashboard: bool = False,
        rollout_paths: re.Pattern[str] | None = None,
        max_body_bytes: int = MAX_BODY_BYTES,
        requests_per_second: float = MAX_REQUESTS_PER_SECOND,
    ) -> None:
        self.app = app
        self.token = token.encode() if token else None
        self.rollout_paths = rollout_paths
        self.key = dashboard_key(token).encode() if token and dashboard else None
        self.open_paths = open_paths
        self.max_body_bytes = max_body_bytes
        self.rate = requests_per_second
        self.buckets: dict[str, tuple[float, float]] = {}  # client address -> (requests left, when that was)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":  # nothing here speaks it, and it would pass the checks below
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http" or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
        elif self._shows_key(scope):
            # The address without the key: it stays in no history, and in no log of what the page asks for.
            cookie = b"%b=%b; HttpOnly; SameSite=Strict; Path=/" % (DASHBOARD_COOKIE.encode(), self.key or b"")
            headers = [(b"location", scope["path"].encode()), (b"set-cookie", cookie), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 303, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
        elif refusal := self._refusal(scope):
            status, message = refusal
            await send_json(send, status, _error(message))
        elif self.token and not self._in_rate(scope):
            await send_json(send, 429, _error("too many requests"))
        else:
            await self._limited(scope, receive, send)

    async def _limited(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve the request; one that is too long is refused before it is read, or when it has become too long."""
        too_large = f"a request may have {self.max_body_bytes / 2**20:.0f} MB"
        if int(_header(scope, b"content-length") or 0) > self.max_body_bytes:
            await send_json(send, 413, _error(too_large))
            return
        size = 0

        async def counted() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body_bytes:
                raise TooLarge(too_large)
            return message

        try:
            await self.app(scope, counted, send)
        except TooLarge as error:
            await send_json(send, 413, _error(str(error)))

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        """Why a request may not pass, as status and sentence; None if it may."""
        key = _header(scope, b"authorization").removeprefix(b"Bearer ").decode("latin-1")
        if self.rollout_paths is None or not key.startswith(PREFIX):
            return None if self._known(scope) else (401, "a token is needed: Authorization: Bearer <token>")
        try:
            scope["rollout"] = rollout_of(key, self.token.decode() if self.token else None)
        except ValueError as error:
            return 401, str(error)
        if not self.rollout_paths.fullmatch(scope["path"]):
            return 403, "a rollout's key opens the model's routes only; give the run's token"
        return None

    def _known(self, scope: Any) -> bool:
        if self.token is None:
            return True
        if self.key and scope["method"] in ("GET", "HEAD"):
            try:
                cookies = SimpleCookie(_header(scope, b"cookie").decode("latin-1"))
            except CookieError:
                cookies = SimpleCookie()
            kept = cookies.get(DASHBOARD_COOKIE)
            if kept is not None and hmac.compare_digest(kept.value.encode("latin-1", "replace"), self.key):
                return True
        return hmac.compare_digest(_header(scope, b"authorization"), b"Bearer " + self.token)

    def _shows_key(self, scope: Any) -> bool:
        if self.key is None or scope["method"] != "GET" or not scope.get("query_string"):
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("key", [""])[0]
        return (
            hmac.compare_digest(given.encode(), self.key)
            and scope["path"].startswith("/")
            and scope["path"][1:2] != "/"
        )

    def _in_rate(self, scope: Any) -> bool:
        """A token bucket of one second per client address."""
        address, now = (scope.get("client") or ("", 0))[0], time.monotonic()
        left, before = self.buckets.get(address, (self.rate, now))
        left = min(self.rate, left + (now - before) * self.rate)
        if len(self.buckets) > 10_000:
            self.buckets.clear()
        self.buckets[address] = (max(left - 1, 0), now)
        return left >= 1


async def read_body(receive: Any) -> bytes:
    """The whole body of a request. Raises `ConnectionError` if the client left."""
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client left")
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


async def send_json(send: Any, status: int, content: Any) -> None:
    """Send one whole JSON reply; `bytes` are taken as JSON already."""
    body = content if isinstance(content, bytes) else orjson.dumps(content)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _header(scope: Any, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "access"}}


def without_keys(text: str) -> str:
    """The text with `***` for tokens and keys."""
    return _TOKEN.sub(r"\1***", text)


class HideKeys(logging.Filter):
    """A logging filter that blots out tokens and keys, in messages, in their arguments and in tracebacks."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        hidden = without_keys(message)
        if hidden != message:
            record.msg, record.args = hidden, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = without_keys(
                _FORMATTER.formatException(record.exc_info)
            )  # what formatters print, if it is set
        return True


def hide_keys() -> None:
    """Put `HideKeys` on every handler that this process has now."""
    loggers = [
        logging.root,
        *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)),
    ]
    for handler in {handler for logger in loggers for handler in logger.handlers} | {logging.lastResort}:
        if handler is not None:
            handler.addFilter(HideKeys())
