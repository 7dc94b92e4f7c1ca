"""Bootstrap intervals of a mean, resampled by image, because questions about one picture are not independent.

Resampling rows would treat the dozen instructions of one screenshot as a dozen independent draws and report intervals
that are too narrow. Where every row has its own picture this is the ordinary percentile bootstrap
(`scipy.stats.bootstrap(..., method="percentile")`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
_CELLS = 4_000_000  # of one block of draws: 32 MB


def resampled_means(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, *, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """Means of `resamples` bootstrap samples, shape (resamples,); whole clusters are drawn with replacement.

    clusters: one key per value (the picture); None: every value is its own. Raises `ValueError` for no values.
    """
    if not len(values):
        raise ValueError("there is nothing to resample")
    numbers = np.asarray(values, dtype=np.float64)
    if clusters is None:
        sums: NDArray[Any] = numbers
        sizes: NDArray[Any] = np.ones(len(numbers))
    else:
        index = {key: place for place, key in enumerate(dict.fromkeys(clusters))}
        places = np.fromiter((index[key] for key in clusters), dtype=np.int64, count=len(numbers))
        sums = np.bincount(places, weights=numbers, minlength=len(index))
        sizes = np.bincount(places, minlength=len(index))
    rng = np.random.default_rng(0)
    count = len(sums)
    block = max(1, _CELLS // count)
    means = []
    for start in range(0, resamples, block):
        draws = rng.integers(0, count, size=(min(block, resamples - start), count))
        means.append(sums[draws].sum(axis=1) / sizes[draws].sum(axis=1))
    return np.concatenate(means)


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    resamples: int = RESAMPLES,
) -> tuple[float, float] | None:
    """The 95 % percentile interval of the mean; None where resampling has nothing to say.

    That is so for fewer than two clusters, and for values that are all equal: no hit in ten rows does not mean that the
    true rate is between 0 and 0.
    """
    distinct = len(values) if clusters is None else len(set(clusters))
    if distinct < 2 or min(values) == max(values):
        return None
    low, high = np.quantile(resampled_means(values, clusters, resamples=resamples), [0.025, 0.975])
    return float(low), float(high)
