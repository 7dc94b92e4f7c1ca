"""The asynchronous trainer: separate processes serve the model and never wait for the update."""

from __future__ import annotations

import logging
from typing import Any

from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync

from vision_rl.actor.rank import VisionWorker
from vision_rl.training.trainer import VisionTrainer


class VisionDetachedWorker(VisionWorker, DetachActorWorker):
    """A rank that can put its weights aside, to compute the log-probabilities of the policy before this step's updates."""


class VisionTrainerSeparate(VisionTrainer, PPOTrainerSeparateAsync):
    """verl's `separate_async` (`trainer.v1.trainer_mode`), over Agent Lightning's rollouts."""

    worker_class = VisionDetachedWorker

    def __init__(self, *given: Any) -> None:
        quiet_verl()
        super().__init__(*given)

    def _server_addresses(self) -> list[str]:
        return list(self.standalone_server_manager.server_addresses)

    def _send_weights(self) -> None:
        self.standalone_checkpoint_manager.update_weights(self.global_steps)

    # The model servers' load balancer, of which verl keeps the replicas up to date, does not exist (vllm_server.py, `register`).

    def add_replicas_to_balancer(self) -> None: ...

    def remove_replicas_from_balancer(self) -> None: ...

    def clear_sticky_cache(self) -> dict[str, int]:
        return {}


def quiet_verl() -> None:
    """verl 0.9.1 hands `flush` to logging (trainer_separate_async.py:181), a TypeError wherever it tells that line."""
    logging.getLogger(PPOTrainerSeparateAsync.__module__).setLevel(logging.WARNING)
