"""The allowed range of every number: a learning rate of -1 ends the run before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from vision_rl.errors import UserError
from vision_rl.settings import COUNT, NOT_NEGATIVE, PART, POSITIVE, SHARE, AgentSettings, AppSettings, Range

_ACTOR = "actor_rollout_ref.actor"
_ROLLOUT = "actor_rollout_ref.rollout"


OFF_OR_COUNT = Range(-1)  # verl writes "off" as -1

RANGES: dict[str, Range] = {
    f"{_ACTOR}.optim.lr": POSITIVE,
    f"{_ACTOR}.optim.weight_decay": NOT_NEGATIVE,
    f"{_ACTOR}.optim.betas": Range(0, 1, below=True),
    f"{_ACTOR}.optim.clip_grad": POSITIVE,
    f"{_ACTOR}.optim.lr_warmup_steps": OFF_OR_COUNT,
    f"{_ACTOR}.optim.lr_warmup_steps_ratio": SHARE,
    f"{_ACTOR}.optim.min_lr_ratio": SHARE,
    f"{_ACTOR}.optim.min_lr": NOT_NEGATIVE,
    f"{_ACTOR}.optim.num_cycles": POSITIVE,
    f"{_ACTOR}.clip_ratio": POSITIVE,
    f"{_ACTOR}.clip_ratio_low": POSITIVE,
    f"{_ACTOR}.clip_ratio_high": POSITIVE,
    f"{_ACTOR}.clip_ratio_c": Range(1, above=True),
    f"{_ACTOR}.kl_loss_coef": NOT_NEGATIVE,
    f"{_ACTOR}.entropy_coeff": NOT_NEGATIVE,
    f"{_ACTOR}.tau_pos": POSITIVE,
    f"{_ACTOR}.tau_neg": POSITIVE,
    f"{_ACTOR}.loss_scale_factor": POSITIVE,
    f"{_ACTOR}.policy_loss.clip_cov_ratio": PART,
    f"{_ACTOR}.policy_loss.kl_cov_ratio": PART,
    f"{_ACTOR}.policy_loss.ppo_kl_coef": NOT_NEGATIVE,
    f"{_ACTOR}.policy_loss.dro_beta": POSITIVE,
    f"{_ACTOR}.ppo_epochs": COUNT,
    f"{_ACTOR}.ppo_mini_batch_size": COUNT,
    f"{_ACTOR}.ppo_micro_batch_size_per_gpu": COUNT,
    f"{_ROLLOUT}.n": COUNT,
    f"{_ROLLOUT}.temperature": POSITIVE,
    f"{_ROLLOUT}.gpu_memory_utilization": PART,
    f"{_ROLLOUT}.max_num_seqs": COUNT,
    f"{_ROLLOUT}.max_num_batched_tokens": COUNT,
    f"{_ROLLOUT}.tensor_model_parallel_size": COUNT,
    f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu": COUNT,
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": COUNT,
    "actor_rollout_ref.model.lora_rank": NOT_NEGATIVE,
    "actor_rollout_ref.model.lora_alpha": POSITIVE,
    "data.train_batch_size": COUNT,
    "data.max_prompt_length": COUNT,
    "data.max_response_length": COUNT,
    "algorithm.gamma": PART,
    "algorithm.lam": SHARE,
    "trainer.nnodes": COUNT,
    "trainer.n_gpus_per_node": COUNT,
    "trainer.total_epochs": COUNT,
    "trainer.save_freq": OFF_OR_COUNT,
    "trainer.test_freq": OFF_OR_COUNT,
    "trainer.v1.sampler.max_off_policy_threshold": COUNT,
    "trainer.v1.colocate_async.num_warmup_batches": NOT_NEGATIVE,
    "trainer.v1.separate_async.num_warmup_batches": NOT_NEGATIVE,
    "trainer.v1.separate_async.parameter_sync_step": COUNT,
}


def select(tree: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where a part of it is absent (FSDP's and Megatron's trees differ)."""
    value: Any = tree
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def ranges_of(settings: Any, prefix: str) -> dict[str, Range]:
    """The ranges that the fields of our own settings carry, by dotted key."""
    found: dict[str, Range] = {}
    for item in fields(settings):
        if is_dataclass(value := getattr(settings, item.name)):
            found |= ranges_of(value, f"{prefix}.{item.name}")
        elif "range" in item.metadata:
            found[f"{prefix}.{item.name}"] = item.metadata["range"]
    return found


def check_ranges(verl: Mapping[str, Any], agent: AgentSettings, app: AppSettings) -> None:
    """Raise `UserError` for the first number that lies outside its range. Null is a matter of the key's type."""
    tree = {**verl, "agent": asdict(agent), "app": asdict(app)}
    for key, allowed in (RANGES | ranges_of(agent, "agent") | ranges_of(app, "app")).items():
        value = select(tree, key)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and not allowed.holds(one):
                raise UserError(f"{key}={value} must be {allowed}")
