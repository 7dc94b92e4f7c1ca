"""The way of a traced model call through the proxy: to a vLLM server and back, one span, no detour.

litellm costs 8 to 20 ms of CPU per call (its hooks, its logging threads, four copies of a megapixel in base64),
cannot tell which server has a picture's prefix cached, and turns some faults of the server into a crash of its own.
So the calls of rollouts to vLLM servers are answered here, in front of Agent Lightning's proxy. All else (clients
without a rollout, other providers, Anthropic's protocol, streams) passes on to litellm as before.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import orjson

from vision_rl.conversation import reply_text
from vision_rl.engine.access import read_body, send_json
from vision_rl.engine.store import UnknownAttempt
from vision_rl.engine.trace import Turn

logger = logging.getLogger(__name__)

CALL_SECONDS = 600.0
"""The longest model call. The agents' own time-outs are shorter; this one bounds what a lost client leaves behind."""
SPARE_LOAD = 4
"""Calls that the server of a picture may have above the least busy one before another server is asked."""
_PATH = re.compile(r"/rollout/([^/]+)/attempt/([^/]+)(?:/v1)?/chat/completions/?")


class CallError(Exception):
    """What the client is told: an HTTP status and one sentence."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class CallRoute:
    """ASGI middleware of the proxy. `proxy()` is asked per call, because the proxy starts after its middlewares."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.session: aiohttp.ClientSession | None = None
        self.busy: Counter[str] = Counter()  # calls under way by server

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        called = _PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if called is None:
            await self.app(scope, receive, send)
            return
        from vision_rl.engine.proxy import active_proxy

        proxy = active_proxy()
        try:
            body = await read_body(receive)
        except ConnectionError:
            return
        request = _parsed(body)
        servers = proxy.servers(request.get("model")) if request is not None else []
        if request is None or request.get("stream") or not servers:
            await self.app(scope, _replay(body, receive), send)
            return
        call = asyncio.create_task(self._answer(proxy, called[1], called[2], request, servers))
        left = asyncio.create_task(_disconnected(receive))
        await asyncio.wait((call, left), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if not call.done():  # the client is gone: the server must not go on generating for nobody
            call.cancel()
            return
        status, content = await call
        await send_json(send, status, content)

    async def _answer(
        self, proxy: Any, rollout_id: str, attempt_id: str, request: dict[str, Any], servers: Sequence[tuple[str, str]]
    ) -> tuple[int, Any]:
        """(status, JSON) for the client. The span is in the store before this returns 200."""
        try:
            images = image_urls(request["messages"])
            refs = [proxy.reference(url) for url in images]
            server, model = self._server(servers, refs or [str(request["messages"][:1])])
            wanted = {**request, "model": model, "return_token_ids": True, "logprobs": True}
            reply = await self._ask(server, wanted)
            await proxy.trace(rollout_id, attempt_id, turn_of(reply, refs))
        except UnknownAttempt as error:
            return 404, _error(str(error))
        except CallError as error:
            return error.status, _error(str(error))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            return 502, _error(f"{type(error).__name__}: {error}")
        except Exception as error:  # the store is away: the client may try again, the call is not lost in silence
            logger.exception("a call of rollout %s could not be traced", rollout_id)
            return 503, _error(f"the call could not be traced: {type(error).__name__}")
        return 200, _for_agent(reply, request)

    def _server(self, servers: Sequence[tuple[str, str]], prefix: Sequence[str]) -> tuple[str, str]:
        """The server that has this conversation's beginning in its cache, unless it has far more to do than another.

        Rendezvous hashing of the first picture (or message): a server that comes or goes moves only its share.
        """
        least = min(self.busy[server] for server, _ in servers)
        ranked = sorted(
            servers, key=lambda one: hashlib.blake2b(f"{prefix[0]} {one[0]}".encode(), digest_size=8).digest()
        )
        return next(one for one in ranked if self.busy[one[0]] <= least + SPARE_LOAD)

    async def _ask(self, server: str, request: dict[str, Any]) -> dict[str, Any]:
        if self.session is None:
            from vision_rl.engine.proxy import BACKEND_IDLE_SECONDS

            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=BACKEND_IDLE_SECONDS)
            self.session = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=10)
            )
        self.busy[server] += 1
        try:
            async with self.session.post(
                f"{server}/chat/completions",
                data=orjson.dumps(request),
                headers={"content-type": "application/json"},
            ) as response:
                content = await response.read()
                status = response.status
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise CallError(502, f"the model server did not answer: {type(error).__name__}: {error}") from error
        finally:
            self.busy[server] -= 1
        reply = _parsed(content)
        if status != 200:
            message = reply.get("error", reply) if reply else content[:500].decode(errors="replace")
            raise CallError(status, f"the model server answered {status}: {message}")
        if reply is None:
            raise CallError(502, "the model server's answer is not JSON")
        return reply


def image_urls(messages: Sequence[dict[str, Any]]) -> list[str]:
    """The addresses of all pictures of a conversation, in order."""
    parts = [part for message in messages if isinstance(message.get("content"), list) for part in message["content"]]
    return [part["image_url"]["url"] for part in parts if part.get("type") == "image_url"]


def turn_of(reply: dict[str, Any], image_refs: list[str]) -> Turn:
    """Raises `ValueError` if the server returned no token ids: without them nothing can be trained."""
    if not reply.get("choices"):
        raise ValueError("the model server answered without choices")
    choice = reply["choices"][0]
    response_ids = choice.get("token_ids") or (choice.get("provider_specific_fields") or {}).get("token_ids")
    if not reply.get("prompt_token_ids") or response_ids is None:
        raise ValueError("the model server returned no token ids; it must be vLLM >= 0.10.2 or an equal")
    logprobs = [token["logprob"] for token in (choice.get("logprobs") or {}).get("content") or []]
    if len(logprobs) != len(response_ids):
        raise ValueError(f"the model server returned {len(logprobs)} log-probabilities for {len(response_ids)} tokens")
    return Turn(
        prompt_ids=reply["prompt_token_ids"],
        response_ids=response_ids,
        logprobs=logprobs,
        image_refs=image_refs,
        text=reply_text(choice["message"]),
        finish_reason=choice.get("finish_reason") or "",
    )


def _for_agent(reply: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """The reply without what the agent did not ask for: 1,300 token ids cost its client more than the answer."""
    if not request.get("return_token_ids"):
        reply.pop("prompt_token_ids", None)
        for choice in reply["choices"]:
            choice.pop("token_ids", None)
    if not request.get("logprobs"):
        for choice in reply["choices"]:
            choice["logprobs"] = None
    return reply


def _parsed(content: bytes) -> dict[str, Any] | None:
    """A JSON object, or None for anything else."""
    try:
        parsed = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    return parsed if isinstance(parsed, dict) else None


def _replay(body: bytes, receive: Any) -> Callable[[], Awaitable[Any]]:
    """A `receive` that gives the body once more, then what comes after it."""
    given = False

    async def again() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "proxy", "code": None}}
