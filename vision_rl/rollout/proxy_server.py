"""The LLM proxy's process: `python -m vision_rl.rollout.proxy_server`, started and fed by `proxy.VisionProxy`.

An allow-list of routes and nothing behind it: models, chat completions and responses (plain, and under a rollout's own
path), the workers' routes, health. It imports neither Agent Lightning nor torch, and starts in a second. Its configuration comes
as one JSON line on standard input (a token on the command line could be read by all), later lines change it, and the
end of the input, which is the end of the trainer, ends it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vision_rl.agent.rollout_key import ATTEMPT_HEADER, ROLLOUT_HEADER
from vision_rl.rollout.chat_request import CallError, ChatRequest, parse_object
from vision_rl.rollout.http_auth import Access, TooLarge, hide_keys, read_body
from vision_rl.rollout.model_calls import Calls, ModelServers, Server, as_stream
from vision_rl.rollout.pictures import Pictures
from vision_rl.rollout.responses import chat_body, events, response
from vision_rl.rollout.store_link import StoreLink
from vision_rl.rollout.worker_api import Claims

HEALTH = "/health/liveliness"
READY = b"ready\n"
MODEL_PATHS = re.compile(r"(?:/rollout/[^/]+/attempt/[^/]+)?(?:/v1)?/(?:models|chat/completions|responses)")
"""What the key of a rollout opens."""

logger = logging.getLogger(__name__)
Endpoint = Callable[[Request], Awaitable[Response]]


class ProxyApp:
    """The routes of a proxy. config: store, store_token, token, picture_dir, media_roots, servers,
    structured_output."""

    def __init__(self, config: dict[str, Any]) -> None:
        roots = config["media_roots"]
        pictures = Pictures(Path(config["picture_dir"]), None if roots is None else [Path(root) for root in roots])
        self.store = StoreLink(config["store"], config["store_token"])
        self.servers = ModelServers()
        self.calls = Calls(self.servers, self.store, pictures, config["structured_output"])
        self.claims = Claims(self.store, pictures, config["token"])
        self.change(config)
        traced = "/rollout/{rollout_id}/attempt/{attempt_id}"
        routes = [
            Route(HEALTH, _with_status(self.health), methods=["GET"]),
            Route("/v1/models", _with_status(self.models), methods=["GET"]),
            Route(traced + "/models", _with_status(self.models), methods=["GET"]),
            Route(traced + "/v1/models", _with_status(self.models), methods=["GET"]),
            Route("/v1/chat/completions", _with_status(self.chat), methods=["POST"]),
            Route(traced + "/chat/completions", _with_status(self.chat), methods=["POST"]),
            Route(traced + "/v1/chat/completions", _with_status(self.chat), methods=["POST"]),
            Route("/v1/responses", _with_status(self.responses), methods=["POST"]),
            Route(traced + "/responses", _with_status(self.responses), methods=["POST"]),
            Route(traced + "/v1/responses", _with_status(self.responses), methods=["POST"]),
            Route("/v1/rollouts/claim", _with_status(self.claim), methods=["POST"]),
            Route("/v1/rollouts/heartbeat", _with_status(self.heartbeat), methods=["POST"]),
            Route("/v1/rollouts/report", _with_status(self.report), methods=["POST"]),
            Route("/v1/rollouts/{rollout_id}/images/{index:int}", _with_status(self.image), methods=["GET"]),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _no_route}, lifespan=self._lifespan)
        app.router.redirect_slashes = False
        self.app = Access(app, config["token"], open_paths=(HEALTH,), rollout_paths=MODEL_PATHS)

    def change(self, config: dict[str, Any]) -> None:
        """Other model servers ("servers"), or other weights in them ("weights")."""
        if "servers" in config:
            self.servers.servers = [Server(**server) for server in config["servers"]]
        self.calls.groups.forget_choices()

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        yield
        await self.servers.close()
        await self.store.close()

    async def health(self, request: Request) -> Response:
        return _json("alive")

    async def models(self, request: Request) -> Response:
        names = dict.fromkeys(server.model for server in self.servers.servers)
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "vision-rl"} for name in names]
        return _json({"object": "list", "data": models})

    async def chat(self, request: Request) -> Response:
        asked, reply = await self._call(request, await read_body(request.receive))
        if asked.stream:
            return Response(as_stream(reply, asked.usage), media_type="text/event-stream")
        return _json(reply)

    async def responses(self, request: Request) -> Response:
        wanted = await _body(request)
        asked, reply = await self._call(request, orjson.dumps(chat_body(wanted)))
        answer = response(reply, wanted)
        return Response(events(answer), media_type="text/event-stream") if asked.stream else _json(answer)

    async def _call(self, request: Request, content: bytes) -> tuple[ChatRequest, dict[str, Any]]:
        """A call whose client leaves is given up: the server must not go on generating for nobody."""
        rollout = rollout_of_call(request)
        work = self.calls.traced(*rollout, content) if rollout else self.calls.plain(content)
        call = asyncio.create_task(work)
        left = asyncio.create_task(_disconnected(request))
        await asyncio.wait((call, left), return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if not call.done():
            call.cancel()
            raise ConnectionError("the client left")
        return await call

    async def claim(self, request: Request) -> Response:
        rollout = await self.claims.claim(await _body(request))
        return Response(status_code=204) if rollout is None else _json(rollout)

    async def heartbeat(self, request: Request) -> Response:
        return _json(await self.claims.heartbeat(await _body(request)))

    async def report(self, request: Request) -> Response:
        return _json(await self.claims.report(await _body(request)))

    async def image(self, request: Request) -> Response:
        kind, content = await self.claims.image(request.path_params["rollout_id"], request.path_params["index"])
        return Response(content, media_type=kind)


def rollout_of_call(request: Request) -> tuple[str, str] | None:
    """(rollout, attempt) of a call by its path, its key or its headers; None for a call without any of them.

    Raises `CallError` if they name different ones, or only half of one.
    """
    path, headers = request.path_params, request.headers
    named = {request.scope.get("rollout")}
    if path:
        named.add((path["rollout_id"], path["attempt_id"]))
    if ROLLOUT_HEADER in headers or ATTEMPT_HEADER in headers:
        named.add((headers.get(ROLLOUT_HEADER, ""), headers.get(ATTEMPT_HEADER, "")))
    named.discard(None)
    if len(named) > 1:
        raise CallError(400, "path, key and headers of this call name different rollouts; give one of them")
    rollout = named.pop() if named else None
    if rollout and not all(rollout):
        raise CallError(400, f"a call of a rollout has both headers, {ROLLOUT_HEADER} and {ATTEMPT_HEADER}")
    return rollout


def _with_status(endpoint: Endpoint) -> Endpoint:
    """The endpoint with every failure as a status and a sentence, in OpenAI's form."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except CallError as error:
            return _error(error.status, str(error))
        except ConnectionError:  # the client left; nobody reads this
            return _error(499, "the client left")
        except TooLarge:
            raise
        except Exception as error:  # the store is away: the client may try again, nothing is lost in silence
            logger.exception("%s failed", request.url.path)
            return _error(503, f"the store did not answer: {type(error).__name__}")

    return answer


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = f"{request.method} {request.url.path[:200]} is not served here; docs/workers.md lists the routes that are"
    return _error(404 if error.status_code == 405 else error.status_code, text)


async def _body(request: Request) -> dict[str, Any]:
    return parse_object(await read_body(request.receive) or b"{}")


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(status: int, message: str) -> Response:
    return _json({"error": {"message": message, "type": "proxy", "code": None}}, status)


def _json(content: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def follow(lines: Any, loop: asyncio.AbstractEventLoop, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply every line that comes; end the process with its input. Runs in a thread, so that a busy loop ends too."""
    for line in lines:
        loop.call_soon_threadsafe(change, orjson.loads(line))
    os._exit(0)


class _Announced(uvicorn.Server):
    """Says on standard output when it serves."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        os.write(1, READY)


async def serve(config: dict[str, Any]) -> None:
    proxy = ProxyApp(config)
    follower = threading.Thread(
        target=follow, args=(sys.stdin.buffer, asyncio.get_running_loop(), proxy.change), daemon=True
    )
    follower.start()
    options = uvicorn.Config(
        proxy.app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=1
    )
    server = _Announced(options)
    await server.serve([socket.socket(fileno=config["socket"])])


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    hide_keys()
    asyncio.run(serve(orjson.loads(sys.stdin.buffer.readline())))


if __name__ == "__main__":
    main()
