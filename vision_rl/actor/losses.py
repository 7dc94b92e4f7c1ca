"""verl's policy losses with corrections. Importing this module registers them under verl's own names."""

from __future__ import annotations

from typing import Any

import torch
from verl.trainer.ppo.core_algos import compute_policy_loss_geo_mean, register_policy_loss


@register_policy_loss("geo_mean")
def geo_mean(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """GMPO's loss (arXiv 2507.20673) as the mean over all replies of the mini-batch; all tensors: (rows, response length).

    verl 0.9.1 takes the mean of each micro-batch (trainer/ppo/core_algos.py:2000), where its other losses divide by the
    mini-batch: its gradient grows with the number of micro-batches. Rows without a token, which pad a batch, do not count.
    """
    loss, metrics = compute_policy_loss_geo_mean(
        old_log_prob, log_prob, advantages, response_mask, loss_agg_mode, config, rollout_is_weights
    )
    batch = config.global_batch_info
    if batch.get("global_batch_size") is not None:
        loss = loss * len(log_prob) * batch.get("dp_size", 1) / batch["global_batch_size"]
    return loss, metrics
