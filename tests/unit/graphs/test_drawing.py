"""Pictures of graphs: everything is there once, nothing hides another, and what cannot be drawn is said."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import kaldifst
import pytest
import torch

from distill.fsa.formats import k2_dict, save_fsa
from distill.fsa.graph import Fsa
from distill.graphs.drawing import RADIUS, draw, picture_of, read_content
from distill.graphs.numerator import transcript_graph
from distill.graphs.unit_ngram import train_unit_ngram
from tools import draw_graph

NAMES = {1: "AH", 2: "B<", 3: "K"}
TRANSCRIPT = transcript_graph([[(2, 3), (2, 2, 3)], [(1,)], [(1, 2), (1, 3)]], silence=4)
BIGRAM = train_unit_ngram([(1, 2, 3), (1, 2), (1, 3)], 2, 4)
SVG = "{http://www.w3.org/2000/svg}"


def drawn(graph: Fsa, most: int = 0) -> ElementTree.Element:
    return ElementTree.fromstring(draw(picture_of(k2_dict(graph), NAMES, {}, most)))


def states(tree: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Places of the states by their number."""
    texts = [t for t in tree.iter(f"{SVG}text") if t.get("class") is None]
    return {t.text or "": (float(t.get("x", "nan")), float(t.get("y", "nan"))) for t in texts}


def labels(tree: ElementTree.Element) -> list[str]:
    return [span.text or "" for span in tree.iter(f"{SVG}tspan")]


@pytest.mark.parametrize("graph", [TRANSCRIPT, BIGRAM])
def test_every_state_and_arc_is_there_and_states_stand_apart(graph: Fsa) -> None:
    tree = drawn(graph)
    places = states(tree)
    assert sorted(map(int, places)) == list(range(graph.num_states))
    assert all(math.dist(a, b) > 3 * RADIUS for a, b in itertools.combinations(places.values(), 2))
    lines = tree.findall(f"{SVG}path")
    assert len(lines) == len(set(zip(graph.src.tolist(), graph.dst.tolist())))
    _, _, width, height = map(float, tree.get("viewBox", "").split())
    left, top = (float(n) for n in tree.get("viewBox", "").split()[:2])
    assert all(left < x < left + width and top < y < top + height for x, y in places.values())
    finals = sum(math.isfinite(weight) for weight in graph.final)
    assert len(tree.findall(f"{SVG}circle")) == graph.num_states + finals


def test_arcs_of_a_graph_without_cycles_point_to_the_right() -> None:
    places = states(drawn(TRANSCRIPT))
    for src, dst in zip(TRANSCRIPT.src.tolist(), TRANSCRIPT.dst.tolist()):
        assert places[str(src)][0] < places[str(dst)][0]


def test_labels_have_names_and_weights() -> None:
    graph = Fsa.from_arcs([(0, 1, 1, -0.5), (0, 1, 2, 0.0), (1, 1, 9, -1.234)], {1: -2.0}, 2)
    assert sorted(labels(drawn(graph))) == ["-2.00", "9 -1.23", "AH -0.50", "B<"]


def test_many_labels_between_two_states_are_counted() -> None:
    graph = Fsa.from_arcs([(0, 1, label, 0.0) for label in range(10, 30)], {1: 0.0}, 2)
    assert labels(drawn(graph)) == ["10", "11", "12", "13", "14", "15", "… 14 more"]


def test_large_graphs_are_refused_or_cut(tmp_path: Path) -> None:
    graph = Fsa.from_arcs([(s, s + 1, 1, 0.0) for s in range(300)], {300: 0.0}, 301)
    with pytest.raises(ValueError, match=r"301 states, too many to read; .*--states 50"):
        drawn(graph)
    tree = drawn(graph, most=5)
    assert "296 states left out" in {t.text for t in tree.iter(f"{SVG}text")}
    assert {"0", "4"} < set(states(tree))


def test_states_out_of_reach_are_drawn() -> None:
    assert {"0", "1", "2"} == set(states(drawn(Fsa.from_arcs([(0, 0, 1, 0.0), (2, 1, 1, 0.0)], {1: 0.0}, 3))))


def test_files_of_k2_and_openfst_and_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_fsa(tmp_path / "den.pt", BIGRAM)
    assert draw(picture_of(read_content(tmp_path / "den.pt"), {}, {})) == draw(picture_of(k2_dict(BIGRAM), {}, {}))
    fst = kaldifst.compile("0 1 1 2 0.5\n1 0 0 3\n1 1\n", acceptor=False)
    fst.write(str(tmp_path / "L.fst"))
    (tmp_path / "words.txt").write_text("<eps> 0\nGO 2\nTO 3\n", encoding="utf-8")
    call = [
        "draw_graph.py",
        f"{tmp_path}/L.fst",
        "--output",
        f"{tmp_path}/L.svg",
        "--osymbols",
        f"{tmp_path}/words.txt",
    ]
    monkeypatch.setattr("sys.argv", call)
    draw_graph.main()
    tree = ElementTree.parse(tmp_path / "L.svg").getroot()
    assert sorted(labels(tree)) == ["-1.00", "1:GO -0.50", "ε:TO"]


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no graph at"):
        read_content(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("no graph")
    with pytest.raises(ValueError, match="not readable as a graph"):
        read_content(tmp_path / "text.pt")
    torch.save({"model": {}}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected a dict with 'arcs'"):
        read_content(tmp_path / "model.pt")
