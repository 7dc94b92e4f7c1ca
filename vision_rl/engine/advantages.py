"""Group-relative advantages by verl's estimators, and the shape in which a batch goes to the update."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from verl import DataProto
from verl.protocol import pad_dataproto_to_divisor
from verl.trainer.ppo.core_algos import get_adv_estimator_fn


def rollout_advantages(batch: DataProto, algorithm: Any) -> torch.Tensor:
    """(samples, response length) advantages by verl's estimator, with every rollout counted once in its group.

    A rollout of several turns gives several samples with one reward; were each counted, long rollouts would weigh more in
    the group's mean and spread. Source of the estimators: verl.trainer.ppo.core_algos.
    """
    _, first, of_sample = np.unique(
        batch.non_tensor_batch["rollout_id"].astype(str), return_index=True, return_inverse=True
    )
    rewards = batch.batch["token_level_rewards"].sum(dim=-1)[torch.from_numpy(first)].unsqueeze(-1)
    kwargs: dict[str, Any] = {"config": algorithm}
    if algorithm.adv_estimator == "grpo":
        kwargs["norm_adv_by_std_in_grpo"] = algorithm.norm_adv_by_std_in_grpo
    advantages, _ = get_adv_estimator_fn(algorithm.adv_estimator)(
        token_level_rewards=rewards,
        response_mask=torch.ones_like(rewards),
        index=batch.non_tensor_batch["uid"][first],
        **kwargs,
    )
    return advantages[torch.from_numpy(of_sample)] * batch.batch["response_mask"]


def group_metrics(batch: DataProto) -> dict[str, float]:
    """The share of groups whose rewards are all equal: they carry no gradient."""
    groups: dict[str, set[float]] = {}
    for uid, reward in zip(
        batch.non_tensor_batch["uid"], batch.batch["token_level_rewards"].sum(dim=-1).tolist(), strict=True
    ):
        groups.setdefault(uid, set()).add(round(reward, 6))
    return {"train/groups_equal": sum(len(rewards) == 1 for rewards in groups.values()) / len(groups)}


def pad_masked(batch: DataProto, divisor: int) -> DataProto:
    """The batch padded to a multiple of `divisor` with copies that carry no loss (their response mask is zero)."""
    padded, pad_size = pad_dataproto_to_divisor(batch, divisor)
    if pad_size:
        padded.batch["response_mask"][-pad_size:] = 0
        padded.batch["advantages"][-pad_size:] = 0
        padded.meta_info["global_token_num"] = padded.batch["attention_mask"].sum(dim=-1).tolist()
    return padded
