"""A small OpenAI-compatible server for tests: says what a function says, and fails where it is asked to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from baselines.constant import running

MODEL = "fake"


@dataclass
class FakeServer:
    """reply(body) is what it answers, as text or as a message; fault(number of the request, body) is what it fails with
    (`error`), or None."""

    reply: Callable[[dict[str, Any]], str | dict[str, Any]]
    fault: Callable[[int, dict[str, Any]], tuple[int, dict[str, str], dict[str, Any]] | None] = lambda number, body: (
        None
    )
    delay: float = 0.0
    lists_models: bool = True
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def questions(self) -> list[str]:
        """The text of every request, in order."""
        return [body["messages"][-1]["content"][-1]["text"] for body in self.requests]


def error(status: int, message: str, *, code: str = "", **headers: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """A fault in OpenAI's form; header names with `_` for `-`."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, names, {"error": {"message": message, "type": "error", "code": code}}


@contextlib.contextmanager
def fake_openai(
    reply: Callable[[dict[str, Any]], str | dict[str, Any]] | str = "ok", **options: Any
) -> Iterator[FakeServer]:
    """A running server; `options` are fields of `FakeServer`."""
    fake = FakeServer((lambda body: reply) if isinstance(reply, str) else reply, **options)
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> Any:
        if not fake.lists_models:
            return JSONResponse({"detail": "Not Found"}, 404)
        return {"object": "list", "data": [{"id": MODEL, "object": "model", "created": 0, "owned_by": "tests"}]}

    @app.post("/v1/chat/completions")
    def completions(body: dict[str, Any], request: Request) -> Any:
        with fake._lock:
            number = len(fake.requests)
            fake.requests.append(body)
            fake.times.append(time.monotonic())
            fake.under_way += 1
            fake.most_under_way = max(fake.most_under_way, fake.under_way)
        try:
            time.sleep(fake.delay)
            if (fault := fake.fault(number, body)) is not None:
                # Not JSONResponse, which cannot send what is JSON but no UTF-8.
                return Response(json.dumps(fault[2]), fault[0], fault[1], "application/json")
            answer = fake.reply(body)
            message = {"content": answer} if isinstance(answer, str) else answer
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
            return {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": MODEL,
                "choices": [choice],
                "usage": usage,
            }
        finally:
            with fake._lock:
                fake.under_way -= 1

    with running(app) as url:
        fake.url = url
        yield fake
