"""Graphviz text: every state and arc once, labels with names and weights, large graphs refused or cut."""

from __future__ import annotations

import json
import re
from pathlib import Path

import kaldifst
import pytest
import torch

from distill.fsa.graph import Fsa
from distill.fsa.k2_format import k2_dict, save_fsa
from distill.graphs.dot import dot
from distill.graphs.numerator import transcript_graph
from distill.graphs.unit_ngram import train_unit_ngram
from tools import draw_graph

NAMES = {1: "AH", 2: 'B"', 3: "K"}
TRANSCRIPT = transcript_graph([[(2, 3), (2, 2, 3)], [(1,)], [(1, 2), (1, 3)]], silence=4)
BIGRAM = train_unit_ngram([(1, 2, 3), (1, 2), (1, 3)], 2, 4)


def edges(text: str) -> dict[tuple[int, int], list[str]]:
    found = re.findall(r"^  (\d+) -> (\d+) \[label=(.*)\]$", text, re.MULTILINE)
    return {(int(s), int(d)): json.loads(label).split("\n") for s, d, label in found}


@pytest.mark.parametrize("graph", [TRANSCRIPT, BIGRAM])
def test_every_arc_and_final_state_is_there(graph: Fsa) -> None:
    text = dot(k2_dict(graph), NAMES, {})
    arcs = list(zip(graph.src.tolist(), graph.dst.tolist()))
    assert {ends: len(labels) for ends, labels in edges(text).items()} == {ends: arcs.count(ends) for ends in arcs}
    assert text.count("doublecircle") == (graph.final > -float("inf")).sum()


def test_labels_have_names_and_weights() -> None:
    graph = Fsa.from_arcs([(0, 1, 1, -0.5), (0, 1, 2, 0.0), (1, 1, 9, -1.234)], {1: -2.0}, 2)
    text = dot(k2_dict(graph), NAMES, {})
    assert edges(text) == {(0, 1): ["AH -0.50", 'B"'], (1, 1): ["9 -1.23"]}
    assert '1 [shape=doublecircle, xlabel="-2.00"]' in text


def test_many_labels_between_two_states_are_counted() -> None:
    graph = Fsa.from_arcs([(0, 1, label, 0.0) for label in range(10, 30)], {1: 0.0}, 2)
    assert edges(dot(k2_dict(graph), {}, {}))[0, 1] == ["10", "11", "12", "13", "14", "15", "… 14 more"]


def test_large_graphs_are_refused_or_cut() -> None:
    graph = k2_dict(Fsa.from_arcs([(s, s + 1, 1, 0.0) for s in range(300)], {300: 0.0}, 301))
    with pytest.raises(ValueError, match=r"301 states, too many to read; .*--states 50"):
        dot(graph, {}, {})
    text = dot(graph, {}, {}, most=5)
    assert 'label="296 states left out"' in text and set(edges(text)) == {(0, 1), (1, 2), (2, 3), (3, 4)}


def test_states_out_of_reach_are_drawn() -> None:
    text = dot(k2_dict(Fsa.from_arcs([(0, 0, 1, 0.0), (2, 1, 1, 0.0)], {1: 0.0}, 3)), {}, {})
    assert set(edges(text)) == {(0, 0), (2, 1)}


def test_tool_reads_k2_and_openfst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_fsa(tmp_path / "den.pt", BIGRAM)
    assert dot(draw_graph.read(tmp_path / "den.pt"), {}, {}) == dot(k2_dict(BIGRAM), {}, {})
    kaldifst.compile("0 1 1 2 0.5\n1 0 0 3\n1 1\n", acceptor=False).write(str(tmp_path / "L.fst"))
    (tmp_path / "words.txt").write_text("<eps> 0\nGO 2\nTO 3\n", encoding="utf-8")
    files = [str(tmp_path / name) for name in ("L.fst", "L.dot", "words.txt")]
    monkeypatch.setattr("sys.argv", ["draw_graph.py", files[0], "--output", files[1], "--osymbols", files[2]])
    draw_graph.main()
    text = (tmp_path / "L.dot").read_text(encoding="utf-8")
    assert edges(text) == {(0, 1): ["1:GO -0.50"], (1, 0): ["ε:TO"]}


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no graph at"):
        draw_graph.read(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no graph")
    with pytest.raises(ValueError, match="not readable as a graph"):
        draw_graph.read(tmp_path / "text.pt")
    torch.save({"model": {}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected a dict with 'arcs'"):
        dot(draw_graph.read(tmp_path / "model.pt"), {}, {})
