"""Decoding without a word graph: the best path of the denominator's posteriors, scored in units.

A model trained with LF-MMI alone puts little mass on blank, so its frame-wise argmax means nothing;
the argmax of the posteriors under the denominator graph does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import torch

from distill.fsa.graph import Hmm
from distill.graphs.topology import Topology
from distill.lfmmi import Engine, posteriors

BLANK = 0
TIE = 1e-9  # of a path's log-weight decides between equal sums of posteriors


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
    return [topology.units(labels.tolist()) for labels in best_labels(engine, denominator, log_probs)]


def best_labels(engine: Engine, denominator: Hmm, log_probs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The labelling with the largest sum of posteriors that is a path of the graph: (T, V) arrays -> (T,) each.

    Under a complete n-gram and the CTC topology that is the argmax of every frame. Where outputs depend on each
    other (two_pdf, biphones, n-grams of what was seen) the argmaxes need not fit together. Empty without a path.
    """
    lengths = torch.tensor([len(x) for x in log_probs])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(x) for x in log_probs], batch_first=True)
    posterior = posteriors(engine, padded, lengths, denominator).double().cpu().numpy()
    paths = _Paths(denominator)
    return [paths.best(each[:length]) for each, length in zip(posterior, lengths.tolist())]


class _Paths:
    """Labellings of a graph's paths; arcs in the order of the state they lead to."""

    def __init__(self, graph: Hmm) -> None:
        order = np.argsort(graph.dst.numpy(), kind="stable")
        self.src, self.dst, weight = (x.numpy()[order] for x in (graph.src, graph.dst, graph.weight))
        self.label, self.begins, self.ends = (x.numpy() for x in (graph.label, graph.initial, graph.final))
        self.tie = TIE * weight
        self.reached, self.first = np.unique(self.dst, return_index=True)

    def best(self, gain: np.ndarray) -> np.ndarray:
        """gain (T, V) of each output in each frame -> (T,) outputs; of equal sums the likelier path."""
        labels = gain.argmax(1)
        return labels if not len(gain) or self._accepts(labels) else self._viterbi(gain)

    @cached_property
    def _onward(self) -> dict[int, dict[int, list[int]]]:
        """States that follow a state, by their label: few, so a labelling is followed faster than by whole arrays."""
        found: dict[int, dict[int, list[int]]] = {}
        for src, dst, label in zip(self.src.tolist(), self.dst.tolist(), self.label[self.dst].tolist()):
            found.setdefault(src, {}).setdefault(label, []).append(dst)
        return found

    def _accepts(self, labels: np.ndarray) -> bool:
        onward = self._onward
        alive = set(np.flatnonzero((self.begins > -np.inf) & (self.label == labels[:1])).tolist())
        for label in labels[1:].tolist():
            alive = {dst for src in alive if src in onward for dst in onward[src].get(label, ())}
        return any(self.ends[state] > -np.inf for state in alive)

    def _viterbi(self, gain: np.ndarray) -> np.ndarray:
        score = np.full((len(gain), len(self.label)), -np.inf)
        for t, frame in enumerate(gain):
            if t:
                score[t, self.reached] = np.maximum.reduceat(score[t - 1][self.src] + self.tie, self.first)
            else:
                score[t] = TIE * self.begins
            score[t] += frame[self.label]
        ending = score[-1] + TIE * self.ends if len(gain) else np.array([-np.inf])
        state = int(ending.argmax())
        labels = np.zeros(len(gain) if ending[state] > -np.inf else 0, dtype=np.int64)
        for t in range(len(labels) - 1, -1, -1):
            labels[t] = self.label[state]
            low, high = np.searchsorted(self.dst, [state, state + 1])
            if t:
                state = int(self.src[low + np.argmax(score[t - 1][self.src[low:high]] + self.tie[low:high])])
        return labels


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
