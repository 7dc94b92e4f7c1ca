"""The proxy's own client of the store: the few calls that it makes, without Agent Lightning's import of 1.3 core seconds."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from vision_rl.rollout.chat_request import CallError

STORE_PREFIX = "/v1/agl"
RETRY_DELAYS = (0.2, 1, 2, 5, 10, 15, 15)
"""Seconds between tries: a store that is away for half a minute costs no rollout."""
IDLE_SECONDS = 3
"""uvicorn closes idle connections after 5 s; whoever gives them up earlier never writes into a closing one."""
REQUEST_SECONDS = 60.0
MAX_WAIT_SECONDS = 20.0
"""The longest that a claim may wait for a task."""
_KEPT_RESOURCES, _KEPT_MODES = 8, 4096


@dataclass(frozen=True)
class Membership:
    """A group of rollouts of one row and step, with the ids of those that are not over."""

    group: str
    members: list[str]


class StoreLink:
    """Speaks to the store at `url` with the run's token. Lives in one event loop."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/") + STORE_PREFIX
        self.headers = {"content-type": "application/json"}
        if token:
            self.headers["authorization"] = f"Bearer {token}"
        self._session: aiohttp.ClientSession | None = None
        self._resources: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._training: OrderedDict[str, bool] = OrderedDict()

    async def claim(self, worker_id: str, wait_seconds: float) -> dict[str, Any] | None:
        """The next rollout with its attempt. Not retried: a reply that is lost leaves a task to its deadline."""
        body = {"limit": 1, "worker_id": worker_id, "wait_seconds": wait_seconds}
        claimed = await self._once("POST", "/queues/rollouts/dequeue", body)
        return dict(claimed[0]) if claimed else None

    async def heartbeat(self, rollout_id: str, attempt_id: str) -> bool:
        """False if the attempt is over. Raises `CallError` 404 if there is none."""
        body = {"rollout_id": rollout_id, "attempt_id": attempt_id}
        return bool((await self._ask("/vision/heartbeat", body))["alive"])

    async def record(
        self, rollout_id: str, attempt_id: str, spans: list[dict[str, Any]], status: str | None, failure: str = ""
    ) -> bool:
        """See `VisionStore.record`. Raises `CallError` 404 if there is no such attempt."""
        body = {
            "rollout_id": rollout_id,
            "attempt_id": attempt_id,
            "spans": spans,
            "status": status,
            "failure": failure,
        }
        return bool((await self._ask("/vision/record", body))["accepted"])

    async def membership(self, rollout_id: str) -> Membership | None:
        """The group of a rollout; None for one that was queued alone. Raises `CallError` 404 for an unknown one."""
        found = await self._ask("/vision/group", {"rollout_id": rollout_id})
        return Membership(found["group"], found["members"]) if found["group"] else None

    async def is_training(self, rollout_id: str) -> bool:
        """Whether what a rollout does is trained on. Raises `CallError` 404 for an unknown one."""
        if rollout_id not in self._training:
            self._training[rollout_id] = (await self._ask("/vision/mode", {"rollout_id": rollout_id}))[
                "mode"
            ] == "train"
            if len(self._training) > _KEPT_MODES:
                self._training.popitem(last=False)
        return self._training[rollout_id]

    async def image_paths(self, rollout_id: str) -> list[str]:
        """The pictures of a rollout's task. Raises `CallError` 404 for an unknown rollout."""
        return list((await self._ask("/vision/pictures", {"rollout_id": rollout_id}))["image_paths"])

    async def resource(self, resources_id: str) -> dict[str, Any]:
        """The model's resource (its name and sampling parameters); published once under an id, so remembered."""
        if resources_id not in self._resources:
            found = await self._once("GET", f"/resources/{resources_id}")
            llm = next(one for one in found["resources"].values() if "llm" in str(one["resource_type"]))
            self._resources[resources_id] = llm
            if len(self._resources) > _KEPT_RESOURCES:
                self._resources.popitem(last=False)
        return self._resources[resources_id]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, path: str, body: dict[str, Any]) -> Any:
        """POST, tried again while the store is away."""
        for delay in (*RETRY_DELAYS, None):
            try:
                return await self._once("POST", path, body)
            except (TimeoutError, aiohttp.ClientError):
                if delay is None:
                    raise
            await asyncio.sleep(delay)

    async def _once(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
            timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self.headers)
        data = None if body is None else orjson.dumps(body)
        async with self._session.request(method, self.url + path, data=data) as response:
            content = await response.read()
            if response.status in (400, 404):
                raise CallError(response.status, str(orjson.loads(content).get("detail")))
            response.raise_for_status()
            return orjson.loads(content)
