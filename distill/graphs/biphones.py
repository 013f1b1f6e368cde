"""Left biphones: a unit's outputs depend on the unit before it; rare pairs share them.

The tying needs no tree: it counts pairs, as Kaldi's gmm-init-biphone (--min-biphone-count,
--min-monophone-count, --ci-phones) does for end-to-end LF-MMI (Hadian et al. 2018).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from distill.graphs.topology import Topology


def count_pairs(sequences: Iterable[Sequence[int]], num_units: int) -> np.ndarray:
    """How often unit u follows unit l, row 0 the beginning: (U, U) int64."""
    counts = np.zeros((num_units, num_units), dtype=np.int64)
    for units in sequences:
        if len(units):
            right = np.asarray(units)
            left = np.concatenate([[0], right[:-1]])
            np.add.at(counts, (left, right), 1)
    return counts


def tied_left_biphones(
    kind: str,
    counts: np.ndarray,
    min_biphone_count: int = 100,
    min_monophone_count: int = 20,
    independent: Collection[int] = (),
) -> Topology:
    """Left biphones that are seen often enough; the others share outputs.

    counts (U, U) as `count_pairs` gives. A pair seen `min_biphone_count` times has a class of its own; else
    all such pairs of the unit share one, if the unit is seen more than `min_monophone_count` times; else they
    use one class common to all rare units. `independent` units (silence) have one class each, and count as
    the beginning for the unit after them. At the beginning a unit always has its own class.
    """
    units = len(counts)
    classes = np.full((units, units), -1)
    fresh = iter(range(units * units + 1))
    for unit in sorted(independent):
        classes[:, unit] = next(fresh)
    dependent = [unit for unit in range(1, units) if unit not in set(independent)]
    total = counts.sum(0)
    common = -1
    for unit in dependent:
        classes[[0, *independent], unit] = next(fresh)
        alone = -1
        for left in dependent:
            if counts[left, unit] >= min_biphone_count:
                classes[left, unit] = next(fresh)
            elif total[unit] > min_monophone_count:
                alone = next(fresh) if alone < 0 else alone
                classes[left, unit] = alone
            else:
                common = next(fresh) if common < 0 else common
                classes[left, unit] = common
    return Topology(kind, classes)
