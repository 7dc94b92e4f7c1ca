"""The update's batch over several workers: nothing is lost, and each gets about as many tokens as the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

LENGTHS = [40, 3, 5, 38, 2, 4, 39, 41]
STEPS = range(1, 6)  # the step is the seed of the samples' order


def updated(balance: bool, workers: int, step: int = 1) -> tuple[Any, dict[str, float]]:
    """The batch that the workers get of samples of `LENGTHS` tokens, and the metrics of the update."""
    from verl import DataProto
    from vision_rl.engine.trainer import VisionTrainer

    mask = (torch.arange(48) < torch.tensor(LENGTHS)[:, None]).long()
    names = ("attention_mask", "response_mask", "advantages", "input_ids")
    batch = DataProto.from_dict({name: mask.clone() for name in names})
    sent: list[Any] = []

    def update_actor(data: Any) -> Any:
        sent.append(data)
        return SimpleNamespace(meta_info={"metrics": {"actor/pg_loss": [1.0]}})

    trainer = VisionTrainer.__new__(VisionTrainer)
    strategy = {"actor_rollout_ref": {"actor": {"strategy": "fsdp2"}}}
    trainer.config = OmegaConf.create({"trainer": {"balance_batch": balance}, **strategy})
    trainer.actor_rollout_wg = SimpleNamespace(world_size=workers, update_actor=update_actor)
    trainer.global_steps, trainer.timing = step, {}
    metrics = trainer._update(batch)
    return sent[0], metrics


def loads(data: Any, workers: int) -> list[int]:
    tokens = data.batch["attention_mask"].sum(-1)
    return [int(part.sum()) for part in tokens.chunk(workers)]


def worst(balance: bool) -> float:
    """The heavier worker's tokens over the mean, at the worst of a few steps."""
    shares = [loads(updated(balance, 2, step)[0], 2) for step in STEPS]
    return max(max(share) / (sum(share) / 2) for share in shares)


@pytest.mark.parametrize(("balance", "workers"), [(True, 2), (False, 2), (True, 1), (True, 3)])
def test_every_sample_is_trained_on_once(balance: bool, workers: int) -> None:
    data, metrics = updated(balance, workers)
    trained = data.batch["response_mask"].sum(-1)
    assert sorted(trained[trained > 0].tolist()) == sorted(LENGTHS)  # those that fill up carry no loss
    assert len(data) % workers == 0 and metrics["actor/pg_loss"] == 1.0
    assert any(name.startswith("global_seqlen") for name in metrics) is (balance and workers > 1)


def test_tokens_are_shared_among_the_workers() -> None:
    assert worst(balance=True) < 1.1
    assert worst(balance=False) > 1.4  # the control
