"""What icefall's scripts make of an exported lang folder: the steps of compile_hlg.py and mmi_graph_compiler.py."""

from __future__ import annotations

import re
from pathlib import Path

import k2
import kaldilm
import numpy as np
import pytest
import torch
from conftest import Mini, spoken
from reference import log_probs, rounded, score

from distill.fsa.k2_format import decoding_graph_from_k2_dict
from distill.fsa.lattice import DecodingGraph, Lattice, Search
from distill.graphs.icefall_lang import write_icefall_lang, write_numerators
from distill.graphs.numerator import UnitLm, transcript_graph
from distill.graphs.topology import monophones
from distill.lfmmi import build_engine
from distill.search.determinise import best_path, words_of
from tests.support.lattices import with_lm

MINIMISED = 1e-4  # OpenFst's minimisation rounds weights to multiples of 2^-10; k2 does not minimise


@pytest.fixture(scope="module")
def folder(mini: Mini, hlg: DecodingGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("icefall_lang")
    write_icefall_lang(mini.lang, path, rounded(mini.bigram), hlg)
    return path


@pytest.fixture(scope="module")
def tables(folder: Path) -> tuple[k2.SymbolTable, k2.SymbolTable]:
    return tuple(k2.SymbolTable.from_file(folder / name) for name in ("tokens.txt", "words.txt"))


def load(path: Path) -> k2.Fsa:
    return k2.Fsa.from_dict(torch.load(path))


def highest_token(tokens: k2.SymbolTable) -> int:
    return max(tokens[symbol] for symbol in tokens.symbols if not re.match(r"^#\d+$", str(symbol)))


def test_tables_know_all_that_scripts_ask_for(mini: Mini, tables: tuple[k2.SymbolTable, k2.SymbolTable]) -> None:
    tokens, words = tables
    assert highest_token(tokens) == len(mini.lang.tokens) - 1
    assert tokens["#0"] == len(mini.lang.tokens)
    assert words["<eps>"] == 0 and words["#0"] == mini.lang.words["#0"]
    assert words["<UNK>"] == len(mini.lang.words)


def theirs_hlg(folder: Path, mini: Mini, tokens: k2.SymbolTable, words: k2.SymbolTable) -> k2.Fsa:
    """As compile_hlg.py makes HLG from L_disambig.pt and the word n-gram."""
    text = kaldilm.arpa2fst(
        input_arpa=str(mini.folder / "words.arpa"), output_fst="", disambig_symbol="#0",
        read_symbol_table=str(folder / "words.txt"),
    )  # fmt: skip
    grammar = k2.arc_sort(k2.Fsa.from_openfst(text, acceptor=False))
    lg = k2.connect(k2.compose(k2.arc_sort(load(folder / "L_disambig.pt")), grammar))
    lg = k2.connect(k2.determinize(lg))
    lg.labels[lg.labels >= tokens["#0"]] = 0
    lg.__dict__["_properties"] = None
    lg.aux_labels.values[lg.aux_labels.values >= words["#0"]] = 0
    lg = k2.connect(k2.remove_epsilon(lg))
    lg.aux_labels = lg.aux_labels.remove_values_eq(0)
    hlg = k2.compose(k2.ctc_topo(highest_token(tokens)), k2.arc_sort(lg), inner_labels="tokens")
    return k2.arc_sort(k2.connect(hlg))


def test_decoding_graphs_are_the_same(
    folder: Path, mini: Mini, hlg: DecodingGraph, tables: tuple[k2.SymbolTable, k2.SymbolTable]
) -> None:
    """HLG as compile_hlg.py makes it finds the words and scores that ours finds, read by k2 and by us."""
    theirs = theirs_hlg(folder, mini, *tables)
    assert isinstance(theirs.aux_labels, k2.RaggedTensor)
    probs, lengths = spoken(mini, mini.sentences[100:104])
    search = Search(beam=20.0, lattice_beam=1.0, max_active=10_000)
    expected = build_engine("native").lattice(probs, lengths, hlg, search)
    read = build_engine("native").lattice(probs, lengths, decoding_graph_from_k2_dict(theirs.as_dict()), search)
    for graph in (theirs, load(folder / "HLG.pt")):
        segments = torch.stack([torch.arange(4), torch.zeros(4), lengths], 1).to(torch.int32)
        order = lengths.argsort(descending=True)
        found = k2.intersect_dense_pruned(graph, k2.DenseFsaVec(probs, segments[order]), 20.0, 1.0, 30, 10_000)
        totals = found.get_tot_scores(use_double_scores=True, log_semiring=False)
        np.testing.assert_allclose(totals, [best_score(expected[row]) for row in order], rtol=MINIMISED)
        best = k2.shortest_path(found, use_double_scores=True)
        assert [said(best, row) for row in range(4)] == [
            words_of(each, best_path(each)[0]) for each in map(expected.__getitem__, order)
        ]
    for one, other in zip(expected, read):
        assert best_score(other) == pytest.approx(best_score(one), rel=MINIMISED)
        assert words_of(other, best_path(other)[0]) == words_of(one, best_path(one)[0])


def said(paths: k2.Fsa, row: int) -> list[int]:
    words = paths[row].aux_labels
    words = words.values if isinstance(words, k2.RaggedTensor) else words
    return [word for word in words.tolist() if word > 0]


def best_score(lattice: Lattice) -> float:
    path = best_path(lattice)[0]
    scores = lattice.acoustic[path].sum(dtype=np.float64) + lattice.graph[path].sum(dtype=np.float64)
    return float(scores + lattice.final[lattice.dst[path[-1]]])


def test_training_graphs_are_the_same(folder: Path, mini: Mini, tables: tuple[k2.SymbolTable, k2.SymbolTable]) -> None:
    """Numerators and denominator as MmiTrainingGraphCompiler compiles them from L.pt and P.fst.txt."""
    tokens, words = tables
    lm = k2.Fsa.from_openfst((folder / "P.fst.txt").read_text(), acceptor=False)
    del lm.aux_labels
    lm = k2.add_epsilon_self_loops(k2.arc_sort(k2.remove_epsilon(lm)))
    topo = k2.arc_sort(k2.ctc_topo(highest_token(tokens)).invert_())
    den = k2.arc_sort(k2.intersect(topo, lm, treat_epsilons_specially=False).invert())
    l_inv = k2.arc_sort(load(folder / "L.pt").invert())
    sentences = mini.sentences[200:203]
    text = k2.add_epsilon_self_loops(k2.linear_fsa([[words[word] for word in each.split()] for each in sentences]))
    transcripts = k2.arc_sort(k2.intersect(l_inv, text, treat_epsilons_specially=False).invert_())
    del transcripts.aux_labels
    transcripts = k2.arc_sort(k2.remove_epsilon_and_add_self_loops(transcripts))
    num = k2.arc_sort(k2.compose(den, transcripts, treat_epsilons_specially=False))

    topology, unit_lm = monophones("ctc", len(mini.lang.tokens)), UnitLm(rounded(mini.bigram), len(mini.lang.tokens))
    probs, lengths = log_probs(3, 120, topology.num_outputs, 2.0, 0), torch.tensor([120, 100, 110])
    leaf = probs.clone().requires_grad_()
    graphs = [transcript_graph([mini.lang.pronunciation_ids(w, "t") for w in s.split()], 1) for s in sentences]
    ours = build_engine("native").score(leaf, lengths, [topology.compose(with_lm(graph, unit_lm)) for graph in graphs])
    (slope,) = torch.autograd.grad(ours.total.sum(), leaf)
    total, gradient = score([num[row] for row in range(3)], probs, lengths)
    np.testing.assert_allclose(ours.total.detach(), total, rtol=1e-6)
    assert (slope - gradient).abs().max() <= 1e-5
    whole, _ = score([den] * 3, probs, lengths)
    np.testing.assert_allclose(
        build_engine("native").score(probs, lengths, topology.compose(rounded(mini.bigram))).total, whole, rtol=1e-6
    )


def test_numerators_by_cut(mini: Mini, tmp_path: Path) -> None:
    topology, lm = mini.lang.topology, UnitLm(rounded(mini.bigram), len(mini.lang.tokens))
    graphs = {}
    for row, sentence in enumerate(mini.sentences[:5]):
        units = [mini.lang.pronunciation_ids(word, "test") for word in sentence.split()]
        graphs[f"cut-{row}"] = topology.compose(rounded(with_lm(transcript_graph(units, 1), lm)))
    assert write_numerators(graphs.items(), tmp_path, together=2) == 5
    files = sorted(tmp_path.glob("*.pt"))
    assert [path.name for path in files] == ["num-00000.pt", "num-00001.pt", "num-00002.pt"]
    theirs = {}
    for path in files:
        cuts = path.with_suffix(".txt").read_text().splitlines()
        theirs |= {cut: load(path)[row] for row, cut in enumerate(cuts)}
    assert list(theirs) == list(graphs)
    probs, lengths = log_probs(5, 130, topology.num_outputs, 2.0, 0), torch.tensor([120, 100, 110, 90, 130])
    total, _ = score(list(theirs.values()), probs, lengths)
    ours = build_engine("native").score(probs, lengths, list(graphs.values()))
    np.testing.assert_allclose(ours.total[ours.valid], total[ours.valid], rtol=1e-6)
    assert ours.valid.tolist() == torch.isfinite(total).tolist() and ours.valid.sum() >= 3
