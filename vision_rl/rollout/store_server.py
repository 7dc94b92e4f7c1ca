"""The store over HTTP: Agent Lightning's server and client, with a token, a cache, and the two calls of `store.py`.

Subclasses 0.3.0's `LightningStoreServer` and `LightningStoreClient` (store/client_server.py). Every route of theirs
stays. The calls that each rollout makes are answered before FastAPI: its two middlewares and its validation cost more
than the store itself.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
from agentlightning import LightningStoreClient, LightningStoreServer
from agentlightning.types import LLM, Attempt, AttemptedRollout, ResourcesUpdate, Span, SpanCoreFields
from agentlightning.utils.server_launcher import PythonServerLauncherArgs
from yarl import URL

from vision_rl.rollout.chat_request import CallError, is_number, parse_object
from vision_rl.rollout.http_auth import Access, read_body, send_json
from vision_rl.rollout.store import Outcome, Trace, UnknownAttempt, VisionStore, refuse_options
from vision_rl.rollout.store_link import MAX_WAIT_SECONDS
from vision_rl.rollout.store_link import STORE_PREFIX as PREFIX

MAX_CLAIMED = 1024
"""Tasks in one request."""
_PROXY_PATHS = ("/v1/rollouts/", "/v1/chat/", "/v1/models", "/rollout/")


class VisionStoreServer(LightningStoreServer):
    """Serves a `VisionStore` from a thread of the main process; elsewhere it acts as a client of itself."""

    def __init__(
        self,
        store: VisionStore,
        *,
        host: str,
        port: int,
        access_host: str | None = None,
        token: str | None = None,
        **others: Any,
    ) -> None:
        refuse_options("VisionStoreServer", others)
        self.token, self.address = token, f"http://{access_host or host}:{port}"
        super().__init__(
            store,
            launcher_args=PythonServerLauncherArgs(
                host=host,
                access_host=access_host or host,
                port=port,
                launch_mode="thread",
                healthcheck_url=PREFIX + "/health",
                log_level=logging.WARNING,
            ),
        )
        self._client: VisionStoreClient | None = None
        routes = StoreRoutes(store, self.app)  # type: ignore[arg-type]
        self.server_launcher.app = Access(routes, token, open_paths=(PREFIX + "/health",), dashboard=True)  # type: ignore[assignment]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "server_launcher": None, "address": self.endpoint, "token": self.token}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.token, self.address = state["token"], state["address"]
        self._owner_pid = -1  # on another machine the same number may be ours

    @property
    def endpoint(self) -> str:
        """The address that clients use."""
        return self.address

    async def _call_store_method(self, method_name: str, *args: Any, **kwargs: Any) -> Any:
        if self._client is None and os.getpid() != self._owner_pid:
            self._client = VisionStoreClient(self.endpoint, self.token)
        return await super()._call_store_method(method_name, *args, **kwargs)

    async def record(self, *args: Any, **kwargs: Any) -> bool:
        """See `VisionStore.record`."""
        return bool(await self._call_store_method("record", *args, **kwargs))

    async def claim(self, worker_id: str | None, wait_seconds: float = 0.0) -> AttemptedRollout | None:
        """See `VisionStore.claim`."""
        claimed: AttemptedRollout | None = await self._call_store_method("claim", worker_id, wait_seconds)
        return claimed

    async def heartbeat(self, rollout_id: str, attempt_id: str) -> bool:
        """See `VisionStore.heartbeat`."""
        return bool(await self._call_store_method("heartbeat", rollout_id, attempt_id))

    async def traces(self, rollout_ids: Sequence[str]) -> list[Trace]:
        """See `VisionStore.traces`."""
        found: list[Trace] = await self._call_store_method("traces", rollout_ids)
        return found

    async def forget(self, rollout_ids: Sequence[str]) -> None:
        """See `VisionStore.forget`."""
        await self._call_store_method("forget", rollout_ids)


class StoreRoutes:
    """An ASGI application in front of Agent Lightning's: the routes of every rollout, and the ones that are new."""

    def __init__(self, store: VisionStore, others: Callable[..., Awaitable[None]]) -> None:
        self.store = store
        self.others = others
        self.routes: dict[str, Callable[[Any], Awaitable[Any]]] = {
            PREFIX + "/queues/rollouts/dequeue": self.dequeue,
            PREFIX + "/vision/record": self.record,
            PREFIX + "/vision/heartbeat": self.heartbeat,
            PREFIX + "/vision/traces": self.traces,
            PREFIX + "/vision/forget": self.forget,
            PREFIX + "/vision/group": self.group,
            PREFIX + "/vision/pictures": self.pictures,
            PREFIX + "/vision/mode": self.mode,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_PROXY_PATHS):
            text = (
                "this is the store; workers and OpenAI clients talk to the LLM proxy, whose address the trainer printed"
            )
            await send_json(send, 404, {"error": {"message": text, "type": "store"}})
            return
        route = self.routes.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if route is None:
            await self.others(scope, receive, send)
            return
        try:
            body = await read_body(receive)
            status, content = 200, await route(parse_object(body or b"{}"))
        except UnknownAttempt as error:
            status, content = 404, {"detail": str(error)}
        except CallError as error:
            status, content = error.status, {"detail": str(error)}
        except (KeyError, TypeError, ValueError) as error:
            status, content = 400, {"detail": f"{type(error).__name__}: {error}"}
        await send_json(send, status, content)

    async def dequeue(self, body: dict[str, Any]) -> list[Any]:
        """Agent Lightning's own call; with `wait_seconds` it waits for a task to come."""
        worker_id, limit, wait = body.get("worker_id"), body.get("limit", 1), body.get("wait_seconds", 0)
        if not is_number(wait, 0, MAX_WAIT_SECONDS):
            raise ValueError(f"wait_seconds must be a number from 0 to {MAX_WAIT_SECONDS:g}")
        if not isinstance(limit, int) or not is_number(limit, 0, MAX_CLAIMED):
            raise ValueError(f"limit must be a whole number from 0 to {MAX_CLAIMED}")
        if limit == 0:
            return []
        if limit == 1:
            rollout = await self.store.claim(worker_id, wait)
            return [rollout.model_dump(mode="json")] if rollout else []
        claimed = await self.store.dequeue_many_rollouts(limit=limit, worker_id=worker_id)
        return [rollout.model_dump(mode="json") for rollout in claimed]

    async def group(self, body: dict[str, Any]) -> dict[str, Any]:
        group, members = await self.store.group(body["rollout_id"])
        return {"group": group, "members": members}

    async def pictures(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"image_paths": await self.store.image_paths(body["rollout_id"])}

    async def mode(self, body: dict[str, Any]) -> dict[str, Any]:
        return {"mode": await self.store.mode(body["rollout_id"])}

    async def record(self, body: dict[str, Any]) -> dict[str, bool]:
        spans = [SpanCoreFields.model_validate(span) for span in body["spans"]]
        identity = body["rollout_id"], body["attempt_id"]
        return {"accepted": await self.store.record(*identity, spans, body["status"], body["failure"])}

    async def heartbeat(self, body: dict[str, Any]) -> dict[str, bool]:
        return {"alive": await self.store.heartbeat(body["rollout_id"], body["attempt_id"])}

    async def traces(self, body: dict[str, Any]) -> list[Any]:
        return [
            {
                "attempt": trace.attempt and trace.attempt.model_dump(),
                "spans": [span.model_dump() for span in trace.spans],
            }
            for trace in await self.store.traces(body["rollout_ids"])
        ]

    async def forget(self, body: dict[str, Any]) -> None:
        await self.store.forget(body["rollout_ids"])


