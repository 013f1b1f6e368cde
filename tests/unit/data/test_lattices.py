"""Stored lattices: what comes back, shards that are cut short, and the numerators made of them."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.config.training import Data
from distill.data.lattices import LATTICES, CutLattice, Lattices, Shard, Summary, write_shard
from distill.data.numerators import Numerators, Wanted
from distill.data.shards import missing, shard_path
from distill.fsa.graph import Hmm, Numerator
from distill.graphs.lexicon import Lang, Lexicon, write_lang
from distill.graphs.numerator import UnitLm
from distill.graphs.unit_ngram import train_unit_ngram
from distill.losses.mmi import LfMmi
from distill.search.determinise import SequenceGraph
from tests.unit.graphs.test_numerator_weights import ENGINE, HEARD, OUTPUTS, language

SHIFT, BEAM = 0.02, 6.0


def all_cuts() -> list[CutLattice]:
    rng = np.random.default_rng(0)
    found = [
        CutLattice(f"cut-{number}", graph, rng.random(5).astype(np.float32), words=[number, 2], counts=[number, 7])
        for number, graph in enumerate(HEARD)
    ]
    return [*found[:3], CutLattice("nothing", None, np.zeros(0)), *found[3:]]


@pytest.fixture
def part(tmp_path: Path) -> Path:
    folder = tmp_path / "num" / "teacher" / "unlabelled"
    write_missing(folder)
    return folder


def write_missing(folder: Path) -> None:
    for number in missing(folder, 2):
        write_shard(shard_path(folder, number), shard_of(number), SHIFT, BEAM)
    LATTICES.finish(folder, 2)


def shard_of(number: int) -> list[CutLattice]:
    return all_cuts()[7 * number :][: 7 if number == 0 else None]


def summary(folder: Path) -> Summary:
    found = Summary()
    for shard in Lattices([folder]).shards():
        found.add(shard)
    return found


def graphs_in(part: Path) -> dict[str, SequenceGraph]:
    return {cut_id: graph for shard in Lattices([part]).shards() for cut_id, graph in shard.items()}


def graph_of(made: Numerators, cut_id: str, text: str | None = None) -> Hmm:
    (graph,) = made.graphs([Wanted(cut_id, text)])
    assert isinstance(graph, Hmm)
    return graph


def scores(graph: SequenceGraph) -> dict[tuple[int, ...], float]:
    return dict(graph.ranked())


def test_what_was_written_comes_back(part: Path) -> None:
    stored, graphs = Lattices([part]), graphs_in(part)
    assert set(graphs) == {each.cut_id for each in all_cuts() if each.sequences is not None}
    assert summary(part).without_lattice == [("nothing", "no complete path with units")]
    assert (stored.frame_shift, stored.beam) == (SHIFT, BEAM)
    for each in all_cuts():
        if each.sequences is None:
            assert stored.find(each.cut_id) is None
            continue
        shard = stored.find(each.cut_id)
        assert shard is not None
        found = graphs[each.cut_id]
        for name in ("src", "dst", "symbol", "earliest", "latest"):
            assert np.array_equal(getattr(found, name), getattr(each.sequences, name))
        for name in ("graph", "acoustic", "final_graph", "final_acoustic"):
            np.testing.assert_allclose(getattr(found, name), getattr(each.sequences, name), atol=0.02, rtol=2e-3)
        assert found.best == pytest.approx(each.sequences.best, rel=1e-6)
        assert next(found.ranked())[1] == 0.0  # the best sequence's scores are exact
        assert scores(found).keys() == scores(each.sequences).keys()
        assert scores(found) == pytest.approx(scores(each.sequences), abs=0.02)
        np.testing.assert_allclose(shard.confidence(each.cut_id), each.confidence, atol=1 / 255)
        assert shard.counts(each.cut_id) == (list(each.counts) or [0, 0])
        assert shard.words(each.cut_id) == list(each.words)


def test_same_lattices_same_bytes(part: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "again.npz", all_cuts()[:7], SHIFT, BEAM)
    assert (tmp_path / "again.npz").read_bytes() == shard_path(part, 0).read_bytes()
    assert not list(tmp_path.glob("*.tmp"))


def test_a_killed_writer_goes_on_where_it_was(part: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    assert missing(folder, 2) == [0, 1]
    write_shard(shard_path(folder, 0), shard_of(0), SHIFT, BEAM)
    (folder / "00001.npz.tmp").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match="stage 7"):  # what is half written is not there
        Lattices([folder])
    assert missing(folder, 2) == [1]
    write_missing(folder)
    assert [shard_path(folder, n).read_bytes() for n in (0, 1)] == [shard_path(part, n).read_bytes() for n in (0, 1)]
    assert summary(folder).bytes == sum(shard_path(folder, n).stat().st_size for n in (0, 1))


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match=r"00000\.npz: no space left .*make room"):
        write_shard(shard_path(tmp_path, 0), all_cuts(), SHIFT, BEAM)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_shard_cut_short_is_an_error(part: Path, share: float) -> None:
    path = shard_path(part, 1)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"00001\.npz: cut short .*bytes are no zip archive.*stage 7"):
        Lattices([part])


def test_a_damaged_shard_is_an_error(part: Path) -> None:
    path = shard_path(part, 0)
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, 2 * len(content) // 3):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"00000\.npz: cut short or no shard"):
        list(Lattices([part]).shards())


def test_arrays_that_do_not_fit_are_an_error(part: Path) -> None:
    path = shard_path(part, 0)
    with np.load(path) as file:
        content = {name: file[name] for name in file.files}
    content["symbol"] = content["symbol"][:-1]
    np.savez_compressed(path, **content)
    with pytest.raises(ValueError, match=r"'symbol' has \d+ entries, expected \d+"):
        Shard(path)


def test_what_is_missing_is_named(part: Path, tmp_path: Path) -> None:
    shard_path(part, 1).unlink()
    with pytest.raises(FileNotFoundError, match=r"00001\.npz is missing.*stage 7"):
        Lattices([part])
    with pytest.raises(FileNotFoundError, match="stage 7 writes them"):
        Lattices([tmp_path / "none"])
    (part / "shards.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"shards\.json: not readable"):
        Lattices([part])


@pytest.fixture(scope="module")
def lang(tmp_path_factory: pytest.TempPathFactory) -> Lang:
    folder = tmp_path_factory.mktemp("lang")
    (folder / "lexicon.txt").write_text("A A\nB B\nAB A B\n", encoding="utf-8")
    write_lang(Lexicon.read(folder / "lexicon.txt"), folder)
    return Lang.load(folder)


def numerators(lang: Lang, part: Path | None, **settings) -> Numerators:
    lm = train_unit_ngram([(1, 2, 3), (2, 2, 1), (3, 1), (1, 1, 3, 2)], 2, OUTPUTS)
    return Numerators(lang, UnitLm(lm, OUTPUTS), Lattices([part]) if part else None, Data(**settings))


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("kind", ["transcript", "one_best", "nbest", "lattice"])
def test_objective_of_every_kind_is_at_most_zero(lang: Lang, part: Path, kind: str, confidence: bool) -> None:
    made = numerators(lang, part, numerator=kind, lattice={"confidence": confidence, "tolerance": 3})
    texts = dict.fromkeys(graphs_in(part), "AB A" if kind == "transcript" else None)
    graphs = [graph_of(made, *each) for each in texts.items()]
    mmi = LfMmi(ENGINE, lang.topology.compose(made.lm.fsa))
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        logits = (3 * torch.randn(1, 9, OUTPUTS, generator=generator)).requires_grad_()
        for graph in graphs:
            total = mmi.loss(logits, torch.tensor([9]), [graph]).terms["mmi"].total
            assert total >= -1e-4
            total.backward()
        assert logits.grad is not None and logits.grad.isfinite().all()


def test_kinds_contain_the_sequences_of_their_name(lang: Lang, part: Path) -> None:
    stored = graphs_in(part)
    cut_id = max(stored, key=lambda each: len(scores(stored[each])))

    def sequences(**settings) -> set[tuple[int, ...]]:
        return set(language(numerators(lang, part, **settings)._from_lattice(stored[cut_id])))

    ranked = [units for units, _ in stored[cut_id].ranked()]
    assert sequences(numerator="one_best") == {ranked[0]}
    assert sequences(numerator="nbest", lattice={"nbest": 3}) == set(ranked[:3])
    assert sequences(lattice={"beam": 100.0}) == set(ranked)
    near = {units for units, score in stored[cut_id].ranked() if score >= -1.5}
    assert near <= sequences(lattice={"beam": 1.5}) < set(ranked)


def test_text_comes_before_lattices_and_problems_are_listed(lang: Lang, part: Path) -> None:
    made = numerators(lang, part)
    written = graph_of(made, "cut-1", "AB")
    assert len(written.src) != len(graph_of(numerators(lang, part), "cut-1").src)
    found = made.graphs(
        [
            Wanted("cut-0"),
            Wanted("nothing"),
            Wanted("new"),
            Wanted("spoken", "A ZEBRA"),
            Wanted("cut-2", shard="unlabelled/0"),
            Wanted("cut-3", shard="unlabelled/1"),
        ]
    )
    assert isinstance(found[0], Hmm) and isinstance(found[4], Hmm)
    assert "nothing" in str(found[1]) and "no lattice" in str(found[2]) and "ZEBRA" in str(found[3])
    assert "no lattice" in str(found[5]), "in another shard than its own"
    (reason,) = numerators(lang, part, numerator="transcript").graphs([Wanted("cut-0")])
    assert "data.numerator is transcript" in str(reason)


def test_sequences_that_the_lm_forbids_are_a_problem(lang: Lang, part: Path) -> None:
    from distill.fsa.graph import Fsa

    nothing = UnitLm(Fsa.from_arcs([(0, 1, 3, 0.0), (1, 2, 3, 0.0)], {2: 0.0}, 3), OUTPUTS)
    made = Numerators(lang, nothing, Lattices([part]), Data(numerator="one_best"))
    reasons = made.graphs([Wanted(cut_id) for cut_id in graphs_in(part)])
    assert sum("denominator's LM allows none" in str(reason) for reason in reasons) > 8


@pytest.mark.parametrize("ratio", [1.0, 0.5, 2.0])
def test_confidence_follows_the_frames_of_the_model(lang: Lang, part: Path, ratio: float) -> None:
    lm = numerators(lang, None).lm
    settings = Data(lattice={"confidence": True})
    graph = graph_of(Numerators(lang, lm, Lattices([part]), settings, ratio), "cut-0")
    shard = Lattices([part]).find("cut-0")
    assert shard is not None
    stored = shard.confidence("cut-0")
    assert isinstance(graph, Numerator)
    frames = [min(len(stored) - 1, int(t / ratio)) for t in range(round(5 * ratio))]
    assert graph.confidence.tolist() == stored[frames].tolist()
    plain = graph_of(numerators(lang, part), "cut-0")
    assert not isinstance(plain, Numerator)  # neither windows nor confidence


def test_numerators_are_kept_within_bounds(lang: Lang, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = numerators(lang, part)
    ids = list(graphs_in(part))
    first = [graph_of(made, cut_id) for cut_id in ids]
    assert all(graph_of(made, cut_id) is graph for cut_id, graph in zip(ids, first))
    monkeypatch.setattr("distill.data.numerators.KEPT_ARCS", 40)
    small = numerators(lang, part)
    again = small.graphs([Wanted(cut_id) for cut_id in ids])
    assert [isinstance(graph, Hmm) and len(graph.src) for graph in again] == [len(graph.src) for graph in first]
    assert len(small._made) < len(ids)
