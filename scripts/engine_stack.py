"""Agent Lightning's real store server and our proxy before a fake model server, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
from agentlightning.types import AttemptedRollout, EnqueueRolloutRequest, RolloutConfig, Span

from scripts import fake_backend
from vision_rl.rollout.addresses import free_port
from vision_rl.rollout.proxy import VisionProxy
from vision_rl.rollout.store import VisionStore
from vision_rl.rollout.store_server import VisionStoreServer

T = TypeVar("T")


class Stack:
    """Store server, proxy process, and an event loop of their own to drive them from a test."""

    def __init__(
        self,
        backend: str,
        picture_dir: Path,
        proxy: type[VisionProxy] = VisionProxy,
        *,
        token: str | None = None,
        media_roots: Sequence[Path] | None = None,
    ) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.backend, self.picture_dir = backend, picture_dir
        self._http = httpx.Client(trust_env=False)  # a client's first request costs 50 ms
        self.memory = VisionStore()
        self.store = VisionStoreServer(self.memory, host="127.0.0.1", port=free_port(), token=token)
        self.call(self.store.start())
        self.proxy = proxy(self.store, picture_dir, port=free_port(), token=token, media_roots=media_roots)
        self.proxy.update_model_list([model_entry(backend)])
        self.call(self.proxy.start())

    @property
    def address(self) -> str:
        return self.proxy.access_endpoint

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def claim(self) -> tuple[AttemptedRollout, str]:
        """A running rollout and the address under which its model calls are traced."""
        rollout = self.call(self.store.start_rollout(input={}))
        return rollout, f"{self.address}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1"

    def queue(self, tasks: Sequence[Any], config: RolloutConfig | None = None) -> list[str]:
        """Put tasks into the queue, as the trainer does; returns the rollouts' ids."""
        resources = self.call(self.store.add_resources({"main_llm": self.proxy.as_resource()})).resources_id
        requests = [
            EnqueueRolloutRequest(input=task, mode="train", resources_id=resources, config=config) for task in tasks
        ]
        return [rollout.rollout_id for rollout in self.call(self.store.enqueue_many_rollouts(requests))]

    def wait(self, ids: Sequence[str], seconds: float) -> Counter[str]:
        """How many rollouts ended how; "unfinished" for those that did not in time."""
        deadline = time.monotonic() + seconds
        while True:
            done = self.call(self.store.wait_for_rollouts(rollout_ids=list(ids), timeout=0))
            if len(done) == len(ids) or time.monotonic() > deadline:
                return +Counter({"unfinished": len(ids) - len(done)}) + Counter(rollout.status for rollout in done)
            time.sleep(0.05)

    def spans(self, rollout: AttemptedRollout) -> list[Span]:
        return list(self.call(self.store.query_spans(rollout.rollout_id)))

    def stats(self) -> dict[str, Any]:
        """What the model server counted so far."""
        return dict(self._http.get(self.backend.removesuffix("/v1") + "/stats").json())

    def close(self) -> None:
        self._http.close()
        self.call(self.proxy.stop())
        self.call(self.store.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)


def model_entry(backend: str) -> Any:
    """The entry of litellm's model list as Agent Lightning's daemon writes it (agentlightning/verl/daemon.py)."""
    params = {"model": f"hosted_vllm/{fake_backend.MODEL}", "api_base": backend}
    return {"model_name": fake_backend.MODEL, "litellm_params": params}


@contextmanager
def running_stack(picture_dir: Path, **options: Any) -> Iterator[Stack]:
    """Backend, store and proxy for the length of a block."""
    with fake_backend.running(free_port()) as backend:
        stack = Stack(backend, picture_dir, **options)
        try:
            yield stack
        finally:
            stack.close()
