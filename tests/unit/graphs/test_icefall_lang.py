"""Exported lang folders; what k2 makes of them is in tests/parity/k2."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.fsa.graph import Fsa
from distill.fsa.k2_format import hmm_to_k2_dict
from distill.fsa.lattice import DecodingGraph
from distill.graphs import topology
from distill.graphs.icefall_lang import write_icefall_lang, write_numerators
from distill.graphs.lexicon import Lang, read_symbols
from tests.support.k2_readers import from_k2_vector_dict, from_openfst_text

UNIT_LM = Fsa.from_arcs([(0, 1, 2, -0.5), (1, 1, 3, -0.25)], {1: -1.0}, 2)


def rows(path: Path) -> list[tuple[int, int, int, int]]:
    content = torch.load(path)
    return list(zip(*content["arcs"][:, :3].T.tolist(), content["aux_labels"].tolist()))


def test_what_is_written(lang: Lang, tmp_path: Path) -> None:
    out = tmp_path / "icefall"
    one = np.array([0], dtype=np.int32)
    score = np.zeros(1, dtype=np.float32)
    hlg = DecodingGraph(
        np.array([0, 1, 1]), one + 1, one + 2, one + lang.words["GO"], score, np.array([-np.inf, 0], dtype=np.float32)
    )
    write_icefall_lang(lang, out, UNIT_LM, hlg)
    tokens, words = read_symbols(out / "tokens.txt"), read_symbols(out / "words.txt")
    marks = [name for name in tokens if name.startswith("#")]
    assert {name: tokens[name] for name in lang.tokens} == lang.tokens
    assert [tokens[name] for name in marks] == list(range(len(lang.tokens), len(tokens)))
    assert words == {**lang.words, "<UNK>": len(lang.words)}
    assert "GO G OW" in (out / "lexicon.txt").read_text().splitlines()
    unique = [line.split(maxsplit=1) for line in (out / "uniq_lexicon.txt").read_text().splitlines()]
    assert [word for word, _ in unique] == list(lang.lexicon.words)  # one a word, and the first
    assert all(units.split() == list(lang.lexicon.pronunciations[word][0]) for word, units in unique)
    assert any(len(found) > 1 for found in lang.lexicon.pronunciations.values())
    disambiguated = (out / "lexicon_disambig.txt").read_text().splitlines()
    assert {"TO T UW #1", "TOO T UW #2", "TWO T UW #3", "GO G OW"} <= set(disambiguated)
    assert len({line.split(maxsplit=1)[1] for line in disambiguated}) == len(disambiguated)
    again = from_openfst_text((out / "P.fst.txt").read_text())
    assert again.weight.tolist() == UNIT_LM.weight.tolist() and again.final.tolist() == UNIT_LM.final.tolist()
    assert rows(out / "HLG.pt") == [(0, 1, 2, lang.words["GO"]), (1, 2, -1, -1)]


def test_lexicon_with_and_without_marks(lang: Lang, tmp_path: Path) -> None:
    write_icefall_lang(lang, tmp_path)
    plain, marked = rows(tmp_path / "L.pt"), rows(tmp_path / "L_disambig.pt")
    assert max(arc[2] for arc in plain) < len(lang.tokens) <= max(arc[2] for arc in marked)
    assert (0, 0, len(lang.tokens), lang.words["#0"]) in marked
    for arcs in (plain, marked):
        assert {arc[3] for arc in arcs} >= {lang.words[word] for word in lang.lexicon.words}
    assert not (tmp_path / "P.fst.txt").exists() and not (tmp_path / "HLG.pt").exists()


def test_other_topologies_are_named(lang: Lang, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = replace(lang, topology=topology.monophones("two_pdf", len(lang.tokens)))
    with caplog.at_level(logging.WARNING):
        write_icefall_lang(other, tmp_path)
    assert "outputs are two_pdf, but icefall's training builds standard CTC" in caplog.text


def test_language_model_that_never_ends(lang: Lang, tmp_path: Path) -> None:
    endless = replace(UNIT_LM, final=np.full(2, -np.inf))
    with pytest.raises(ValueError, match="without a final state"):
        write_icefall_lang(lang, tmp_path, endless)


def test_numerators_in_vectors(tmp_path: Path) -> None:
    graphs = {f"cut-{u}": topology.ctc(Fsa.from_arcs([(0, 1, u, -0.5)], {1: 0.0}, 2)) for u in (1, 2, 3)}
    assert write_numerators(graphs.items(), tmp_path, together=2) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "num-00000.pt", "num-00000.txt", "num-00001.pt", "num-00001.txt"
    ]  # fmt: skip
    assert (tmp_path / "num-00000.txt").read_text() == "cut-1\ncut-2\n"
    read = from_k2_vector_dict(torch.load(tmp_path / "num-00000.pt"))
    for graph, hmm in zip(read, graphs.values()):
        assert graph.num_arcs + np.isfinite(graph.final).sum() == len(hmm_to_k2_dict(hmm)["arcs"])
