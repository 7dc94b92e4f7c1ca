"""A resumed run sees the rows in the order in which the uninterrupted one sees them, over the ends of epochs too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

ROWS, BATCH, STEPS = 10, 3, 14  # three batches an epoch and one row left over


def order(sampler: Callable[[Any, Any], Any], seed: int | None, state: Any = None) -> Iterator[tuple[list[str], Any]]:
    """(rows of a batch, state of the loader after it) without end, from `state` on; built as verl builds its loader."""
    from agentlightning.verl.dataset import LoadedDataset
    from torchdata.stateful_dataloader import StatefulDataLoader
    from verl.utils.dataset.rl_dataset import collate_fn

    rows = LoadedDataset([{"task": str(number)} for number in range(ROWS)])
    data = OmegaConf.create({"seed": seed, "shuffle": True, "sampler": {"class_path": None}})
    loader = StatefulDataLoader(rows, BATCH, drop_last=True, collate_fn=collate_fn, sampler=sampler(data, rows))
    if state is not None:
        loader.load_state_dict(state)
    while True:
        for batch in loader:
            yield list(batch["task"]), loader.state_dict()


def take(batches: Iterator[tuple[list[str], Any]], count: int) -> tuple[list[list[str]], list[Any]]:
    drawn = [next(batches) for _ in range(count)]
    return [rows for rows, _ in drawn], [state for _, state in drawn]


@pytest.mark.parametrize("seed", [0, 1, None])
def test_the_order_goes_on_where_it_stopped(seed: int | None) -> None:
    from vision_rl.engine.data_order import training_sampler

    whole, states = take(order(training_sampler, seed), STEPS)
    for stopped in range(1, STEPS):
        rest, _ = take(order(training_sampler, seed, states[stopped - 1]), STEPS - stopped)
        assert rest == whole[stopped:], f"stopped after step {stopped}"


def test_epochs_differ_and_the_seed_decides() -> None:
    from vision_rl.engine.data_order import training_sampler

    whole, _ = take(order(training_sampler, 0), STEPS)
    assert whole[:3] != whole[3:6]
    assert whole == take(order(training_sampler, 0), STEPS)[0]
    assert whole != take(order(training_sampler, 1), STEPS)[0]


def test_verls_own_sampler_begins_again_after_the_first_epoch() -> None:
    """Why there is one of ours: when this fails, `training_sampler` can go."""
    from verl.trainer.main_ppo import create_rl_sampler

    whole, states = take(order(create_rl_sampler, 0), 5)
    assert take(order(create_rl_sampler, 0, states[3]), 1)[0] == [whole[1]] != [whole[4]]
