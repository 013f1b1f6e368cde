"""Graph files: what is written is read back, by us and by others."""

from __future__ import annotations

from pathlib import Path

import kaldifst
import numpy as np
import pytest
import torch

from distill.fsa.formats import (
    from_k2_dict,
    from_k2_vector_dict,
    from_openfst_text,
    hmm_from_k2_dict,
    hmm_to_k2_dict,
    k2_dict,
    k2_dict_to_openfst_text,
    k2_vector_dict,
    load_fsa,
    read_openfst,
    save_fsa,
    save_fst,
    to_openfst_text,
    transducer_to_k2_dict,
)
from distill.fsa.graph import Fsa
from distill.graphs import topology
from distill.lfmmi.native import NativeEngine


def graph(seed: int = 0, states: int = 5, labels: int = 4) -> Fsa:
    """Random acceptor with an arc of every label from every state, arcs in no order."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(states * (labels - 1))
    src, label = np.divmod(order, labels - 1)
    final = np.where(rng.random(states) < 0.5, -rng.random(states), -np.inf)
    final[-1] = -0.25
    dst = rng.integers(0, states, len(order)).astype(np.int32)
    return Fsa(src.astype(np.int32), dst, (label + 1).astype(np.int32), -rng.random(len(order)), final)


def assert_same(left: Fsa, right: Fsa) -> None:
    def rows(fsa: Fsa) -> np.ndarray:
        return np.array(sorted(zip(fsa.src, fsa.label, fsa.dst, fsa.weight)))

    np.testing.assert_allclose(rows(left), rows(right), rtol=1e-6)
    np.testing.assert_allclose(left.final, right.final, rtol=1e-6)


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


def test_vector_cut_short() -> None:
    content = k2_vector_dict([k2_dict(graph())])
    with pytest.raises(ValueError, match=r"num\.pt: it promises"):
        from_k2_vector_dict({"arcs": content["arcs"][:-4]}, "num.pt")
    with pytest.raises(ValueError, match=r"num\.pt: expected a dict"):
        from_k2_vector_dict({"arcs": torch.tensor([1000, 0, 0, 0])}, "num.pt")


@pytest.mark.parametrize("seed", range(5))
def test_graph_over_frames_there_and_back(seed: int) -> None:
    """All labellings of two frames keep their weight."""
    hmm = topology.ctc(graph(seed))
    back = hmm_from_k2_dict(hmm_to_k2_dict(hmm))
    probs, lengths = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(seed)).double(), torch.tensor([2])
    scores = [NativeEngine().score(probs, lengths, each).total.item() for each in (hmm, back)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert back.accepts_empty == pytest.approx(hmm.accepts_empty, rel=1e-6)


def test_k2_dict_as_openfst_text() -> None:
    text = k2_dict_to_openfst_text(transducer_to_k2_dict(transducer()))
    assert text == "0 1 5 9 0.5\n1 2 0 8 1.5\n1 1 4 0 2.5\n2 0.25\n"
    assert k2_dict_to_openfst_text(k2_dict(Fsa.from_arcs([(0, 1, 3, -0.5)], {1: -2.0}, 2))) == "0 1 3 0.5\n1 2.0\n"


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


def test_openfst_text_there_and_back() -> None:
    assert_same(from_openfst_text(to_openfst_text(graph())), graph())


@pytest.mark.parametrize("line", ["0 1 A A 0.5", "0 1 1 1 x", "0 1 1", "0 1 1 2", "0 1 0 0", "0 -1 1 1", "1 x", "z"])
def test_lines_that_are_no_arcs_are_named(line: str) -> None:
    with pytest.raises(ValueError, match=f"line 2: expected 'src dst label label .*got '{line}'"):
        from_openfst_text(f"0 1 1 1\n{line}\n1 0\n")


def test_openfst_compiles_our_text_and_we_read_its_text() -> None:
    compiled = kaldifst.compile(to_openfst_text(graph()), acceptor=False)
    again = from_openfst_text(str(compiled.to_str()))
    assert again.num_arcs == graph().num_arcs
    assert sorted(again.weight) == pytest.approx(sorted(graph().weight), abs=1e-5)


def test_text_whose_start_is_not_state_zero() -> None:
    fsa = from_openfst_text("2 0 7 7 0.5\n0 1 8 8\n1\n")
    assert_same(fsa, Fsa.from_arcs([(0, 2, 7, -0.5), (2, 1, 8, 0.0)], {1: 0.0}, 3))


@pytest.mark.parametrize("line", ["0 1 2 3", "0 1 0 0 1.5", "0 1 2", "0 1 2 2 1 1"])
def test_text_that_is_no_acceptor(line: str) -> None:
    with pytest.raises(ValueError, match="line 2"):
        from_openfst_text(f"0 1 1 1 0.5\n{line}\n1\n")


def transducer(start: int = 2) -> kaldifst.StdVectorFst:
    fst = kaldifst.StdVectorFst()
    for _ in range(3):
        fst.add_state()
    fst.start = start
    fst.add_arc(2, kaldifst.StdArc(5, 9, 0.5, 1))
    fst.add_arc(1, kaldifst.StdArc(0, 8, 1.5, 0))
    fst.add_arc(1, kaldifst.StdArc(4, 0, 2.5, 1))
    fst.set_final(0, 0.25)
    return fst


def test_transducer_as_k2_dict_starts_at_zero() -> None:
    content = transducer_to_k2_dict(transducer())
    arcs = content["arcs"]
    scores = arcs[:, 3].view(torch.float32).tolist()
    rows = list(zip(*arcs[:, :3].T.tolist(), content["aux_labels"].tolist(), scores))
    assert rows == [(0, 1, 5, 9, -0.5), (1, 2, 0, 8, -1.5), (1, 1, 4, 0, -2.5), (2, 3, -1, -1, -0.25)]


def test_openfst_binary_is_read_as_openfst_reads_it(tmp_path: Path) -> None:
    transducer().write(str(tmp_path / "t.fst"))
    start, final, source, arcs = read_openfst(tmp_path / "t.fst")
    assert (start, final.tolist(), source.tolist()) == (2, [0.25, np.inf, np.inf], [1, 1, 2])
    assert arcs.tolist() == [(0, 8, 1.5, 0), (4, 0, 2.5, 1), (5, 9, 0.5, 1)]


@pytest.mark.parametrize("content", [b"", b"hello there, this is no graph", "cut"])
def test_broken_openfst_binary(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "t.fst"
    transducer().write(str(path))
    path.write_bytes(path.read_bytes()[:-8] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"t\.fst: cut short, or not an OpenFst"):
        read_openfst(path)


def test_a_graph_that_openfst_could_not_write_is_an_error(tmp_path: Path) -> None:
    class Refused:
        def write(self, path: str) -> bool:
            Path(path).write_bytes(b"half")
            return False

    with pytest.raises(OSError, match=r"cannot write .*HLG\.fst"):
        save_fst(tmp_path / "HLG.fst", Refused())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
