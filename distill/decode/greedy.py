"""Decoding without a word graph: the best path of the denominator's posteriors, scored in units.

A model trained with LF-MMI alone puts little mass on blank, so its frame-wise argmax means nothing;
the argmax of the posteriors under the denominator graph does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from distill.fsa import Engine, Hmm, posteriors
from distill.graphs.topology import Topology

BLANK = 0


def collapse(labels: Iterable[int]) -> list[int]:
    """Frame labels to units: repeats merged, blanks dropped."""
    units, previous = [], BLANK
    for label in labels:
        if label not in (BLANK, previous):
            units.append(label)
        previous = label
    return units


def best_units(
    engine: Engine, denominator: Hmm, topology: Topology, log_probs: Sequence[np.ndarray]
) -> list[list[int]]:
    """Best path of the denominator's posteriors for each utterance: (T, V) arrays -> unit ids."""
    lengths = torch.tensor([len(x) for x in log_probs])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in log_probs], batch_first=True)
    best = posteriors(engine, padded, lengths, denominator).argmax(2)
    return [topology.units(row[:length].tolist()) for row, length in zip(best, lengths.tolist())]


def closest_pronunciation(hypothesis: Sequence[int], pronunciations: Sequence[Sequence[Sequence[int]]]) -> list[int]:
    """The choice of pronunciations with the fewest errors against the hypothesis, as one unit sequence.

    pronunciations: for each word its alternatives. Dynamic programming over words: errors[j] is the
    least number of errors of the words so far against the first j units.
    """
    errors = np.arange(len(hypothesis) + 1)
    target = np.asarray(hypothesis)
    history: list[tuple[np.ndarray, list[np.ndarray]]] = []
    for alternatives in pronunciations:
        rows, starts = zip(*(_extend(errors, units, target) for units in alternatives))
        best = np.argmin(np.stack(rows), axis=0)
        errors = np.min(np.stack(rows), axis=0)
        history.append((best, list(starts)))
    chosen: list[Sequence[int]] = []
    position = len(hypothesis)
    for alternatives, (best, starts) in zip(reversed(pronunciations), reversed(history)):
        which = int(best[position])
        chosen.append(alternatives[which])
        position = int(starts[which][position])
    return [unit for units in reversed(chosen) for unit in units]


def _extend(errors: np.ndarray, units: Sequence[int], target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edit distance continued through `units`: new errors[j], and where in the hypothesis the word began."""
    start = np.arange(len(errors))
    for unit in units:
        deleted, substituted = errors + 1, errors[:-1] + (target != unit)
        new, origin = deleted.copy(), start.copy()
        better = substituted < new[1:]
        new[1:][better], origin[1:][better] = substituted[better], start[:-1][better]
        for j in range(1, len(new)):  # insertions run along the row
            if new[j - 1] + 1 < new[j]:
                new[j], origin[j] = new[j - 1] + 1, origin[j - 1]
        errors, start = new, origin
    return errors, start
