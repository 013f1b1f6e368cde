"""Decoding graphs without epsilons say the same, and k2's dict of one is read back."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from distill.fsa.epsilons import frames_only
from distill.fsa.graph import first_arcs
from distill.fsa.k2_format import decoding_graph_from_k2_dict, decoding_graph_to_k2_dict
from distill.fsa.lattice import NO_FRAME, DecodingGraph

Arc = tuple[int, int, int, int, float]


def graph(arcs: list[Arc], final: dict[int, float], states: int) -> DecodingGraph:
    """From (src, dst, label, word, score) tuples."""
    rows = sorted(arcs, key=lambda arc: arc[0])
    src, dst, label, word = np.array([arc[:4] for arc in rows], dtype=np.int32).reshape(-1, 4).T
    ends = np.full(states, -np.inf, dtype=np.float32)
    for state, score in final.items():
        ends[state] = score
    score = np.array([arc[4] for arc in rows], dtype=np.float32)
    return DecodingGraph(first_arcs(src, states), dst, label, word, score, ends)


def paths(graph: DecodingGraph, frames: int) -> dict[tuple, list[float]]:
    """Scores of every path of that many frames, by (outputs, words)."""
    found: dict[tuple, list[float]] = {}
    queue: list[tuple[int, tuple, tuple, float]] = [(0, (), (), 0.0)]
    for state, said, words, score in queue:
        if len(said) == frames and np.isfinite(graph.final[state]):
            found.setdefault((said, words), []).append(round(float(score + graph.final[state]), 4))
        for arc in range(graph.first[state], graph.first[state + 1]):
            label, word = int(graph.label[arc]), int(graph.word[arc])
            longer = said if label == NO_FRAME else (*said, label)
            if len(longer) <= frames:
                spoken = (*words, word) if word else words
                queue.append((int(graph.dst[arc]), longer, spoken, score + float(graph.score[arc])))
    return {key: sorted(scores) for key, scores in found.items()}


def random_graph(seed: int) -> DecodingGraph:
    """Words on arcs with a frame only; arcs without a frame lead to later states, so they make no circle."""
    rng = np.random.default_rng(seed)
    arcs = [(s, d, int(rng.integers(3)), int(rng.integers(3)), rng.normal())
            for s, d in product(range(5), repeat=2) if rng.random() < 0.35]  # fmt: skip
    arcs += [(s, d, NO_FRAME, 0, rng.normal()) for s, d in product(range(5), repeat=2) if s < d and rng.random() < 0.4]
    return graph(arcs, {4: rng.normal(), int(rng.integers(4)): rng.normal()}, 5)


@pytest.mark.parametrize("seed", range(20))
def test_every_path_stays_once(seed: int) -> None:
    before = random_graph(seed)
    after = frames_only(before)
    assert (after.label != NO_FRAME).all()
    for frames in range(1, 4):
        wanted, found = paths(before, frames), paths(after, frames)
        assert found.keys() == wanted.keys()
        for key in wanted:
            assert found[key] == pytest.approx(wanted[key], abs=1e-3)


def test_words_of_arcs_without_a_frame_move_to_their_neighbour() -> None:
    behind = graph([(0, 1, 2, 0, -1.0), (1, 2, NO_FRAME, 7, -0.5)], {2: 0.0}, 3)
    assert paths(frames_only(behind), 1) == {((2,), (7,)): [-1.5]}
    ahead = graph([(0, 1, NO_FRAME, 7, -0.5), (1, 2, 2, 0, -1.0)], {2: 0.0}, 3)
    assert paths(frames_only(ahead), 1) == {((2,), (7,)): [-1.5]}


def test_two_words_in_one_frame() -> None:
    both = graph([(0, 1, 2, 5, -1.0), (1, 2, NO_FRAME, 7, -0.5)], {2: 0.0}, 3)
    with pytest.raises(ValueError, match="two words in one frame, such as words 5 and 7"):
        frames_only(both)


def test_circle_without_frames() -> None:
    circle = graph([(0, 1, 2, 5, -1.0), (1, 1, NO_FRAME, 0, -0.5)], {1: 0.0}, 2)
    with pytest.raises(ValueError, match="cycle of arcs without frames"):
        frames_only(circle)


@pytest.mark.parametrize("seed", range(5))
def test_k2_dict_there_and_back(seed: int) -> None:
    content = decoding_graph_to_k2_dict(random_graph(seed))
    back = decoding_graph_from_k2_dict(content)
    again = decoding_graph_to_k2_dict(back)
    assert again["arcs"].equal(content["arcs"]) and again["aux_labels"].equal(content["aux_labels"])
    assert paths(back, 2) == paths(frames_only(random_graph(seed)), 2)


def test_labels_that_share_an_output() -> None:
    tied = graph([(0, 1, 3, 5, 0.0), (0, 1, 1, 6, 0.0)], {1: 0.0}, 2)
    content = decoding_graph_to_k2_dict(tied, columns=np.array([0, 1, 2, 1]))
    assert content["arcs"][:, 2].tolist() == [1, 1, -1]
    assert content["aux_labels"].tolist() == [5, 6, -1]


def test_acceptor_is_no_decoding_graph() -> None:
    with pytest.raises(ValueError, match=r"HLG\.pt: expected aux_labels, one for each of 1 arcs"):
        decoding_graph_from_k2_dict({"arcs": torch.tensor([[0, 1, -1, 0]], dtype=torch.int32)}, "HLG.pt")
