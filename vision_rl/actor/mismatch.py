"""Metrics of the difference between the actor and vLLM, and between the actor and the reference. Silent failures show here."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import numpy as np
import torch
from verl import DataProto
from verl.trainer.ppo.core_algos import kl_penalty

from vision_rl.errors import UserError
from vision_rl.settings import Integrity


def mismatch_metrics(batch: DataProto, fresh: np.ndarray) -> dict[str, float]:
    """|actor - rollout| log-probability over the model's own tokens: the largest and the mean, in nats.

    Zero up to rounding when both see the same pixels at the same positions with the same weights; about 0.5 on average
    for an actor without pixels, whose training otherwise looks normal. fresh: (rows,) bool, whether a row was rolled out
    with the weights that the actor has now. Older rows differ rightly, and are counted under "stale".
    """
    mask = batch.batch["response_mask"].bool()
    difference = (batch.batch["old_log_probs"] - batch.batch["rollout_log_probs"]).abs()
    rows = torch.from_numpy(fresh).unsqueeze(-1)
    metrics = {}
    for name, chosen in (("", difference[mask & rows]), ("stale_", difference[mask & ~rows])):
        if len(chosen):
            metrics[f"mismatch/{name}logprob_max"] = chosen.max().item()
            metrics[f"mismatch/{name}logprob_mean"] = chosen.mean().item()
    return metrics


def reference_metrics(batch: DataProto) -> dict[str, float]:
    """The mean distance to the reference in nats per token (k3 estimator, verl's "low_var_kl"); nothing without one."""
    if "ref_log_prob" not in batch.batch:
        return {}
    kl = kl_penalty(batch.batch["old_log_probs"], batch.batch["ref_log_prob"], "low_var_kl")
    return {"train/kl": kl[batch.batch["response_mask"].bool()].mean().item()}


def over_limit(metrics: Mapping[str, float], limits: Integrity) -> tuple[str, float, float] | None:
    """(which, value, limit) of the first of the two figures that is more than the run allows; None if neither is."""
    for name, limit in (("max", limits.logprob_mismatch_max), ("mean", limits.logprob_mismatch_mean)):
        value = metrics.get(f"mismatch/logprob_{name}", 0.0)
        if limit is not None and not value <= limit:
            return name, value, limit
    return None


def check_mismatch(
    metrics: MutableMapping[str, float], limits: Integrity, step: int, own_sampling: Mapping[str, int]
) -> None:
    """Raise `UserError` when actor and rollout disagree by more than the run allows; else log how much of the limit they take,
    1 being all of it.

    own_sampling: fields that requests set other than the run does, and in how many rollouts.
    """
    named = (("max", limits.logprob_mismatch_max), ("mean", limits.logprob_mismatch_mean))
    shares = [
        metrics[f"mismatch/logprob_{name}"] / limit
        for name, limit in named
        if limit and f"mismatch/logprob_{name}" in metrics
    ]
    if shares:
        metrics["mismatch/share_of_limit"] = max(shares)
    found = over_limit(metrics, limits)
    if found is not None:
        name, value, limit = found
        fields = ", ".join(f"{field} ({count} rollouts)" for field, count in sorted(own_sampling.items()))
        asked = f" Requests set {fields} other than the run does: try without." if fields else ""
        raise UserError(
            f"step {step}: the actor's log-probabilities are off from the rollout's by {value:.3g} ({name}), more than "
            f"app.integrity.logprob_mismatch_{name}={limit:g}: it does not see what the server saw (pixels, positions or "
            f"weights differ); see docs/troubleshooting.md, or raise the limit if the precision is to blame.{asked}"
        )
