"""The routes of workers on the proxy's own port: claim a rollout, say that it is alive, report its reward.

A worker knows only OPENAI_BASE_URL and a key, and needs neither Agent Lightning nor this package; docs/workers.md
shows the protocol with curl. Workers and Agent Lightning's runners draw from the same queue.

- POST /v1/rollouts/claim {"worker_id", "wait_seconds"} -> 200 rollout, or 204 when there is none
- POST /v1/rollouts/heartbeat {"rollout_id", "attempt_id"} -> {"alive"}: false when the rollout was given to another
- POST /v1/rollouts/report {"rollout_id", "attempt_id", "reward", "components"} or {..., "failure"} -> {"accepted"}
- GET /v1/rollouts/{rollout_id}/images/{index} -> the bytes of a picture of the task
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vision_rl.agent.messages import sent_file
from vision_rl.agent.rollout_key import rollout_key
from vision_rl.errors import UserError
from vision_rl.rollout.chat_request import CallError, is_number
from vision_rl.rollout.http_auth import without_keys
from vision_rl.rollout.pictures import Pictures
from vision_rl.rollout.store_link import MAX_WAIT_SECONDS, StoreLink
from vision_rl.rollout.trace import MAX_REWARD, REWARD_SPAN_NAME, is_reward, reward_attributes, span

MAX_NAME = 200
MAX_COMPONENTS = 200
MAX_REASON = 300
"""Characters of a worker's or a component's name, components of a reward, characters of a failure's reason."""


class Claims:
    """What a worker may ask of the store. Methods return JSON and raise `CallError`."""

    def __init__(self, store: StoreLink, pictures: Pictures, token: str | None = None) -> None:
        self.store, self.pictures, self.token = store, pictures, token

    async def claim(self, body: Mapping[str, Any]) -> dict[str, Any] | None:
        """The next rollout and all that is needed to run it; None when there is none."""
        wait = body.get("wait_seconds", 0)
        if not is_number(wait, 0, MAX_WAIT_SECONDS):
            raise CallError(400, f"wait_seconds must be a number from 0 to {MAX_WAIT_SECONDS:g}")
        rollout = await self.store.claim(_text(body, "worker_id"), wait)
        if rollout is None:
            return None
        llm = await self.store.resource(rollout["resources_id"])
        identity = rollout["rollout_id"], rollout["attempt"]["attempt_id"]
        return {
            "rollout_id": identity[0],
            "attempt_id": identity[1],
            "task": rollout["input"],
            "mode": rollout["mode"],
            "model": llm["model"],
            "path": "/rollout/{}/attempt/{}/v1".format(*identity),
            "api_key": rollout_key(self.token, *identity),
            "sampling_parameters": llm["sampling_parameters"],
            "timeout_seconds": rollout["config"]["timeout_seconds"],
        }

    async def heartbeat(self, body: Mapping[str, Any]) -> dict[str, bool]:
        return {"alive": await self.store.heartbeat(*_identity(body))}

    async def report(self, body: Mapping[str, Any]) -> dict[str, bool]:
        """The end of a rollout: its reward with named components, or why there is none."""
        identity = _identity(body)
        if "failure" in body:
            failure = without_keys(str(body["failure"]))[:MAX_REASON]
            return {"accepted": await self.store.record(*identity, [], "failed", failure)}
        components = body.get("components", {})
        if not isinstance(components, dict) or len(components) > MAX_COMPONENTS:
            raise CallError(400, f"components must be an object of at most {MAX_COMPONENTS} numbers")
        values = {"reward": body.get("reward"), **components}
        for name, value in values.items():
            if not is_reward(value) or not 0 < len(name) <= MAX_NAME:
                raise CallError(400, f"{name[:MAX_NAME]!r} must be a finite number within +-{MAX_REWARD:g}")
        spans = [span(REWARD_SPAN_NAME, reward_attributes(values), time.time())]
        return {"accepted": await self.store.record(*identity, spans, "succeeded")}

    async def image(self, rollout_id: str, index: int) -> tuple[str, bytes]:
        """(content type, bytes) of a picture as agents send it: only what the task names, and only from the run's media
        roots."""
        paths = await self.store.image_paths(rollout_id)
        if index >= len(paths):
            raise CallError(404, f"rollout {rollout_id} has {len(paths)} pictures")
        path = Path(paths[index])
        if not self.pictures.may_read(path):
            raise CallError(403, "this picture is not in the data directory of the run")
        try:
            return await asyncio.to_thread(sent_file, str(path))
        except (OSError, UserError) as error:
            raise CallError(404, f"picture {index} of rollout {rollout_id} cannot be read") from error


def _identity(body: Mapping[str, Any]) -> tuple[str, str]:
    return _text(body, "rollout_id"), _text(body, "attempt_id")


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        raise CallError(400, f"{name} must be a text of 1 to {MAX_NAME} characters")
    return value
