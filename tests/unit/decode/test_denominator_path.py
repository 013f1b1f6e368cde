"""Units without a word graph: collapsing, the closest pronunciation, the denominator's best path."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import kaldialign
import numpy as np
import pytest
import torch

from distill.decode.denominator_path import DenominatorPath, closest_pronunciation
from distill.graphs import topology
from distill.graphs.topology import monophones
from distill.graphs.unit_ngram import train_unit_ngram
from distill.lfmmi import NativeEngine
from tests.support.decoding import spoken


def distance(left: list[int], right: list[int]) -> int:
    return kaldialign.edit_distance(left, right)["total"]


@pytest.mark.parametrize("seed", range(40))
def test_closest_pronunciation_has_the_fewest_errors_of_all_choices(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def units(longest: int) -> list[int]:
        return rng.integers(1, 4, rng.integers(1, longest)).tolist()

    words = [[units(5) for _ in range(rng.integers(1, 4))] for _ in range(rng.integers(1, 5))]
    hypothesis = units(14) if seed else []
    choices = [[u for word in choice for u in word] for choice in itertools.product(*words)]
    found = closest_pronunciation(hypothesis, words)
    assert found in choices
    assert distance(found, hypothesis) == min(distance(choice, hypothesis) for choice in choices)


def test_no_words() -> None:
    assert closest_pronunciation([1, 2], []) == []


def test_best_units_follow_the_audio_where_it_is_clear() -> None:
    text = [(1, 2, 2, 3), (2, 3, 1), (3, 3)]
    denominator = topology.ctc(train_unit_ngram(text, 2, 4))
    audio = [spoken([1, 2, 0, 2, 3], 4), spoken([0, 3, 1], 4)]
    assert DenominatorPath(NativeEngine(), denominator).units(monophones("ctc", 4), audio) == [[1, 2, 2, 3], [3, 1]]


def test_best_units_follow_the_ngram_where_the_audio_leaves_the_order_open() -> None:
    denominator = topology.ctc(train_unit_ngram([(1, 2)] * 50, 2, 4))
    doubtful = np.log(np.array([[0.02, 0.9, 0.04, 0.04], [0.02, 0.02, 0.47, 0.49]], dtype=np.float32))
    assert DenominatorPath(NativeEngine(), denominator).units(monophones("ctc", 4), [doubtful]) == [[1, 2]]


@pytest.mark.parametrize("seed", range(60))
def test_the_best_labelling_of_all_paths_is_found(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arcs = [pair for pair in itertools.product(range(4), repeat=2) if rng.random() < 0.5]
    src, dst = torch.tensor(arcs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    begins, ends = (torch.tensor(np.where(rng.random(4) < 0.6, 0.0, -np.inf)) for _ in range(2))
    label = torch.tensor(rng.integers(0, 3, 4))
    gain = rng.integers(1, 90, (seed % 5, 3)).astype(np.float64)
    graph = SimpleNamespace(src=src, dst=dst, weight=torch.zeros(len(arcs)), label=label, initial=begins, final=ends)
    sums = [
        sum(frame[label[state]] for frame, state in zip(gain, path))
        for path in itertools.product(range(4), repeat=len(gain))
        if path and begins[path[0]] == 0 == ends[path[-1]] and {*itertools.pairwise(path)} <= {*arcs}
    ]
    found = DenominatorPath(NativeEngine(), graph).best(gain)  # type: ignore[arg-type]
    assert len(found) == (len(gain) if sums else 0)
    assert sum(frame[label] for frame, label in zip(gain, found)) == max(sums, default=0)
