"""Decoding without a word graph: the best path of the denominator's posteriors, scored in units.

A model trained with LF-MMI alone puts little mass on blank, so the argmax of its outputs is no labelling;
the argmax of the posteriors under the denominator graph is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from distill.decode.viterbi import Viterbi
from distill.fsa.graph import Hmm
from distill.graphs.topology import Topology
from distill.lfmmi import Engine, posteriors

TIE = 1e-9  # of a path's log-weight decides between equal sums of posteriors


class DenominatorPath:
    """The labelling with the largest sum of posteriors that is a path of the denominator.

    Under a complete n-gram and the CTC topology that is the argmax of every frame. Where outputs depend on each
    other (two_pdf, biphones, n-grams without back-off) the argmaxes need not form a path. Of equal sums the likelier
    path is taken.
    """

    def __init__(self, engine: Engine, denominator: Hmm) -> None:
        self._engine, self._denominator, self._viterbi = engine, denominator, Viterbi(denominator, TIE)
        # successors by state and label: with few of each, a labelling is followed faster than by whole arrays
        self._successors: dict[int, dict[int, list[int]]] = {}
        src, dst = self._viterbi.src.tolist(), self._viterbi.dst.tolist()
        for source, target, label in zip(src, dst, self._viterbi.label[dst].tolist()):
            self._successors.setdefault(source, {}).setdefault(label, []).append(target)

    def units(self, topology: Topology, log_probs: Sequence[np.ndarray]) -> list[list[int]]:
        """Unit ids of each utterance from its (T, V) log-probabilities."""
        return [topology.units(labels.tolist()) for labels in self.labels(log_probs)]

    def labels(self, log_probs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs (T,) of each utterance from its (T, V) log-probabilities; empty without a path."""
        lengths = torch.tensor([len(x) for x in log_probs])
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in log_probs], batch_first=True)
        posterior = posteriors(self._engine, padded, lengths, self._denominator).double().cpu().numpy()
        return [self.best(frames[:length]) for frames, length in zip(posterior, lengths.tolist())]

    def best(self, posterior: np.ndarray) -> np.ndarray:
        """posterior (T, V) of each output in each frame -> (T,) outputs; empty without a path."""
        labels = posterior.argmax(1)
        if not len(labels) or self._accepts(labels):
            return labels
        path = self._viterbi.labels(posterior)
        return labels[:0] if path is None else path

    def _accepts(self, labels: np.ndarray) -> bool:
        viterbi, successors = self._viterbi, self._successors
        states = set(np.flatnonzero((viterbi.initial > -np.inf) & (viterbi.label == labels[0])).tolist())
        for label in labels[1:].tolist():
            states = {dst for src in states if src in successors for dst in successors[src].get(label, ())}
        return any(viterbi.final[state] > -np.inf for state in states)


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
        index = int(best[position])
        chosen.append(alternatives[index])
        position = int(starts[index][position])
    return [unit for units in reversed(chosen) for unit in units]


def _extend(errors: np.ndarray, units: Sequence[int], target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Edit distance continued through `units`: new errors[j], and where in the hypothesis the word began."""
    places = start = np.arange(len(errors))
    for unit in units:
        deleted, substituted = errors + 1, errors[:-1] + (target != unit)
        new, origin = deleted.copy(), start.copy()
        better = substituted < new[1:]
        new[1:][better], origin[1:][better] = substituted[better], start[:-1][better]
        before = np.minimum.accumulate(new - places)  # insertions run along the row
        last = np.maximum.accumulate(np.where(new - places == before, places, 0))
        errors, start = before + places, origin[last]
    return errors, start
