"""Bootstrap over utterances or speakers: the spread of an error rate over test sets."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

FEWEST = 10  # speakers; with fewer the intervals are far too narrow
BLOCK = 2_000_000  # indices drawn at once; bounds the memory, the draws stay the same


def resampled(counts: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Sums of counts (N, K) over N rows drawn with replacement: (samples, K); the same seed, the same draws."""
    rng, rows = np.random.default_rng(seed), len(counts)
    blocks = []
    while samples > 0:
        some = min(samples, max(1, BLOCK // rows))
        drawn = rng.integers(0, rows, (some, rows))
        blocks.append(np.stack([column[drawn].sum(1) for column in counts.T], axis=1))
        samples -= some
    return np.concatenate(blocks)


def interval(values: np.ndarray) -> tuple[float, float]:
    """2.5 and 97.5 percentile."""
    low, high = np.percentile(values, [2.5, 97.5])
    return round(float(low), 3), round(float(high), 3)


def grouped(counts: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Rows of counts (N, K) summed within equal groups (N of them): (groups, K), in order of first appearance."""
    place = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(place), counts.shape[1]), dtype=counts.dtype)
    np.add.at(sums, [place[group] for group in groups], counts)
    return sums
