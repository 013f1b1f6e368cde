"""A linear probe: how well the units of speech can be read off each block of a model that was never taught them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from distill.batch import Batch
from distill.decode.viterbi import Viterbi
from distill.models.recogniser import Recogniser

LEAST_ALIGNED = 2
"""Utterances, of which one half trains the classifier and the other tries it."""


@dataclass(frozen=True)
class Alignments:
    """Units of the frames of some utterances: labels[i] (T_i,), by forced alignment."""

    batches: Callable[[], Iterable[Batch]]
    labels: Mapping[str, np.ndarray]

    @property
    def majority(self) -> float:
        """Share of frames of the most frequent unit, which a probe without any input reaches."""
        counts = np.bincount(np.concatenate(list(self.labels.values())))
        return float(counts.max() / counts.sum())


@torch.no_grad()
def align(model: Recogniser, batches: Callable[[], Iterable[Batch]], blank: int | None = 0) -> Alignments:
    """Align the utterances of batches, which have numerators, by a trained model; those without a path are left out.

    A frame of blank belongs to the unit that is nearest in time.
    """
    model.eval()
    device = next(model.parameters()).device
    labels: dict[str, np.ndarray] = {}
    for batch in batches():
        moved = batch.to(device)
        output = model(moved.wave, moved.samples)
        log_probs = output.logits.log_softmax(2).double().cpu().numpy()
        for cut_id, row, length, graph in zip(batch.ids, log_probs, output.lengths.tolist(), batch.graphs):
            path = Viterbi(graph).labels(row[:length])
            if path is not None and (path != blank).any():
                labels[cut_id] = nearest_units(path, blank)
    return Alignments(batches, labels)


def nearest_units(path: np.ndarray, blank: int | None) -> np.ndarray:
    """Outputs (T,) of a path with every blank replaced by the output that is nearest, of two the earlier one."""
    emitted = np.flatnonzero(path != blank)
    middle = (emitted[1:] + emitted[:-1]) / 2
    return path[emitted[np.searchsorted(middle, np.arange(len(path)))]]


@torch.no_grad()
def probe(model: Recogniser, aligned: Alignments) -> dict[str, float]:
    """Accuracy of a linear classifier of frames on the best block and on each, by its name; the model is in evaluation.

    The classifier is linear discriminant analysis with a shrunken covariance, which has no choices of its own, on the
    even utterances; the odd ones are classified. Frames of the model are those of the alignments, or a multiple.
    """
    found: dict[str, list[np.ndarray]] = {}
    device = next(model.parameters()).device
    for batch in (each.to(device) for each in aligned.batches()):
        output = model(batch.wave, batch.samples)
        for row, (cut_id, length) in enumerate(zip(batch.ids, output.lengths.tolist())):
            if cut_id in aligned.labels:
                found[cut_id] = [x[row, :length].float().cpu().numpy() for x in output.hidden]
    names = sorted(found)
    halves = names[::2], names[1::2]
    accuracies = [
        _accuracy(*(_joined(half, found, aligned.labels, block) for half in halves))
        for block in range(len(output.hidden))
    ]
    each = {f"probe_block{block}": accuracy for block, accuracy in enumerate(accuracies)}
    return {"probe": max(accuracies), **each}


Frames = tuple[np.ndarray, np.ndarray]


def _joined(
    names: Sequence[str], states: Mapping[str, list[np.ndarray]], labels: Mapping[str, np.ndarray], block: int
) -> Frames:
    """States (N, C) and units (N,) of some utterances' frames; units are thinned out to the model's frames."""
    rows, units = [], []
    for name in names:
        x, y = states[name][block], labels[name]
        step = max(1, round(len(y) / max(1, len(x))))
        y = y[step // 2 :: step][: len(x)]
        rows.append(x[: len(y)])
        units.append(y)
    return np.concatenate(rows), np.concatenate(units)


def _accuracy(train: Frames, test: Frames) -> float:
    if len(np.unique(train[1])) < 2:
        return float((test[1] == train[1][0]).mean())
    classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(*train)
    return float(classifier.score(*test))
