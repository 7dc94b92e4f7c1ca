"""The supervised update of both warm starts: AdamW, gradients clipped to 1, a rate that rises and falls."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


def adamw(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over one group; the rate is given to each `update`."""
    return torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.01)


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    """One step down `loss`, a scalar, with learning rate `rate`."""
    group = optimizer.param_groups[0]
    group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Factor of the rate: linear over `warm_up` steps, then a cosine down to a twentieth."""
    return min(1.0, (step + 1) / warm_up) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps)))
