"""verl's own trainer, agent loop, balancer and reward workers on this project's CPU engine, server and weight transfer.

`verl_demo.py` starts the actor. What is verl's stays as it is; what stands here is what a machine without a GPU needs, and
the notes of every step.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import ray


def note(file: Path, **values: Any) -> None:
    """Add a line to the notes of a run."""
    with file.open("a", encoding="utf-8") as notes:
        notes.write(json.dumps({"time": time.time(), **values}) + "\n")


def trainer_class() -> type:
    """verl's synchronous trainer; a function, because only the actor below is to import verl."""
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    from benchmarks.verl_rank import PixelWorker
    from vision_rl.serving.banned_tokens import banned_tokens
    from vision_rl.serving.model_server import start_early

    class VerlTrainer(PPOTrainerSync):  # type: ignore[misc, valid-type]
        """poll: seconds between two looks at the queue; None leaves verl's own."""

        role_worker_mapping: dict[Any, Any]

        def __init__(self, config: Any, notes: Path, poll: float | None) -> None:
            super().__init__(config)
            self.notes = notes
            if poll is not None:
                self.replay_buffer.poll_interval = poll

        def init(self) -> None:
            start_early("vllm")
            super().init()

        def _init_resource_pool_mgr(self) -> None:
            super()._init_resource_pool_mgr()
            self.role_worker_mapping = {role: ray.remote(PixelWorker) for role in self.role_worker_mapping}

        def on_init_end(self) -> None:
            path = self.config.actor_rollout_ref.model.path
            self.actor_rollout_wg.take_cores(banned_tokens(path, self.processor))
            super().on_init_end()

        def on_train_begin(self) -> None:
            note(self.notes)
            super().on_train_begin()

        def _compute_metrics(self, batch: Any, metrics: dict[str, Any], *args: Any, **kwargs: Any) -> None:
            super()._compute_metrics(batch, metrics, *args, **kwargs)
            values = {name: float(value) for name, value in metrics.items() if not isinstance(value, dict)}
            note(self.notes, rows=sum(not tag.get("is_padding", False) for tag in batch.tags), **values)

    return VerlTrainer


@ray.remote(num_cpus=1)
class VerlRunner:
    """Does what verl's own task runner does (verl/trainer/main_ppo.py), with this project's model server."""

    def run(self, config: dict[str, Any], notes: Path, poll: float | None) -> None:
        """Train; config: a complete configuration of verl. notes: a line for the start and for each step."""
        import transfer_queue as tq
        from omegaconf import OmegaConf
        from verl.trainer.ppo.v1 import AgentLoopManagerTQ
        from verl.workers.rollout.llm_server import LLMServerManager

        from vision_rl.serving.model_server import register

        balancer = LLMServerManager._init_global_load_balancer
        register("vllm")
        LLMServerManager._init_global_load_balancer = (
            balancer  # this project's runs have none; verl's agent loop asks it
        )
        tree = OmegaConf.create(config)
        tq.init(tree.transfer_queue)
        try:
            trainer = trainer_class()(tree, notes, poll)
            trainer.init()
            trainer.fit(
                AgentLoopManagerTQ.create(
                    config=tree,
                    llm_client=trainer.get_llm_client(),
                    teacher_client=trainer.get_teacher_client(),
                    reward_loop_worker_handles=trainer.get_reward_handles(),
                )
            )
        finally:
            tq.close()
