"""The Ray actor in which the trainer lives."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import ray

from vision_rl.rewards.user import check_estimator, import_user_modules

if TYPE_CHECKING:
    from vision_rl.training.context import RunContext, TrainerStore


@ray.remote(num_cpus=1)
class VisionTaskRunner:
    """Does what verl's `TaskRunnerV1` does (verl/trainer/main_ppo.py), with our trainer, rows in memory, and no prints."""

    def run(
        self, config: dict[str, Any], train: list[str], val: list[str], store: TrainerStore, context: RunContext
    ) -> None:
        """Build the trainer from a complete verl configuration, and train. train, val: tasks as JSON texts."""
        import transfer_queue as tq
        from omegaconf import OmegaConf

        tree = OmegaConf.create(config)
        # The queue's own actors start while this process imports verl, and workers and server start.
        queue = threading.Thread(target=tq.init, args=(tree.transfer_queue,), name="queue", daemon=True)
        queue.start()
        from vision_rl.serving.model_server import register
        from vision_rl.training.modes import trainer_class

        import_user_modules(context.app.imports)
        check_estimator(tree.algorithm.adv_estimator)
        register(tree.actor_rollout_ref.rollout.name)
        trainer = trainer_class(tree.trainer.v1.trainer_mode)(tree, context, store, train, val)
        try:
            trainer.init(queue.join)
            trainer.fit()
        finally:
            tq.close()
