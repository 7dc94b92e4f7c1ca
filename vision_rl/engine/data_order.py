"""The order of the training rows, which a resumed run must continue, also in the middle of a later epoch."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch.utils.data import Sampler
from torchdata.stateful_dataloader.sampler import RandomSampler
from verl.trainer.main_ppo import create_rl_sampler


def training_sampler(data: Any, rows: Sized) -> Sampler[int]:
    """The sampler that verl's `data` section asks for; a shuffled order keeps its generator in the loader's state.

    verl 0.6.1 takes torch's own RandomSampler (trainer/main_ppo.py, create_rl_sampler), of which `StatefulDataLoader` keeps
    only how many rows it gave: a run that is resumed after its first epoch would see the order of the first one again.
    torchdata's sampler keeps the generator too. This can go when verl uses it.
    """
    custom = data.sampler is not None and data.sampler.get("class_path")
    if custom or not data.shuffle:
        return create_rl_sampler(data, rows)
    generator = torch.Generator()
    if data.seed is not None:
        generator.manual_seed(data.seed)
    return RandomSampler(rows, generator=generator)
