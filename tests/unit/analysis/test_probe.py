"""The linear probe of pre-trainings: units by alignment, and what of them a linear classifier reads off."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from distill.analysis.probe import Alignments, align, nearest_units, probe
from distill.batch import Batch, Output
from distill.fsa.graph import Fsa
from distill.graphs.topology import ctc


def test_blanks_belong_to_the_nearest_unit() -> None:
    path = np.array([0, 0, 3, 0, 0, 0, 5, 0, 0, 2, 0])
    assert nearest_units(path, 0).tolist() == [3, 3, 3, 3, 3, 5, 5, 5, 2, 2, 2]
    assert nearest_units(path, None).tolist() == path.tolist()
    draw = np.random.default_rng(0)
    for _ in range(50):
        path = draw.integers(0, 3, 12) * draw.integers(0, 2, 12)
        emitted = np.flatnonzero(path)
        if len(emitted):
            nearest = [min(emitted, key=lambda place: (abs(place - t), place)) for t in range(len(path))]
            assert nearest_units(path, 0).tolist() == path[nearest].tolist()


class States(torch.nn.Module):
    """A model whose block 1 has a direction for each unit of frame and cut, and block 0 nothing but noise."""

    def __init__(self, units: dict[str, np.ndarray], noise: float, thin: int = 1) -> None:
        super().__init__()
        self.units, self.noise, self.thin = units, noise, thin
        self.anchor = torch.nn.Parameter(torch.zeros(()))

    def forward(self, wave: torch.Tensor, samples: torch.Tensor) -> Output:
        rows = [self.units[f"cut{int(number)}"] for number in wave[:, 0]]
        labels = torch.from_numpy(np.stack(rows))[:, self.thin // 2 :: self.thin]
        hidden = torch.nn.functional.one_hot(labels, 4).float()
        draw = torch.Generator().manual_seed(len(rows))
        noise = torch.randn(hidden.shape, generator=draw)
        return Output(hidden, torch.full((len(rows),), labels.shape[1]), (noise, hidden + self.noise * noise))


def aligned(cuts: int = 12, frames: int = 40) -> Alignments:
    draw = np.random.default_rng(1)
    labels = {f"cut{number}": draw.integers(0, 4, frames) for number in range(cuts)}
    wave = torch.arange(cuts).float()[:, None].expand(cuts, 8).contiguous()
    batches = [Batch(tuple(f"cut{n}" for n in range(cuts)), wave, torch.full((cuts,), 8))]
    return Alignments(lambda: batches, labels)


def test_a_probe_reads_units_where_they_are_and_nowhere_else() -> None:
    alignments = aligned()
    figures = probe(States(dict(alignments.labels), 0.1), alignments)  # type: ignore[arg-type]
    assert figures["probe"] == figures["probe_block1"] == 1.0
    assert abs(figures["probe_block0"] - alignments.majority) < 0.15


def test_a_probe_is_the_classifier_of_scikit_learn_on_halves() -> None:
    alignments = aligned()
    model = States(dict(alignments.labels), 1.5)
    (batch,) = alignments.batches()
    states = model(batch.wave, batch.samples).hidden[1].numpy()
    names = sorted(alignments.labels)
    train, test = [names[n::2] for n in (0, 1)]
    rows = {name: states[batch.ids.index(name)] for name in names}
    classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    classifier.fit(np.concatenate([rows[n] for n in train]), np.concatenate([alignments.labels[n] for n in train]))
    right = [classifier.predict(rows[n]) == alignments.labels[n] for n in test]
    assert probe(model, alignments)["probe_block1"] == pytest.approx(np.concatenate(right).mean())  # type: ignore[arg-type]


def test_a_model_of_fewer_frames_is_probed_at_its_own() -> None:
    alignments = aligned()
    assert probe(States(dict(alignments.labels), 0.1, thin=2), alignments)["probe_block1"] == 1.0  # type: ignore[arg-type]


def test_alignments_are_best_paths_of_the_transcripts() -> None:
    graph = ctc(Fsa.from_arcs([(0, 1, 2, 0.0), (1, 2, 1, 0.0)], {2: 0.0}, 3))
    logits = torch.tensor([[0.0, 0, 5], [5, 0, 0], [0, 5, 0], [0, 5, 0], [9, 9, 9]])[None]
    model = SimpleNamespace(eval=lambda: None, parameters=lambda: iter([torch.zeros(())]))
    run = type(
        "Run", (SimpleNamespace,), {"__call__": lambda self, wave, samples: Output(logits, torch.tensor([4]), ())}
    )
    batch = Batch(("a",), torch.zeros(1, 8), torch.tensor([8]), [graph])
    found = align(run(**vars(model)), lambda: [batch])  # type: ignore[arg-type]
    assert found.labels["a"].tolist() == [2, 2, 1, 1] and found.majority == 0.5
