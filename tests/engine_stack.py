"""Agent Lightning's real store server and our proxy before a fake model server, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from agentlightning.types import AttemptedRollout, Span

from tests import fake_backend
from vision_rl.engine.launch import free_port
from vision_rl.engine.proxy import VisionProxy
from vision_rl.engine.store import VisionStore
from vision_rl.engine.store_server import VisionStoreServer

T = TypeVar("T")


class Stack:
    """Store server, proxy process, and an event loop of their own to drive them from a test."""

    def __init__(self, backend: str, picture_dir: Path, proxy: type[VisionProxy] = VisionProxy) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.backend = backend
        self.memory = VisionStore()
        self.store = VisionStoreServer(self.memory, host="127.0.0.1", port=free_port())
        self.call(self.store.start())
        self.proxy = proxy(self.store, picture_dir, port=free_port())
        self.proxy.update_model_list([model_entry(backend)])
        self.call(self.proxy.start())

    @property
    def address(self) -> str:
        return self.proxy.server_launcher.access_endpoint

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def claim(self) -> tuple[AttemptedRollout, str]:
        """A running rollout and the address under which its model calls are traced."""
        rollout = self.call(self.store.start_rollout(input={}))
        return rollout, f"{self.address}/rollout/{rollout.rollout_id}/attempt/{rollout.attempt.attempt_id}/v1"

    def spans(self, rollout: AttemptedRollout) -> list[Span]:
        return list(self.call(self.store.query_spans(rollout.rollout_id)))

    def close(self) -> None:
        self.call(self.proxy.stop())
        self.call(self.store.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)


def model_entry(backend: str) -> Any:
    """The entry of litellm's model list as Agent Lightning's daemon writes it (agentlightning/verl/daemon.py)."""
    params = {"model": f"hosted_vllm/{fake_backend.MODEL}", "api_base": backend}
    return {"model_name": fake_backend.MODEL, "litellm_params": params}


@contextmanager
def running_stack(picture_dir: Path, proxy: type[VisionProxy] = VisionProxy, keep_alive: int = 5) -> Iterator[Stack]:
    """Backend, store and proxy for the length of a block."""
    with fake_backend.running(free_port(), keep_alive) as backend:
        stack = Stack(backend, picture_dir, proxy)
        try:
            yield stack
        finally:
            stack.close()
