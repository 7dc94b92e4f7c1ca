"""verl's actor in this process, as a run of the CPU preset builds it: its engine on the tiny model, fed with rows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch.distributed.tensor import DTensor
from torch.nn.utils.rnn import pad_sequence
from verl import DataProto
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.tensordict_utils import list_of_dict_to_tensordict
from verl.workers.config import TrainingWorkerConfig
from verl.workers.utils.padding import response_from_nested

from tests.conftest import remember_forwards
from vision_rl.actor.rank import VisionTrainingWorker
from vision_rl.config.resolve import resolve
from vision_rl.models.pixels import Pixels
from vision_rl.tiny import checkpoint_dir
from vision_rl.training.samples import Sample


@cache
def process_group() -> None:
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def actor(role: str = "actor", model: str | Path | None = None, *changes: str) -> VisionTrainingWorker:
    """The worker of `role` ("actor" or "ref") without Ray; its engine has no pictures yet."""
    remember_forwards()
    process_group()
    overrides = ["actor_rollout_ref.actor.use_kl_loss=true"] if role == "ref" else []
    tree = OmegaConf.create(
        resolve("cpu", task="vqa", model=str(model or checkpoint_dir()), overrides=[*overrides, *changes]).verl
    )
    sizes = tree.actor_rollout_ref.rollout
    if role == "ref":  # as verl's init_model does
        OmegaConf.set_struct(tree, False)
        tree.actor_rollout_ref.ref.ppo_mini_batch_size = 1
        tree.actor_rollout_ref.ref.ppo_micro_batch_size_per_gpu = tree.actor_rollout_ref.ref.pop(
            "log_prob_micro_batch_size_per_gpu"
        )
        for name in ("log_prob_micro_batch_size", "log_prob_use_dynamic_bsz", "log_prob_max_token_len_per_gpu"):
            tree.actor_rollout_ref.ref.pop(name, None)
    settings = omega_conf_to_dataclass(tree.actor_rollout_ref[role])
    engine = settings.engine
    engine.use_dynamic_bsz = False
    engine.infer_micro_batch_size_per_gpu = sizes.log_prob_micro_batch_size_per_gpu
    engine.micro_batch_size_per_gpu = tree.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu
    worker = VisionTrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=omega_conf_to_dataclass(tree.actor_rollout_ref.model),
            engine_config=engine,
            optimizer_config=settings.optim,
            checkpoint_config=settings.checkpoint,
        )
    )
    worker.reset()
    return worker


def log_probs(
    worker: VisionTrainingWorker,
    rows: Sequence[dict[str, Any]],
    pixels: Pixels | None,
    *,
    temperature: float = 1.0,
    what: str = "log_probs",
    view: str = "seen",
) -> torch.Tensor:
    """(rows, longest response) log-probabilities, or entropies, zero beyond each response."""
    data = list_of_dict_to_tensordict([dict(row) for row in rows])
    for name in list(data.keys()):
        if (
            isinstance(data[name], torch.Tensor) and not data[name].is_nested
        ):  # rows of one length; the queue nests them too
            data[name] = torch.nested.as_nested_tensor(list(data[name]), layout=torch.jagged)
    tu.maybe_fix_3d_position_ids(data)  # as verl's update does first
    tu.assign_non_tensor(
        data, calculate_entropy=True, compute_loss=False, temperature=temperature, global_token_num=None, view=view
    )
    worker.engine.pixels = pixels
    output = worker.infer_batch(data)
    output = output.get() if hasattr(output, "get") and not hasattr(output, "keys") else output
    responses = [len(row["responses"]) for row in rows]
    mask = torch.nested.as_nested_tensor([torch.ones(n) for n in responses], layout=torch.jagged)
    nested = response_from_nested(output[what], mask)
    return torch.nested.to_padded_tensor(nested.float(), padding=0.0)


def weights(worker: VisionTrainingWorker) -> dict[str, torch.Tensor]:
    """All parameters, whole."""
    named = worker.engine.module.named_parameters()
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for name, p in named}


def as_batch(rows: Sequence[dict[str, Any]], samples: Sequence[Sample], **computed: torch.Tensor) -> DataProto:
    """Rows as verl's trainer sees them between log-probabilities and update: padded on the right, by verl's names."""
    names = ("response_mask", "rollout_log_probs", "rm_scores")
    tensors = {name: pad_sequence([row[name] for row in rows], batch_first=True) for name in names}
    tensors["token_level_rewards"] = tensors["rm_scores"]
    return DataProto.from_dict(
        tensors={**tensors, **computed},
        non_tensors={
            "uid": np.array([sample.data_id for sample in samples], dtype=object),
            "rollout_id": np.array([sample.rollout_id for sample in samples], dtype=object),
        },
    )
