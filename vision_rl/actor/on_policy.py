"""A step with one update skips the forward pass for `old_log_probs`: the update itself computes the same numbers.

verl computes them before the update, because a step of several mini-batches or epochs moves away from them. Where a step is
a single mini-batch, update and computation have the same rows and weights, so the ratio of the two policies is 1 and its
gradient that of the log-probability; a fifth of the actor's time is saved. What is watched between the two moves into the
update: |actor - rollout| is complete before the optimizer's step, which is left out where it is over the run's limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from verl.trainer.ppo.core_algos import kl_penalty
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import no_padding_2_padding, response_to_nested

from vision_rl.actor.mismatch import over_limit
from vision_rl.settings import Integrity

Loss = Callable[..., tuple[torch.Tensor, dict[str, Any]]]


class OnPolicy:
    """Takes `old_log_probs` from the update's own forward pass and checks them before the optimizer step, on one rank.

    entropy_coeff: the actor's; at 0 the entropy has no gradient.
    """

    def __init__(self, limits: Integrity, entropy_coeff: float) -> None:
        self.limits, self.entropy_coeff = limits, entropy_coeff
        self.metrics: dict[str, float] = {}
        self._begin()

    def _begin(self) -> None:
        self._largest, self._sums = torch.zeros(()), torch.zeros(3)  # |actor - rollout|, k3 to the reference, tokens

    def over(self, micro_batch: Any, loss: Loss) -> Loss:
        """verl's `ppo_loss` for a micro-batch that brings no `old_log_probs`; asks for the entropy, which is always logged."""
        if "old_log_probs" in micro_batch:
            return loss
        tu.assign_non_tensor(micro_batch, calculate_entropy=True)
        return partial(self._loss, inner=loss)

    def _loss(
        self, model_output: Mapping[str, torch.Tensor], data: Any, dp_group: Any = None, *, inner: Loss
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        log_probs = no_padding_2_padding(model_output["log_probs"], data).detach()  # (rows, longest response)
        self._note(log_probs, data)
        data.set("old_log_probs", response_to_nested(log_probs, data["response_mask"]))
        if not self.entropy_coeff:
            model_output = {**model_output, "entropy": model_output["entropy"].detach()}
        return inner(model_output=model_output, data=data, dp_group=dp_group)

    def _note(self, log_probs: torch.Tensor, data: Any) -> None:
        known = [name for name in ("rollout_log_probs", "ref_log_prob") if name in data]
        padded = data.select("response_mask", *known).to_padded_tensor()
        mask = padded["response_mask"].bool()
        if not mask.any():
            return
        difference = (log_probs - padded["rollout_log_probs"]).abs()[mask]
        reference = padded["ref_log_prob"] if "ref_log_prob" in known else log_probs
        kl = kl_penalty(log_probs, reference, "low_var_kl")[mask]
        sums = torch.stack([difference.sum(), kl.sum(), mask.sum().float()])
        self._largest = torch.maximum(self._largest.to(sums), difference.max().float())
        self._sums = self._sums.to(sums) + sums.float()

    def may_update(self, group: Any, *, with_reference: bool) -> bool:
        """Whether actor and rollout are within the limit over all ranks of `group`; `metrics` then has the figures."""
        torch.distributed.all_reduce(self._largest, torch.distributed.ReduceOp.MAX, group)
        torch.distributed.all_reduce(self._sums, torch.distributed.ReduceOp.SUM, group)
        total, kl, tokens = self._sums.tolist()
        self.metrics = {}
        if tokens:
            self.metrics = {
                "mismatch/logprob_max": self._largest.item(),
                "mismatch/logprob_mean": total / tokens,
                **({"train/kl": kl / tokens} if with_reference else {}),
            }
        self._begin()
        return over_limit(self.metrics, self.limits) is None
