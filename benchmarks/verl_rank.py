"""The rank of `verl_side.py`: this project's engine with the pixels that verl's own agent loop puts into the queue."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed
from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from vision_rl.actor.engine import VisionEngine, mend_positions
from vision_rl.actor.rank import VisionWorker


class PixelEngine(VisionEngine):
    """verl's own inputs, pixels included: the engine of this project's runs opens the pictures itself, once for a group."""

    shares_prompts = False

    def prepare_model_inputs(self, micro_batch: Any) -> Any:
        mend_positions(micro_batch)
        return FSDPEngineWithLMHead.prepare_model_inputs(self, micro_batch)


_register = EngineRegistry.register(model_type="language_model", backend="fsdp2", device="cpu", vendor="pixels")
_register(PixelEngine)


class PixelWorker(VisionWorker):
    """A rank of actor and rollout that gets pixels, not the names of pictures."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def take_cores(self, banned_tokens: list[int]) -> None:
        """As `VisionWorker.open_pictures`, without pictures: all cores, and the tokens that the server never samples."""
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // torch.distributed.get_world_size()))
        self.actor.engine.banned_tokens = torch.tensor(banned_tokens, dtype=torch.long)
