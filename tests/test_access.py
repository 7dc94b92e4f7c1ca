"""The gate in front of store and proxy: tokens, sizes, rates, and logs without keys."""

from __future__ import annotations

import asyncio
import hmac
import io
import logging
from typing import Any

import pytest

from vision_rl.rollout import http_auth
from vision_rl.rollout.http_auth import Access, HideKeys, dashboard_key, is_loopback, new_token, read_body, send_json


async def served(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads all and answers."""
    await send_json(send, 200, {"read": len(await read_body(receive))})


def ask(
    gate: Access, *, token: str | None = None, parts: list[bytes] | None = None, path: str = "/x", kind: str = "http"
) -> int:
    """The status of one request whose body comes in parts and announces no length."""
    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
    scope = {"type": kind, "path": path, "method": "POST", "headers": headers, "client": ("10.0.0.1", 1)}
    queue = [{"type": "http.request", "body": part, "more_body": True} for part in parts or []] + [
        {"type": "http.request", "body": b"", "more_body": False}
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return queue.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(gate(scope, receive, send))
    return int(sent[0].get("status") or sent[0]["code"])


@pytest.mark.parametrize(
    ("token", "status"),
    [("right", 200), (None, 401), ("", 401), ("wrong", 401), ("righ", 401), ("rightx", 401), ("RIGHT", 401)],
)
def test_the_token(token: str | None, status: int) -> None:
    assert ask(Access(served, "right"), token=token) == status


def test_without_a_token_all_are_served() -> None:
    assert ask(Access(served, None)) == 200


def test_open_paths_are_exact() -> None:
    gate = Access(served, "right", open_paths=("/health",))
    assert ask(gate, path="/health") == 200
    assert ask(gate, path="/health/x") == 401
    assert ask(gate, path="/healthx") == 401


def test_websockets_are_closed() -> None:
    assert ask(Access(served, "right"), kind="websocket") == 1008


def test_the_comparison_takes_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []
    really = hmac.compare_digest

    def compare(given: bytes, wanted: bytes) -> bool:
        compared.append(wanted)
        return really(given, wanted)

    monkeypatch.setattr(http_auth.hmac, "compare_digest", compare)
    ask(Access(served, "right"), token="wrong")
    assert compared == [b"Bearer right"]


@pytest.mark.parametrize(("size", "status"), [(999, 200), (1000, 200), (1001, 413), (5000, 413)])
def test_a_body_without_an_announced_length_is_counted(size: int, status: int) -> None:
    parts = [b"x" * 100] * (size // 100) + [b"x" * (size % 100)]
    assert ask(Access(served, None, max_body_bytes=1000), parts=parts) == status


def browse(gate: Access, method: str = "GET", path: str = "/", query: str = "", cookie: str = "") -> dict[str, Any]:
    """The first message of a browser's request: status, and headers as text."""
    headers = [(b"cookie", cookie.encode())] if cookie else []
    scope = {"type": "http", "path": path, "method": method, "headers": headers, "query_string": query.encode()}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(gate({**scope, "client": ("10.0.0.1", 1)}, receive, send))
    return {"status": sent[0]["status"], **{name.decode(): value.decode() for name, value in sent[0]["headers"]}}


def test_a_browser_opens_the_dashboard_with_the_key_and_may_only_read() -> None:
    gate, key = Access(served, "right", dashboard=True), dashboard_key("right")
    opened = browse(gate, query=f"key={key}")
    assert (opened["status"], opened["location"]) == (303, "/")
    cookie, *attributes = opened["set-cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Strict"} <= set(attributes)
    assert browse(gate, path="/v1/agl/rollouts", cookie=cookie)["status"] == 200
    assert browse(gate, path="/v1/agl/rollouts", cookie=f"other=1; {cookie}")["status"] == 200
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert browse(gate, method, cookie=cookie)["status"] == 401
        assert browse(gate, method, query=f"key={key}")["status"] == 401
    assert browse(gate, path="//elsewhere/x", query=f"key={key}")["status"] == 401  # would lead to another host
    assert "right" not in opened["set-cookie"] and ask(gate, token=key) == 401


@pytest.mark.parametrize("query", ["", "key=", "key=right", "token=right", f"key={dashboard_key('wrong')}", "key=%ff"])
def test_no_other_key_opens_the_dashboard(query: str) -> None:
    gate = Access(served, "right", dashboard=True)
    assert browse(gate, query=query)["status"] == 401
    assert browse(gate, cookie=f"vision_rl_dashboard={query[4:]}")["status"] == 401
    assert browse(Access(served, "right"), query=f"key={dashboard_key('right')}")["status"] == 401  # the proxy has none


def test_more_requests_than_the_rate_are_refused() -> None:
    gate = Access(served, "right", requests_per_second=5)
    statuses = [ask(gate, token="right") for _ in range(12)]
    assert statuses[:5] == [200] * 5
    assert 429 in statuses[5:]


def test_requests_without_the_token_cost_no_memory() -> None:
    gate = Access(served, "right")
    ask(gate, token="wrong")
    assert not gate.buckets


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.0.1.1", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("10.0.0.5", False),
        ("::", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


def test_tokens_are_long_and_new() -> None:
    tokens = {new_token() for _ in range(100)}
    assert len(tokens) == 100
    assert min(map(len, tokens)) >= 43


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("Authorization: Bearer abcdef123456", ()),
        ("headers %s", ({"authorization": "Bearer abcdef123456"},)),
        ("api_key='abcdef123456'", ()),
        ("using sk-abcdef123456 now", ()),
    ],
)
def test_logs_hide_keys(message: str, arguments: tuple[Any, ...]) -> None:
    record = logging.LogRecord("x", logging.INFO, __file__, 1, message, arguments, None)
    assert HideKeys().filter(record)
    assert "abcdef123456" not in record.getMessage()
    assert "***" in record.getMessage()


def test_tracebacks_hide_keys() -> None:
    """An endpoint's own error message may repeat the key that it refuses."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(HideKeys())
    logger = logging.Logger("x")
    logger.addHandler(handler)
    try:
        raise RuntimeError("Incorrect API key provided: sk-abcdef123456")
    except RuntimeError:
        logger.exception("a rollout failed")
    assert "Incorrect API key provided: sk-***" in stream.getvalue()
    assert "abcdef" not in stream.getvalue()


def test_logs_keep_the_rest() -> None:
    record = logging.LogRecord("x", logging.INFO, __file__, 1, "rollout %s of %d", ("ro-123456789012", 7), None)
    HideKeys().filter(record)
    assert record.getMessage() == "rollout ro-123456789012 of 7"
