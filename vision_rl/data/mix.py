"""Mix several data files into one training set, by weights and in a fixed order, with figures per source.

The order depends on the files and weights alone, so that a resumed run sees it again.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vision_rl.errors import UserError

Item = TypeVar("Item")


@dataclass(frozen=True)
class DataFile:
    """A data file of a mix; weight None: none was given."""

    path: Path
    weight: float | None = None

    def __str__(self) -> str:
        return str(self.path.absolute()) + ("" if self.weight is None else f":{self.weight:g}")


def data_file(text: str) -> DataFile:
    """`a.parquet` or `a.parquet:2`; a file whose name has the colon is taken as it is. `UserError` for a bad weight."""
    path, colon, weight = text.rpartition(":")
    if not colon or not path or Path(text).exists():
        return DataFile(Path(text))
    try:
        number = float(weight)
    except ValueError:
        return DataFile(Path(text))
    if not 0 < number < math.inf:
        raise UserError(
            f"{text}: the weight {weight} is not above 0; give how many rows of this file come per row of the others"
        )
    return DataFile(Path(path), number)


def mixed(sets: Sequence[Sequence[Item]], weights: Sequence[float | None]) -> list[Item]:
    """The items of all sets, evenly interleaved in proportion to their weights.

    Without any weight every item comes once. With weights (a missing one is 1), every item comes at least once, and the
    items of a set that is too short for its share come again, in their order.
    """
    if all(weight is None for weight in weights):
        shares = [float(len(items)) for items in sets]
    else:
        shares = [1.0 if weight is None else weight for weight in weights]
    rounds = max((len(items) / share for items, share in zip(sets, shares, strict=True) if items), default=0.0)
    # The tolerance keeps a rounding error from adding an item.
    counts = [math.ceil(rounds * share - 1e-9) if items else 0 for items, share in zip(sets, shares, strict=True)]
    places = (
        [((place + 0.5) / share, number, place) for place in range(count)]
        for number, (share, count) in enumerate(zip(shares, counts, strict=True))
    )
    return [sets[number][place % len(sets[number])] for _, number, place in heapq.merge(*places)]


def sample_by_source(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Any]:
    """`count` rows chosen by seed in proportion to their sources, at least one of each where `count` allows it."""
    by_source: dict[str, list[Any]] = {}
    for row in rows:
        by_source.setdefault(row["source"], []).append(row)
    for items in by_source.values():
        random.Random(seed).shuffle(items)
    sets = list(by_source.values())
    return ([items[0] for items in sets] + mixed([items[1:] for items in sets], [None] * len(sets)))[:count]


def per_source(records: Iterable[Mapping[str, Any]], prefix: str) -> dict[str, float]:
    """Means by source of rollouts' records (lines of rollouts.jsonl): `{prefix}/{source}/reward` and its components.

    A failed rollout counts as reward 0, as in the means over all sources. Nothing for fewer than two sources.
    """
    by_source: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        by_source.setdefault(str(record.get("source", "")), []).append(record)
    if len(by_source) < 2:
        return {}
    metrics: dict[str, float] = {}
    for source, found in sorted(by_source.items()):
        usable = [record["reward"] for record in found if not record["failure"]]
        name = f"{prefix}/{source or 'unknown'}"
        metrics[f"{name}/rollouts"] = len(found)
        metrics[f"{name}/reward"] = sum(reward["reward"] for reward in usable) / len(found)
        for component in sorted({key for reward in usable for key in reward} - {"reward"}):
            values = [reward[component] for reward in usable if component in reward]
            metrics[f"{name}/{component}"] = sum(values) / len(values)
    return metrics
