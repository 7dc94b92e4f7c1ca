"""A resumed run sees the rows in the order in which the uninterrupted one sees them, over the ends of epochs too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from omegaconf import OmegaConf

from vision_rl.training.trainer import task_loader

ROWS, BATCH, STEPS = 10, 3, 14  # three batches an epoch and one row left over


def order(seed: int | None, state: Any = None, batch: int = BATCH) -> Iterator[tuple[list[str], Any]]:
    """(rows of a batch, state of the loader after it) without end, from `state` on, as the trainer draws them."""
    data = OmegaConf.create({"seed": seed, "shuffle": True, "custom_cls": {"path": None}})
    loader = task_loader([str(number) for number in range(ROWS)], data, batch)
    if state is not None:
        loader.load_state_dict(state)
    while True:
        for drawn in loader:
            yield list(drawn["raw_prompt"]), loader.state_dict()


def take(batches: Iterator[tuple[list[str], Any]], count: int) -> tuple[list[list[str]], list[Any]]:
    drawn = [next(batches) for _ in range(count)]
    return [rows for rows, _ in drawn], [state for _, state in drawn]


@pytest.mark.parametrize("batch", [BATCH, 1], ids=["batches", "one by one"])
@pytest.mark.parametrize("seed", [0, 1, None])
def test_the_order_goes_on_where_it_stopped(seed: int | None, batch: int) -> None:
    """One by one is how the asynchronous modes and dynamic sampling draw; an epoch's end is a place to stop like others
    (verl issue 5725)."""
    whole, states = take(order(seed, batch=batch), STEPS)
    for stopped in range(1, STEPS):
        rest, _ = take(order(seed, states[stopped - 1], batch), STEPS - stopped)
        assert rest == whole[stopped:], f"stopped after step {stopped}"


def test_epochs_differ_and_the_seed_decides() -> None:
    whole, _ = take(order(0), STEPS)
    assert whole[:3] != whole[3:6]
    assert whole == take(order(0), STEPS)[0]
    assert whole != take(order(1), STEPS)[0]
