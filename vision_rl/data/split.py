"""Seeded splits by image: rows that share a picture never end on both sides."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from vision_rl.errors import UserError

SPLITS = ("train", "validation", "test")


def assign_splits(
    image_keys: Sequence[Sequence[str]],
    fractions: Mapping[str, float],
    *,
    seed: int = 0,
    max_validation: int | None = None,
) -> list[str]:
    """The split of each row, given the keys (content hashes or paths) of the row's images.

    Rows connected through any shared image form one group and stay together. Groups are shuffled with `seed`; each goes
    to the split that is relatively furthest from its share of rows, so every split with a share gets a group as long as
    there are enough. Validation groups beyond `max_validation` rows go to "train". Raises `UserError` for bad shares.
    """
    if not fractions or any(share < 0 for share in fractions.values()) or sum(fractions.values()) <= 0:
        raise UserError(f"split shares {dict(fractions)} must be numbers above 0, for instance 60/20/20")
    groups = connected_groups(image_keys)
    sizes = Counter(groups)
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    total, whole = len(image_keys), sum(fractions.values())
    target = {name: total * share / whole for name, share in fractions.items() if share > 0}
    filled = dict.fromkeys(target, 0)
    chosen: dict[int, str] = {}
    for group in order:
        name = min(target, key=lambda split: filled[split] / target[split])
        if name == "validation" and max_validation is not None and "train" in target:
            if filled[name] + sizes[group] > max_validation:
                # Full: it takes no further part, and what it would have had goes to training.
                target["train"] += target.pop(name) - filled[name]
                name = "train"
        filled[name] += sizes[group]
        chosen[group] = name
    return [chosen[group] for group in groups]


def connected_groups(image_keys: Sequence[Sequence[str]]) -> list[int]:
    """A group number per row: equal for rows that share an image directly or through other rows."""
    parent = list(range(len(image_keys)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first_row: dict[str, int] = {}
    for row, keys in enumerate(image_keys):
        for key in keys:
            one, other = root(first_row.setdefault(key, row)), root(row)
            parent[max(one, other)] = min(one, other)
    return [root(row) for row in range(len(image_keys))]


def parse_shares(text: str) -> dict[str, float]:
    """`60/20/20` (train/validation/test) or `80/20` (train/validation) as shares by name; `UserError` otherwise."""
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError as error:
        raise UserError(f"--shares {text!r} is not like 60/20/20") from error
    if not 2 <= len(shares) <= 3 or min(shares) < 0 or sum(shares) <= 0:
        raise UserError(f"--shares {text!r} is not like 60/20/20 (train/validation/test)")
    return dict(zip(SPLITS, shares, strict=False))
