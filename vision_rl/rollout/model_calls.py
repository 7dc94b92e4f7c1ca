"""The way of a model call through the proxy: checked, to a model server and back; a rollout's call with one span.

Each call of a rollout adds one small span (`trace.py`) to the store inside the request: when the agent has its answer,
the trace is complete. A span that cannot be stored fails the request; it is never lost in silence.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from vision_rl.agent.messages import reply_text
from vision_rl.rollout.chat_request import CallError, ChatRequest, checked, parse_object
from vision_rl.rollout.groups import Groups
from vision_rl.rollout.pictures import Pictures, too_narrow_one
from vision_rl.rollout.sampling_fields import asked_sampling
from vision_rl.rollout.store_link import IDLE_SECONDS, StoreLink
from vision_rl.rollout.structured_output import REFUSE, flaw
from vision_rl.rollout.trace import SPAN_NAME, Turn, span, turn_attributes

CALL_SECONDS = 600.0
"""The longest model call. The agents' own time-outs are shorter; this one bounds what a lost client leaves behind."""
BLIND = "@blind"
"""Behind a model's name: all pictures of the call become black ones of the same size, whichever agent sends them."""
KNOWN_REQUESTS = 64
SPARE_LOAD = 4
"""Choices that the server of a picture may be sampling above the least busy one before another server is asked."""


@dataclass(frozen=True)
class Server:
    """A model server: the name that clients use, its base URL ending in /v1, the model's name there, its key."""

    model: str
    url: str
    name: str
    key: str | None = None


class ModelServers:
    """The model servers behind the proxy, and the connections to them."""

    def __init__(self, servers: Sequence[Server] = ()) -> None:
        self.servers = list(servers)
        self.busy: Counter[str] = Counter()  # choices under way by server
        self._session: aiohttp.ClientSession | None = None

    def choose(self, model: str, prefix: str) -> Server:
        """The server that has this conversation's beginning in its cache, unless it has far more to do than another.

        Rendezvous hashing of the first picture (or message): a server that comes or goes moves only its share.
        Raises `CallError` 404 for a model that nobody serves.
        """
        servers = [server for server in self.servers if server.model == model]
        if not servers:
            raise CallError(404, f"there is no model {model[:200]!r}; GET /v1/models lists them")
        least = min(self.busy[server.url] for server in servers)
        ranked = sorted(
            servers, key=lambda one: hashlib.blake2b(f"{prefix} {one.url}".encode(), digest_size=8).digest()
        )
        return next(one for one in ranked if self.busy[one.url] <= least + SPARE_LOAD)

    async def ask(self, request: ChatRequest, refs: Sequence[str], n: int, *, ids: bool = True) -> dict[str, Any]:
        """The reply of a server with `n` choices. Raises `CallError` for whatever is no reply."""
        body = request.body
        server = self.choose(body["model"], refs[0] if refs else str(body["messages"][:1]))
        wanted = {**body, "model": server.name}
        if ids:
            wanted |= {"return_token_ids": True, "logprobs": True}
        if n > 1:
            wanted["n"] = n
        self.busy[server.url] += n
        try:
            status, content = await self._post(server, orjson.dumps(wanted))
        except (TimeoutError, aiohttp.ClientError) as error:
            raise CallError(502, f"the model server did not answer: {type(error).__name__}: {error}") from error
        finally:
            self.busy[server.url] -= n
        try:
            reply = orjson.loads(content)
        except orjson.JSONDecodeError:
            reply = None
        if status != 200:
            message = reply.get("error", reply) if isinstance(reply, dict) else content[:500].decode(errors="replace")
            reason = too_narrow_one(request.urls)
            raise CallError(status if status >= 400 else 502, f"{reason}the model server answered {status}: {message}")
        if not isinstance(reply, dict):
            raise CallError(502, "the model server's answer is not JSON")
        return reply

    async def _post(self, server: Server, body: bytes) -> tuple[int, bytes]:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
            timeout = aiohttp.ClientTimeout(total=CALL_SECONDS, sock_connect=10)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        headers = {"content-type": "application/json"}
        if server.key:
            headers["authorization"] = f"Bearer {server.key}"
        url = f"{server.url}/chat/completions"
        # A redirect would carry the request, and the key, to an address that nobody named.
        async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
            return response.status, await response.read()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