class VisionStoreClient(LightningStoreClient):
    """A client with a token that waits for tasks instead of polling and fetches each resource once."""

    def __init__(
        self,
        server_address: str,
        token: str | None = None,
        *,
        wait_seconds: float = 0.0,
        proxy_host: str | None = None,
    ) -> None:
        # 1 + 2 + 5 s of retries upstream: here a store that is away for half a minute costs no rollout.
        super().__init__(server_address, retry_delays=(0.2, 1, 2, 5, 10, 15, 15), health_retry_delays=())
        self.token = token
        self.wait_seconds = wait_seconds
        self.proxy_host = proxy_host
        self._resources: dict[str, ResourcesUpdate] = {}

    @property
    def endpoint(self) -> str:
        """The server's address."""
        return str(self.server_address).removesuffix(PREFIX)

    def __getstate__(self) -> dict[str, Any]:
        own = {"token": self.token, "wait_seconds": self.wait_seconds, "proxy_host": self.proxy_host}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.token, self.wait_seconds, self.proxy_host = state["token"], state["wait_seconds"], state["proxy_host"]
        self._resources = {}

    async def _get_session(self) -> aiohttp.ClientSession:
        session = await super()._get_session()
        if self.token:
            session.headers.update(Authorization=f"Bearer {self.token}")
        return session

    async def dequeue_rollout(self, worker_id: str | None = None) -> AttemptedRollout | None:
        """The next task, or None; also when the store cannot be reached, after a moment: runners ask again."""
        try:
            return await self.claim(worker_id, self.wait_seconds)
        except (TimeoutError, aiohttp.ClientError):
            await asyncio.sleep(0.5)
            return None

    async def claim(self, worker_id: str | None, wait_seconds: float = 0.0) -> AttemptedRollout | None:
        """See `VisionStore.claim`. Not retried: a reply that is lost leaves a task to its deadline."""
        session = await self._get_session()
        body = {"limit": 1, "worker_id": worker_id, "wait_seconds": wait_seconds}
        async with session.post(f"{self.server_address}/queues/rollouts/dequeue", json=body) as response:
            response.raise_for_status()
            claimed = await response.json()
        return AttemptedRollout.model_validate(claimed[0]) if claimed else None

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Resources are published once under an id (`add_resources`), so the newest few are remembered."""
        if resources_id not in self._resources:
            found = await super().get_resources_by_id(resources_id)
            if found is None:
                return None
            if self.proxy_host:
                for resource in found.resources.values():
                    if isinstance(resource, LLM):
                        resource.endpoint = str(URL(resource.endpoint).with_host(self.proxy_host))
            self._resources = {**dict(list(self._resources.items())[-3:]), resources_id: found}
        return self._resources[resources_id]

    async def record(
        self,
        rollout_id: str,
        attempt_id: str,
        spans: Sequence[SpanCoreFields],
        status: Outcome | None = None,
        failure: str = "",
    ) -> bool:
        """See `VisionStore.record`."""
        body = {
            "rollout_id": rollout_id,
            "attempt_id": attempt_id,
            "spans": [span.model_dump() for span in spans],
            "status": status,
            "failure": failure,
        }
        return bool((await self._ask("record", rollout_id, attempt_id, body))["accepted"])

    async def heartbeat(self, rollout_id: str, attempt_id: str) -> bool:
        """See `VisionStore.heartbeat`."""
        body = {"rollout_id": rollout_id, "attempt_id": attempt_id}
        return bool((await self._ask("heartbeat", rollout_id, attempt_id, body))["alive"])

    async def traces(self, rollout_ids: Sequence[str]) -> list[Trace]:
        """See `VisionStore.traces`."""
        found = await self._request_json("post", "/vision/traces", json={"rollout_ids": list(rollout_ids)})
        return [
            Trace(
                Attempt.model_validate(one["attempt"]) if one["attempt"] else None,
                [Span.model_validate(span) for span in one["spans"]],
            )
            for one in found
        ]

    async def forget(self, rollout_ids: Sequence[str]) -> None:
        """See `VisionStore.forget`."""
        await self._request_json("post", "/vision/forget", json={"rollout_ids": list(rollout_ids)})

    async def _ask(self, call: str, rollout_id: str, attempt_id: str, body: dict[str, Any]) -> Any:
        try:
            return await self._request_json("post", f"/vision/{call}", json=body)
        except aiohttp.ClientResponseError as error:
            if error.status == 404:
                raise UnknownAttempt(f"there is no attempt {attempt_id} of rollout {rollout_id}") from error
            raise
