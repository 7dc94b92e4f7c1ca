"""The actor's side of the weight sync to SGLang: verl's client with the server's key, and CPU tensors in shared memory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch.multiprocessing import reductions
from verl.workers.rollout.sglang_rollout import sglang_rollout

from vision_rl.platform.environment import SERVER_KEY


class KeyedClient(sglang_rollout.AsyncHttpServerAdapter):
    """verl's client of SGLang's HTTP server; brings the key of the run, of which verl's knows nothing."""

    @asynccontextmanager
    async def _get_session(self) -> AsyncIterator[Any]:
        async with super()._get_session() as session:
            if key := os.environ.get(SERVER_KEY):
                session.headers["Authorization"] = f"Bearer {key}"
            yield session


def prepare() -> None:
    """Let this worker's process send its weights to SGLang."""
    sglang_rollout.AsyncHttpServerAdapter = KeyedClient
    if torch.cuda.is_available():
        return
    # SGLang's patch of these (utils/patch_torch.py) asks every tensor for its GPU; where this name is, it leaves them alone.
    reductions._reduce_tensor_original = reductions.reduce_tensor
    # PyTorch's usual handle of a tensor in main memory is a file descriptor, which only a child of this process can have.
    torch.multiprocessing.set_sharing_strategy("file_system")
    # Cloned: else the parameters themselves would move to shared memory. The segment goes once the server has closed it.
    ForkingPickler.register(torch.Tensor, lambda tensor: reductions.reduce_tensor(tensor.clone()))