class Calls:
    """Answers chat requests; both methods raise `CallError`, and return the request and the reply for its client."""

    def __init__(
        self, servers: ModelServers, store: StoreLink, pictures: Pictures, structured_output: str = REFUSE
    ) -> None:
        self.servers, self.store, self.pictures = servers, store, pictures
        self.structured_output = structured_output
        self.groups = Groups(store.membership, servers.ask)
        # The rollouts of a group send the same megabytes: they are read and checked once.
        self._checked: OrderedDict[bytes, tuple[ChatRequest, list[str]]] = OrderedDict()

    async def plain(self, content: bytes) -> tuple[ChatRequest, dict[str, Any]]:
        """A client without a rollout: served, not traced."""
        request = checked(parse_object(content), traced=False)
        for url in request.urls:
            self.pictures.check(url)
        reply = await self.servers.ask(request, request.urls, request.body.get("n", 1), ids=False)
        return request, reply

    async def traced(self, rollout_id: str, attempt_id: str, content: bytes) -> tuple[ChatRequest, dict[str, Any]]:
        """A call of a rollout; its span is in the store when this returns."""
        key = hashlib.blake2b(content, digest_size=16).digest()
        if key not in self._checked:
            body = parse_object(content)
            request = self._seen(checked(body, traced=True, structured_output=self.structured_output))
            self._checked[key] = request, [self.pictures.reference(url) for url in request.urls]
            if len(self._checked) > KNOWN_REQUESTS:
                self._checked.popitem(last=False)
        request, refs = self._checked[key]
        if request.untrainable and await self.store.is_training(rollout_id):
            raise CallError(400, request.untrainable)
        reply = await self.groups.reply(rollout_id, key, request, refs)
        try:
            turn = turn_of(reply, refs, request)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CallError(502, f"{type(error).__name__}: {error}") from error
        now = time.time()
        await self.store.record(rollout_id, attempt_id, [span(SPAN_NAME, turn_attributes(turn), now)], None)
        return request, for_agent(reply, request.body)

    def _seen(self, request: ChatRequest) -> ChatRequest:
        """The request as the model is to see it: with black pictures, if its model's name ends in `BLIND`."""
        name = request.body["model"]
        if not name.endswith(BLIND):
            return request
        black = ChatRequest({**request.body, "model": name.removesuffix(BLIND)}, [], request.stream, request.usage)
        for message in black.body["messages"]:
            for part in message["content"] if isinstance(message.get("content"), list) else ():
                if part["type"] in ("image_url", "video_url"):
                    part[part["type"]] = {"url": self.pictures.black(part[part["type"]]["url"])}
                    black.urls.append(part[part["type"]]["url"])
        return black


def turn_of(reply: dict[str, Any], image_refs: list[str], request: ChatRequest) -> Turn:
    """Raises `ValueError` if the server returned no token ids: without them nothing can be trained."""
    if not reply.get("choices"):
        raise ValueError("the model server answered without choices")
    choice = reply["choices"][0]
    response_ids = choice.get("token_ids")
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
        sampling=asked_sampling(request.body),
        flaw=flaw(choice["message"], request.wanted),
    )


def for_agent(reply: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    """The reply without what the agent did not ask for: 1,300 token ids cost its client more than the answer."""
    hidden = set() if body.get("return_token_ids") else {"prompt_token_ids", "token_ids"}
    choices = [{key: value for key, value in choice.items() if key not in hidden} for choice in reply["choices"]]
    if not body.get("logprobs"):
        choices = [{**choice, "logprobs": None} for choice in choices]
    return {**{key: value for key, value in reply.items() if key not in hidden}, "choices": choices}


def as_stream(reply: dict[str, Any], usage: bool) -> bytes:
    """A whole reply as the events of a stream, for clients that speak nothing else: one piece, its end, `[DONE]`."""
    common = {key: reply.get(key) for key in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
    pieces, ends = [], []
    for choice in reply["choices"]:
        message = dict(choice["message"])
        if calls := message.get("tool_calls"):
            message["tool_calls"] = [{**call, "index": index} for index, call in enumerate(calls)]
        index = choice.get("index", 0)
        pieces.append({"index": index, "delta": message, "logprobs": choice.get("logprobs"), "finish_reason": None})
        ends.append({"index": index, "delta": {}, "finish_reason": choice.get("finish_reason")})
    events = [{**common, "choices": pieces}, {**common, "choices": ends}]
    if usage:
        events.append({**common, "choices": [], "usage": reply.get("usage")})
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"
