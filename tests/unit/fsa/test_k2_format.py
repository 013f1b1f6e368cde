"""k2's files: what is written is read back, in k2's layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distill.fsa.graph import Fsa
from distill.fsa.k2_format import (
    from_k2_dict,
    hmm_to_k2_dict,
    k2_dict,
    k2_vector_dict,
    load_fsa,
    save_fsa,
    transducer_to_k2_dict,
)
from distill.graphs import topology
from distill.lfmmi import NativeEngine
from tests.support.k2_readers import from_k2_vector_dict, hmm_from_k2_dict
from tests.support.random_graphs import assert_same, transducer
from tests.support.random_graphs import unsorted_fsa as graph


def test_k2_dict_has_k2s_layout() -> None:
    fsa = graph()
    arcs = k2_dict(fsa)["arcs"]
    assert arcs.dtype == torch.int32 and arcs.shape == (fsa.num_arcs + np.isfinite(fsa.final).sum(), 4)
    src, dst, label, bits = arcs.numpy().T
    assert (np.diff(src) >= 0).all()
    last = label == -1
    assert (dst[last] == fsa.num_states).all() and (dst[~last] < fsa.num_states).all()
    scores = np.ascontiguousarray(bits).view(np.float32)
    assert scores[last] == pytest.approx(fsa.final[np.isfinite(fsa.final)])


def test_graph_files_are_read_back_and_do_not_change(tmp_path: Path) -> None:
    save_fsa(tmp_path / "a.pt", graph())
    assert_same(load_fsa(tmp_path / "a.pt"), graph())
    first = (tmp_path / "a.pt").read_bytes()
    save_fsa(tmp_path / "a.pt", graph())
    assert (tmp_path / "a.pt").read_bytes() == first
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pt"]


def test_two_final_arcs_of_a_state_add_up() -> None:
    half = np.float32(np.log(0.5)).view(np.int32)
    arcs = torch.tensor([[0, 1, 1, 0], [1, 2, -1, int(half)], [1, 2, -1, int(half)]], dtype=torch.int32)
    assert from_k2_dict({"arcs": arcs}).final == pytest.approx([-np.inf, 0.0], abs=1e-6)


def test_vector_of_graphs_has_k2s_layout() -> None:
    """As k2 1.23.4 writes the FsaVec of these two graphs."""
    one = torch.tensor([[0, 1, 5, 0], [0, 1, 6, 0], [1, 2, -1, 0]], dtype=torch.int32)
    two = torch.tensor([[0, 1, -1, 0]], dtype=torch.int32)
    content = k2_vector_dict([{"arcs": one}, {"arcs": two}])
    assert content["arcs"].dtype == torch.int32
    head, arcs = content["arcs"][:8].tolist(), content["arcs"][8:].tolist()
    assert (head, arcs) == ([2, 0, 0, 3, 5, 0, 3, 4], [0, 1, 5, 0, 0, 1, 6, 0, 1, 2, -1, 0, 0, 1, -1, 0])


def test_vector_of_graphs_there_and_back() -> None:
    graphs = [graph(0), graph(1, states=3)]
    endless = Fsa.from_arcs([(0, 1, 3, 0.0)], {}, 2)
    back = from_k2_vector_dict(k2_vector_dict([k2_dict(each) for each in (graphs[0], endless, graphs[1])]))
    assert len(back) == 3 and not back[1].num_arcs and not np.isfinite(back[1].final).any()
    for one, other in zip(graphs, (back[0], back[2])):
        assert_same(one, other)


@pytest.mark.parametrize("seed", range(5))
def test_graph_over_frames_there_and_back(seed: int) -> None:
    """All labellings of two frames keep their weight."""
    hmm = topology.ctc(graph(seed))
    back = hmm_from_k2_dict(hmm_to_k2_dict(hmm))
    probs, lengths = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(seed)).double(), torch.tensor([2])
    scores = [NativeEngine().score(probs, lengths, each).total.item() for each in (hmm, back)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert back.accepts_empty == pytest.approx(hmm.accepts_empty, rel=1e-6)


def test_unreadable_graphs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="stage"):
        load_fsa(tmp_path / "none.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match=r"cut\.pt: not readable as a graph: cut short, .*; remove it and make it"):
        load_fsa(tmp_path / "cut.pt")
    torch.save({"arcs": torch.zeros(3, 4)}, tmp_path / "floats.pt")
    with pytest.raises(ValueError, match=r"floats\.pt: 'arcs' are torch.float32, expected torch.int32"):
        load_fsa(tmp_path / "floats.pt")
    torch.save({"arcs": torch.zeros(3, 3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"other\.pt: expected a dict with 'arcs'"):
        load_fsa(tmp_path / "other.pt")


def test_transducer_as_k2_dict_starts_at_zero() -> None:
    content = transducer_to_k2_dict(transducer())
    arcs = content["arcs"]
    scores = arcs[:, 3].view(torch.float32).tolist()
    rows = list(zip(*arcs[:, :3].T.tolist(), content["aux_labels"].tolist(), scores))
    assert rows == [(0, 1, 5, 9, -0.5), (1, 2, 0, 8, -1.5), (1, 1, 4, 0, -2.5), (2, 3, -1, -1, -0.25)]
