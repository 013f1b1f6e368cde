"""Graph files in k2's hands: what we write k2 reads, and we read what k2 wrote."""

from __future__ import annotations

from pathlib import Path

import k2
import numpy as np
import pytest
import torch
from conftest import Mini
from reference import acceptor, frames_graph, rounded

from distill.fsa.epsilons import frames_only
from distill.fsa.graph import Fsa
from distill.fsa.k2_format import (
    decoding_graph_from_k2_dict,
    decoding_graph_to_k2_dict,
    from_k2_dict,
    hmm_to_k2_dict,
    k2_dict,
    k2_vector_dict,
    load_fsa,
    save_dict,
    save_fsa,
)
from distill.fsa.lattice import DecodingGraph
from distill.fsa.openfst import read_openfst, to_openfst_text
from distill.graphs.decoding_graph import lexicon_fst
from distill.graphs.topology import monophones
from tests.support.k2_readers import from_k2_vector_dict


def rows(fsa: k2.Fsa) -> list[tuple]:
    """Arcs as k2 has them, in order: source, target, label, output, score."""
    outputs = fsa.aux_labels.tolist() if hasattr(fsa, "aux_labels") else [None] * fsa.num_arcs
    columns = fsa.arcs.values()[:, :3].T.tolist()
    return sorted(zip(*columns, outputs, fsa.scores.tolist()), key=str)


def assert_graphs(left: Fsa, right: Fsa) -> None:
    orders = [np.lexsort((fsa.dst, fsa.label, fsa.src)) for fsa in (left, right)]
    for name in ("src", "dst", "label", "weight"):
        one, other = (getattr(fsa, name)[order] for fsa, order in zip((left, right), orders))
        np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(left.final, right.final, rtol=1e-6)


def test_denominators_there_and_back(mini: Mini, tmp_path: Path) -> None:
    for lm in (mini.bigram, mini.trigram):
        save_fsa(tmp_path / "denominator.pt", lm)
        theirs = k2.Fsa.from_dict(torch.load(tmp_path / "denominator.pt"))
        assert rows(theirs) == rows(acceptor(lm))
        torch.save(theirs.as_dict(), tmp_path / "again.pt")
        assert_graphs(load_fsa(tmp_path / "again.pt"), lm)
        torch.save(k2.arc_sort(theirs).as_dict(), tmp_path / "sorted.pt")
        assert_graphs(load_fsa(tmp_path / "sorted.pt"), lm)


def test_openfst_text_of_denominators(mini: Mini) -> None:
    theirs = k2.Fsa.from_openfst(to_openfst_text(mini.bigram), acceptor=False)
    del theirs.aux_labels
    assert rows(theirs) == rows(acceptor(mini.bigram))


def test_frames_graphs_are_those_that_k2_composes(mini: Mini) -> None:
    """The same labellings with the same weights: k2 finds them equal on random paths, either way."""
    for kind in ("ctc", "ctc_compact", "two_pdf"):
        topology, lm = monophones(kind, mini.lang.topology.num_units), rounded(mini.bigram)
        ours = k2.Fsa.from_dict(hmm_to_k2_dict(topology.compose(lm)))
        theirs = frames_graph(lm, topology)
        limits = {"beam": 100.0, "npath": 50, "delta": 1e-3}
        assert k2.is_rand_equivalent(ours, theirs, log_semiring=True, treat_epsilons_specially=False, **limits)


def test_numerators_as_one_vector(mini: Mini, tmp_path: Path) -> None:
    graphs = [mini.bigram, Fsa.from_arcs([(0, 1, 3, 0.0)], {}, 2), Fsa.from_arcs([(0, 1, 3, -0.5)], {1: -1.0}, 2)]
    save_dict(tmp_path / "num.pt", k2_vector_dict([k2_dict(graph) for graph in graphs]))
    theirs = k2.Fsa.from_dict(torch.load(tmp_path / "num.pt"))
    assert theirs.shape[0] == 3
    assert rows(theirs[0]) == rows(acceptor(mini.bigram))
    assert theirs[1].num_arcs == 0
    assert rows(theirs[2]) == [(0, 1, 3, None, -0.5), (1, 2, -1, None, -1.0)]
    back = from_k2_vector_dict(theirs.as_dict())
    assert_graphs(back[0], mini.bigram)
    assert not np.isfinite(back[1].final).any()
    assert_graphs(back[2], graphs[2])


def test_decoding_graph_there_and_back(hlg: DecodingGraph) -> None:
    content = decoding_graph_to_k2_dict(hlg)
    theirs = k2.Fsa.from_dict(content)
    assert theirs.properties & k2.fsa_properties.ARC_SORTED
    assert theirs.properties & k2.fsa_properties.ACCESSIBLE
    back, closed = decoding_graph_from_k2_dict(theirs.as_dict()), frames_only(hlg)
    assert decoding_graph_to_k2_dict(back)["arcs"].equal(content["arcs"])
    assert (back.num_states, len(back.dst)) == (closed.num_states, len(closed.dst))


def test_decoding_graph_with_several_words_on_an_arc(tmp_path: Path) -> None:
    """icefall's HLG has ragged output labels: words of epsilon arcs that k2 removed."""
    theirs = k2.Fsa.from_str("0 1 2 0.5\n0 2 3 0.25\n1 2 0 0.0\n2 3 -1 -1.0\n3")
    theirs.aux_labels = k2.RaggedTensor([[7, 8, 9], [], [5], [6, -1]])
    torch.save(theirs.as_dict(), tmp_path / "HLG.pt")
    graph = decoding_graph_from_k2_dict(torch.load(tmp_path / "HLG.pt"))
    src = np.repeat(np.arange(graph.num_states), np.diff(graph.first))
    arcs = list(zip(src, graph.dst, graph.label, graph.word, graph.score))
    assert arcs == [
        (0, 3, 2, 7, 0.5), (0, 2, 3, 0, 0.25), (1, 2, 0, 5, 0.0), (2, 5, -1, 6, -1.0), (3, 4, -1, 8, 0.0),
        (4, 1, -1, 9, 0.0),
    ]  # fmt: skip
    np.testing.assert_array_equal(graph.final, [-np.inf] * 5 + [0.0])


def test_lexicon(mini: Mini, tmp_path: Path) -> None:
    from distill.fsa.k2_format import transducer_to_k2_dict

    fst, _ = lexicon_fst(mini.lang)
    theirs = k2.Fsa.from_dict(transducer_to_k2_dict(fst))
    fst.write(str(tmp_path / "L.fst"))
    _, final, source, arcs = read_openfst(tmp_path / "L.fst")
    assert theirs.num_arcs == len(source) + np.isfinite(final).sum()
    end = len(final)
    expected = [
        (s, int(a["target"]), int(a["input"]), int(a["output"]), -float(a["cost"])) for s, a in zip(source, arcs)
    ]
    expected += [(s, end, -1, -1, -float(final[s])) for s in np.flatnonzero(np.isfinite(final))]
    assert rows(theirs) == sorted(expected, key=str)


@pytest.mark.parametrize("content", [{}, {"arcs": torch.zeros(3, 3)}, {"arcs": torch.zeros(9)}, [1]])
def test_what_is_no_graph(content: object) -> None:
    with pytest.raises(ValueError, match=r"L\.pt: expected a dict with 'arcs'"):
        from_k2_dict(content, "L.pt")  # type: ignore[arg-type]
