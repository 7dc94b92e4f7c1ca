"""The routes of workers on the proxy's own port: claim a rollout, say that it is alive, report its reward.

A worker knows only OPENAI_BASE_URL and a key, and needs neither Agent Lightning nor this package; docs/workers.md
shows the protocol with curl. Workers and Agent Lightning's runners draw from the same queue.

- POST /v1/rollouts/claim {"worker_id", "wait_seconds"} -> 200 rollout, or 204 when there is none
- POST /v1/rollouts/heartbeat {"rollout_id", "attempt_id"} -> {"alive"}: false when the rollout was given to another
- POST /v1/rollouts/report {"rollout_id", "attempt_id", "reward", "components"} or {..., "failure"} -> {"accepted"}
- GET /v1/rollouts/{rollout_id}/images/{index} -> the bytes of a picture of the task
"""

from __future__ import annotations

import logging
import math
import mimetypes
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from agentlightning import LLM, emit_reward

from vision_rl.engine.access import read_body, send_json, without_keys
from vision_rl.engine.calls import CallError
from vision_rl.engine.store import UnknownAttempt

logger = logging.getLogger(__name__)

PREFIX = "/v1/rollouts"
_IMAGE = re.compile(PREFIX + r"/([^/]+)/images/(\d+)")


class ClaimRoutes:
    """ASGI middleware of the proxy that answers `/v1/rollouts/...` from the store."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.posts: dict[str, Callable[..., Awaitable[tuple[int, Any]]]] = {
            PREFIX + "/claim": self.claim,
            PREFIX + "/heartbeat": self.heartbeat,
            PREFIX + "/report": self.report,
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX + "/"):
            await self.app(scope, receive, send)
            return
        from vision_rl.engine.proxy import active_proxy

        proxy = active_proxy()
        try:
            image = _IMAGE.fullmatch(scope["path"])
            if image and scope["method"] == "GET":
                await self.image(proxy, image[1], int(image[2]), send)
                return
            post = self.posts.get(scope["path"]) if scope["method"] == "POST" else None
            if post is None:
                raise CallError(404, f"there is no {scope['method']} {scope['path']}")
            body = await read_body(receive)
            status, content = await post(proxy, orjson.loads(body) if body else {})
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            status = 404 if isinstance(error, UnknownAttempt) else 400
            content = _error(f"{type(error).__name__}: {error}")
        except CallError as error:
            status, content = error.status, _error(str(error))
        except ConnectionError:
            return
        except Exception as error:
            logger.exception("%s failed", scope["path"])
            status, content = 503, _error(f"the store did not answer: {type(error).__name__}")
        await send_json(send, status, content)

    async def claim(self, proxy: Any, body: dict[str, Any]) -> tuple[int, Any]:
        """The next rollout and all that is needed to run it."""
        rollout = await proxy.store.claim(str(body["worker_id"]), float(body.get("wait_seconds", 0)))
        if rollout is None:
            return 204, b""
        resources = await proxy.store.get_resources_by_id(rollout.resources_id)
        llm = next(resource for resource in resources.resources.values() if isinstance(resource, LLM))
        return 200, {
            "rollout_id": rollout.rollout_id,
            "attempt_id": rollout.attempt.attempt_id,
            "task": rollout.input,
            "mode": rollout.mode,
            "model": llm.model,
            "path": f"/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1",
            "sampling_parameters": llm.sampling_parameters,
            "timeout_seconds": rollout.config.timeout_seconds,
        }

    async def heartbeat(self, proxy: Any, body: dict[str, Any]) -> tuple[int, Any]:
        return 200, {"alive": await proxy.store.heartbeat(body["rollout_id"], body["attempt_id"])}

    async def report(self, proxy: Any, body: dict[str, Any]) -> tuple[int, Any]:
        """The end of a rollout: its reward with named components, or why there is none."""
        identity = body["rollout_id"], body["attempt_id"]
        if "failure" in body:
            failure = without_keys(str(body["failure"]))[:300]
            return 200, {"accepted": await proxy.store.record(*identity, [], "failed", failure)}
        values = {"reward": body["reward"], **body.get("components", {})}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number")
        now = time.time()
        span = emit_reward(
            {name: float(value) for name, value in values.items()}, primary_key="reward", propagate=False
        )
        span = span.model_copy(update={"start_time": now, "end_time": now})
        return 200, {"accepted": await proxy.store.record(*identity, [span], "succeeded")}

    async def image(self, proxy: Any, rollout_id: str, index: int, send: Any) -> None:
        """Send a picture of a task; only what the task names, and only from the run's media roots."""
        # Not `get_rollout_by_id`: upstream's server answers 500 for one that is not there (client_server.py:622).
        found = await proxy.store.query_rollouts(rollout_id_in=[rollout_id])
        if not found:
            raise CallError(404, f"there is no rollout {rollout_id}")
        paths = found[0].input["image_paths"]
        if index >= len(paths):
            raise CallError(404, f"rollout {rollout_id} has {len(paths)} pictures")
        path = Path(paths[index])
        if not proxy.may_read(path):
            raise CallError(403, "this picture is not in the data directory of the run")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CallError(404, f"picture {index} of rollout {rollout_id} cannot be read") from error
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        headers = [(b"content-type", kind.encode()), (b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "claim"}}
