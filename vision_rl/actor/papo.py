"""PAPO's terms of the loss (Wang et al., "Perception-Aware Policy Optimization", 2025, arXiv 2507.06448).

The objective has, beside GRPO's, gamma KL(pi || pi_mask) - eta1 H(pi) - eta2 H(pi_mask), where pi_mask is the same model
before pictures of which random squares are black: answers should depend on what is seen, and the entropies keep the two
policies from drifting apart by becoming random. As in the paper both policies have a gradient; the authors' released code
(github.com/MikeWangWZHL/PAPO, verl/workers/actor/dp_actor.py) by default takes pi_mask from before the update, and the
negative log-probability of the sampled token for the entropy, where verl has the entropy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from verl.trainer.ppo.core_algos import agg_loss, kl_penalty
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import no_padding_2_padding

from vision_rl.settings import Papo

Loss = Callable[..., tuple[torch.Tensor, dict[str, Any]]]


def papo_loss(
    model_output: Mapping[str, torch.Tensor],
    data: Any,
    dp_group: Any = None,
    *,
    inner: Loss,
    masked: Mapping[str, torch.Tensor],
    seeing: torch.Tensor,
    papo: Papo,
    config: Any,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """`inner` (verl's `ppo_loss`) and PAPO's terms, aggregated as verl aggregates its own.

    model_output, masked: nested `log_probs` and `entropy` of the micro-batch with its pictures and with masked ones.
    seeing: (rows,) bool, which rows have a picture; the others' two policies are one. config: the actor's, whose
    `global_batch_info` verl's loss fills in.
    """
    loss, metrics = inner(model_output=model_output, data=data, dp_group=dp_group)
    mask = data.select("response_mask").to_padded_tensor()["response_mask"].bool() & seeing.to(loss.device).unsqueeze(
        -1
    )
    log_probs, masked_log_probs, entropy, masked_entropy = (
        no_padding_2_padding(output[name], data)
        for name in ("log_probs", "entropy")
        for output in (model_output, masked)
    )
    for name, values, weight in (
        ("kl_prcp", kl_penalty(log_probs, masked_log_probs, "low_var_kl"), -papo.kl_coef),
        ("entropy_seeing", entropy, papo.entropy_coef),
        ("entropy_masked", masked_entropy, papo.entropy_coef),
    ):
        term = agg_loss(loss_mat=values, loss_mask=mask, loss_agg_mode=config.loss_agg_mode, **config.global_batch_info)
        loss = loss + weight * term
        metrics[f"papo/{name}"] = Metric(value=term, aggregation=AggregationType.SUM)
    return loss, metrics
