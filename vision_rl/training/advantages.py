"""Group-relative advantages by verl's estimators. Every rollout counts once in its group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from verl import DataProto
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

TOKEN_LEVEL = ("optimal_token_baseline", "tir_optimal_token_baseline")
"""Estimators whose advantages differ between the tokens of a reply; they get every row as it is."""


def rollout_advantages(
    batch: DataProto, algorithm: Any, components: Mapping[str, list[float]] | None = None
) -> torch.Tensor:
    """(rows, response length) advantages by verl's estimator (verl.trainer.ppo.core_algos).

    A rollout of several turns gives several rows with one reward; were each counted, long rollouts would weigh more in
    the group's mean and spread. A group whose rewards are equal has exactly zero: in float32 the mean of eight rewards
    of 0.9 is not 0.9, and the spread by which GRPO divides is as small as that error.
    components: values by name, one per row, for gdpo, which normalises each reward component by itself.
    """
    rewards = batch.batch["token_level_rewards"].sum(dim=-1)
    uids = batch.non_tensor_batch["uid"]
    estimator = get_adv_estimator_fn(algorithm.adv_estimator)
    kwargs: dict[str, Any] = {"config": algorithm}
    if algorithm.adv_estimator == "grpo":
        kwargs["norm_adv_by_std_in_grpo"] = algorithm.norm_adv_by_std_in_grpo
    if algorithm.adv_estimator in TOKEN_LEVEL:
        advantages, _ = estimator(
            token_level_rewards=batch.batch["token_level_rewards"],
            response_mask=batch.batch["response_mask"],
            index=uids,
            sum_pi_squared=batch.batch["sum_pi_squared"],
            old_log_probs=batch.batch["old_log_probs"],
            rollout_is_weights=batch.batch.get("rollout_is_weights", None),
            **kwargs,
        )
        return advantages * ~equal_rows(uids, rewards.tolist()).unsqueeze(-1)
    rollouts = batch.non_tensor_batch["rollout_id"].astype(str)
    _, first, of_row = np.unique(rollouts, return_index=True, return_inverse=True)
    once = rewards[torch.from_numpy(first)].unsqueeze(-1)
    compared: list[Any] = once[:, 0].tolist()
    if algorithm.adv_estimator == "gdpo":
        parts = {name: np.array((components or {})[name])[first] for name in algorithm.gdpo_reward_keys}
        compared = list(zip(*parts.values(), strict=True))
        # Only differences within a group count, and a component that is equal in it must be exactly so in float32.
        kwargs["non_tensor_batch"] = {name: _from_first(uids[first], part) for name, part in parts.items()}
        # From these verl takes the length of the responses; with batch=None it would use the summed reward without a word.
        kwargs["batch"] = {"prompts": torch.zeros(len(once), 0), "attention_mask": torch.ones(len(once), 1).long()}
    advantages, _ = estimator(
        token_level_rewards=once, response_mask=torch.ones_like(once), index=uids[first], **kwargs
    )
    advantages = advantages * ~equal_rows(uids[first], compared).unsqueeze(-1)
    return advantages[torch.from_numpy(of_row)] * batch.batch["response_mask"]


def equal_rows(uids: np.ndarray, rewards: Iterable[Any]) -> torch.Tensor:
    """(rows,) bool: whether all rewards of a row's group are equal. rewards: one per row, or a tuple of its components."""
    values: dict[str, set[Any]] = {}
    for uid, reward in zip(uids, rewards, strict=True):
        values.setdefault(uid, set()).add(reward)
    return torch.tensor([len(values[uid]) == 1 for uid in uids])


def _from_first(uids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values less that of their group's first row."""
    _, first, of_row = np.unique(uids.astype(str), return_index=True, return_inverse=True)
    return values - values[first][of_row]


def group_metrics(batch: DataProto) -> dict[str, float]:
    """The share of groups whose rewards are all equal: they carry no gradient."""
    real = batch.batch["response_mask"].sum(dim=-1) > 0
    uids = batch.non_tensor_batch["uid"][real.numpy()]
    rewards = batch.batch["token_level_rewards"].sum(dim=-1)[real]
    equal = dict(zip(uids, equal_rows(uids, rewards.tolist()).tolist(), strict=True))
    return {"train/groups_equal": sum(equal.values()) / max(len(equal), 1)}
