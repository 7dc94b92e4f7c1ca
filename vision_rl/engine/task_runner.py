"""The Ray actor in which the trainer lives: verl's own task runner, with our trainer and in-memory data."""

from __future__ import annotations

from typing import Any

import ray

from vision_rl.models import model_info


def processor_options(model: str) -> dict[str, bool]:
    """How vLLM 0.11 loads the model's processor: `use_fast=True` for the Qwen-VL families (models/qwen2_vl.py:861), else
    unset. torchvision's and Pillow's resizing differ: with the other one log-probabilities are off by 0.01."""
    return {"use_fast": True} if model_info(model).model_type.startswith("qwen") else {}


def _register_server(engine: str) -> None:
    """Let verl start this project's model server. Only the engine that is used needs to be installed."""
    if engine == "vllm":
        from vision_rl.engine.server import register
    else:
        from vision_rl.engine.sglang_server import register
    register()


@ray.remote(num_cpus=1)
class VisionTaskRunner:
    """Does what `agentlightning.verl.entrypoint.TaskRunner` does, with verl's own choice of workers.

    Agent Lightning 0.3.0's runner imports a Megatron module that verl 0.6.1 no longer has (entrypoint.py:120), always
    brings a critic, and prints the whole configuration; verl's `TaskRunner` knows its workers better.
    """

    def preload(self) -> None:
        """Import what `run` needs, so that this overlaps with the driver's own start."""
        import vision_rl.engine.trainer  # noqa: F401

    def run(
        self, config: dict[str, Any], train: list[dict[str, str]], val: list[dict[str, str]], store: Any, context: Any
    ) -> None:
        """Build workers and trainer from a complete verl configuration, and train."""
        from agentlightning.verl.dataset import LoadedDataset
        from omegaconf import OmegaConf
        from verl.trainer.main_ppo import TaskRunner
        from verl.utils import hf_processor, hf_tokenizer
        from verl.utils.dataset.rl_dataset import collate_fn

        from vision_rl.engine.data_order import training_sampler
        from vision_rl.engine.trainer import VisionTrainer

        tree = OmegaConf.create(config)
        _register_server(tree.actor_rollout_ref.rollout.name)
        model = tree.actor_rollout_ref.model.path
        upstream = TaskRunner()
        worker_cls, group_cls = upstream.add_actor_rollout_worker(tree)
        upstream.add_ref_policy_worker(tree, worker_cls)
        train_dataset = LoadedDataset(train)
        trainer = VisionTrainer(
            run=context,
            config=tree,
            tokenizer=hf_tokenizer(model, trust_remote_code=tree.data.trust_remote_code),
            processor=hf_processor(model, trust_remote_code=tree.data.trust_remote_code, **processor_options(model)),
            role_worker_mapping=upstream.role_worker_mapping,
            resource_pool_manager=upstream.init_resource_pool_mgr(tree),
            ray_worker_group_cls=group_cls,
            train_dataset=train_dataset,
            val_dataset=LoadedDataset(val),
            collate_fn=collate_fn,
            train_sampler=training_sampler(tree.data, train_dataset),
            store=store,
        )
        trainer.init_workers()
        trainer.fit()
