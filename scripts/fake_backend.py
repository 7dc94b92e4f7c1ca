"""A model server without a model: OpenAI's chat route as vLLM >= 0.10.2 answers it, with ids and log-probabilities.

`python scripts/fake_backend.py PORT [KEEP_ALIVE_SECONDS]` serves it under uvicorn and uvloop as vLLM does. Words in the
last message choose a fault: FAULT500, FAULT400, HANG, SLEEP<seconds>, NOCHOICES, NOTOKENS, BADJSON, TRUNCATED, REDIRECT; of
requests for several choices FAULTN fails all and CUT cuts off all choices but the first. DICE answers by chance, JSON
with an object. TOOL calls the first of the request's tools, once in a conversation.
`/stats` counts; `/block?<seconds>` holds the event loop, as a large image does in a real server.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MODEL = "fake/vlm"
RESPONSE_IDS = [7, 8, 9, 2]
LOGPROBS = [-0.1, -0.2, -0.3, -0.4]
REPLY = "red"
ARGUMENTS = '{"x1": 0.25, "y1": 0.25, "x2": 0.75, "y2": 0.75}'

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_stats: dict[str, Any] = {"requests": 0, "last": None, "messages": None, "n": []}


def prompt_ids(words: int) -> list[int]:
    """What the server claims to have read: long enough for a picture of a megapixel, most of it one repeated id."""
    return [100, 101, *([151655] * 1296), *range(200, 200 + words)]


def reply(body: dict[str, Any], text: str) -> dict[str, Any]:
    """The reply to a request, with what the request asked for and nothing else, as vLLM does it."""
    prompt = prompt_ids(len(text.split()))
    choices = [_choice(body, text, index) for index in range(body.get("n", 1))]
    if "TOOL" in text and body.get("tools"):
        function = {"name": body["tools"][0]["function"]["name"], "arguments": ARGUMENTS}
        for choice in choices:
            call = {"id": f"call-{time.time_ns()}", "type": "function", "function": function}
            choice["message"] |= {"content": None, "tool_calls": [call]}
            choice["finish_reason"] = "tool_calls"
    answer = {
        "id": f"chatcmpl-{time.time_ns()}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": choices,
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": 4, "total_tokens": len(prompt) + 4},
    }
    if body.get("return_token_ids"):
        answer["prompt_token_ids"] = prompt
    return answer


def _choice(body: dict[str, Any], text: str, index: int) -> dict[str, Any]:
    """RESPONSE_IDS, or with DICE one token of six by chance; with CUT all but the first are cut off."""
    ids = [random.randrange(10, 16)] if "DICE" in text else RESPONSE_IDS
    content = f"face {ids[0] - 9}" if "DICE" in text else '{"color": "red"}' if "JSON" in text else REPLY
    choice: dict[str, Any] = {
        "index": index,
        "message": {"role": "assistant", "content": content, "tool_calls": []},
        "finish_reason": "abort" if "CUT" in text and index else "stop",
    }
    if body.get("logprobs"):
        tokens = zip(ids, LOGPROBS[: len(ids)], strict=True)
        choice["logprobs"] = {
            "content": [{"token": f"t{id}", "logprob": p, "bytes": [116], "top_logprobs": []} for id, p in tokens]
        }
    if body.get("return_token_ids"):
        choice["token_ids"] = ids
    return choice


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The server: bare ASGI, so that benchmarks measure everything but it."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/block":
        time.sleep(float(scope["query_string"]))
    if scope["path"] != "/v1/chat/completions":
        await _send(send, 200, json.dumps(_stats).encode())
        return
    body = json.loads(await _body(receive))
    text = _text(body["messages"][-1]["content"])
    _stats["requests"] += 1
    _stats["last"] = {key: value for key, value in body.items() if key != "messages"}
    _stats["messages"] = body["messages"]
    _stats["n"].append(body.get("n", 1))
    if "HANG" in text:
        await asyncio.sleep(3600)
    if wanted := re.search(r"SLEEP([\d.]+)", text):
        await asyncio.sleep(float(wanted[1]))
    for word, status in (("FAULT500", 500), ("FAULT400", 400), ("FAULTN", 500 if body.get("n", 1) > 1 else 0)):
        if word in text and status:
            await _send(send, status, json.dumps({"error": {"message": "boom", "type": "x", "code": status}}).encode())
            return
    if "REDIRECT" in text and not scope["query_string"]:
        await _send(send, 307, b"{}", (b"location", b"/v1/chat/completions?followed"))
        return
    answer = reply(body if "NOTOKENS" not in text else {**body, "return_token_ids": False}, text)
    if "NOCHOICES" in text:
        answer["choices"] = []
    content = json.dumps(answer).encode()
    if "BADJSON" in text:
        content = b"{not json"
    if "TRUNCATED" in text:  # the connection ends in the middle of the body, as when the server dies
        headers = [(b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content[: len(content) // 2], "more_body": True})
        raise ConnectionError("cut on request")
    await _send(send, 200, content)


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _text(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


async def _send(send: Send, status: int, content: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(content)), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


@contextmanager
def running(port: int, keep_alive_seconds: int = 5) -> Iterator[str]:
    """The server in a process of its own; yields its base URL, ending in /v1."""
    import httpx

    process = subprocess.Popen([sys.executable, str(Path(__file__)), str(port), str(keep_alive_seconds)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/stats", trust_env=False)
                break
            except httpx.TransportError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the fake backend did not start on port {port}") from None
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=10)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="critical",
        loop="uvloop",
        timeout_keep_alive=int(sys.argv[2]) if len(sys.argv) > 2 else 5,
        timeout_graceful_shutdown=1,
    )
