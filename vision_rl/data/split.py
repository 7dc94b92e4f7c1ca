"""Seeded splits by image and patient: rows that share one are never on both sides."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

from vision_rl.data.schema import group_of, write_row_sets
from vision_rl.errors import UserError
from vision_rl.media.check_images import check_images

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
    if max_validation is not None and max_validation < 0:
        raise UserError(f"--max-validation {max_validation} is below 0; give the most rows that validation may have")
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
        full = max_validation is not None and filled[name] + sizes[group] > max_validation
        if name == "validation" and full and "train" in target:
            # It takes no further part, and what it would have had goes to training.
            target["train"] += target.pop(name) - filled[name]
            name = "train"
        filled[name] += sizes[group]
        chosen[group] = name
    return [chosen[group] for group in groups]


def write_splits(
    rows: Callable[[], Iterable[dict[str, Any]]],
    output_dir: Path,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    max_validation: int | None = None,
    by_content: bool = True,
    group_by: str = "",
    progress: Callable[[Iterable[Any], str, int], Iterable[Any]] = lambda items, label, total: items,
) -> dict[Path, int]:
    """Write `train.parquet`, `validation.parquet` and `test.parquet` together; returns the number of rows of each.

    `rows` gives the rows (absolute image paths) afresh on each call. `by_content` opens every picture, so that copies
    under two names stay together; without it the path decides. `group_by` names a field of `meta` whose rows stay together too;
    "": that of the patient, in the sets that name theirs. Raises `UserError` for a picture that cannot be opened, a row
    without the field that was named, and where a file of an earlier split would be left over.
    """
    targets = {name: output_dir / f"{name}.parquet" for name in SPLITS}
    for name, path in targets.items():
        if not shares.get(name) and path.exists():
            raise UserError(f"{path} is left from an earlier split; remove it or choose another --output-dir")
    keys, groups = [], []
    for number, row in enumerate(rows()):
        keys.append(row["image_paths"])
        groups.append(group_of(row, group_by))
        if group_by and groups[-1] is None:
            raise UserError(
                f"row {number} (id {row['id']}) has no meta:{group_by}; its meta has {', '.join(row['meta'])}"
            )
    if not keys:
        raise UserError("there are no rows to split; convert a data set first")
    if by_content:
        unique = dict.fromkeys(path for paths in keys for path in paths)
        contents = {}
        for check in progress(check_images(unique), "images", len(unique)):
            if check.error:
                raise UserError(f"{check.error} (verify --drop-bad leaves such rows out)")
            contents[check.path] = check.content
        keys = [[contents[path] for path in paths] for paths in keys]
    keys = [[*own, *([] if group is None else [group])] for own, group in zip(keys, groups, strict=True)]
    chosen = assign_splits(keys, shares, seed=seed, max_validation=max_validation)
    present = [name for name in SPLITS if shares.get(name)]
    return write_row_sets({targets[name]: compress(rows(), map(name.__eq__, chosen)) for name in present})


def connected_groups(image_keys: Sequence[Sequence[str]]) -> list[int]:
    """A group number per row: equal for rows that share an image directly or through other rows."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first_row: dict[str, int] = {}
    pairs = [(first_row.setdefault(key, row), row) for row, keys in enumerate(image_keys) for key in keys]
    rows = len(image_keys)
    shared = coo_array(([1] * len(pairs), tuple(zip(*pairs, strict=True)) or ((), ())), shape=(rows, rows))
    groups: list[int] = connected_components(shared, directed=False)[1].tolist()
    return groups


def parse_shares(text: str) -> dict[str, float]:
    """`60/20/20` (train/validation/test) or `80/20` (train/validation) as shares by name; `UserError` otherwise."""
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError as error:
        raise UserError(f"--shares {text!r} is not like 60/20/20") from error
    if not 2 <= len(shares) <= 3 or not all(0 <= share < math.inf for share in shares) or sum(shares) <= 0:
        raise UserError(f"--shares {text!r} is not like 60/20/20 (train/validation/test)")
    return dict(zip(SPLITS, shares, strict=False))
