"""Move weights from the actor to a separate model server on one machine without GPUs, through a file in memory.

verl's asynchronous mode sends weights by a checkpoint engine; its own ones (nccl, nixl, mooncake) need accelerators or a
network card. Registered as backend "file" through `rollout.checkpoint_engine.custom_backend_module`.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from vision_rl.errors import UserError
from vision_rl.platform.rendezvous import workers_meet_by_file

MEMORY = Path("/dev/shm")
WAIT_SECONDS = 300.0


@CheckpointEngineRegistry.register("file")
class FileTransfer(CheckpointEngine):
    """The master rank of the actor writes, every rollout worker reads; the file goes once all have read it."""

    def __init__(self, bucket_size: int, is_master: bool = False, **_kwargs: Any) -> None:
        # A process that receives weights joins its group right after this (checkpoint_engine/base.py:337 and 351).
        workers_meet_by_file()
        self.is_master = is_master
        self.path = Path()

    def prepare(self) -> dict[str, Any]:
        if not self.is_master:
            return {}
        folder = tempfile.mkdtemp(prefix="vision_rl_weights_", dir=MEMORY if MEMORY.is_dir() else None)
        return {"path": f"{folder}/weights.safetensors"}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        path = next(one["path"] for one in metadata if one)
        return {"path": [path] * actor_wg_world_size}, {"path": [path] * rollout_world_size}

    def init_process_group(self, path: str) -> None:
        self.path = Path(path)

    def finalize(self) -> None:
        if self.is_master:
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()

    async def send_weights(self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None) -> None:
        whole = {
            name: tensor.detach().contiguous().clone() for name, tensor in weights
        }  # every rank takes part in this
        if self.is_master:
            partial = self.path.with_suffix(".partial")
            save_file(whole, partial)
            os.replace(partial, self.path)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor). Raises `UserError` if the actor writes nothing within five minutes."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not self.path.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"the actor sent no weights within {WAIT_SECONDS:.0f} s; see logs/ of the run directory"
                )
            await asyncio.sleep(0.01)
        for name, tensor in load_file(self.path).items():
            yield name, tensor
