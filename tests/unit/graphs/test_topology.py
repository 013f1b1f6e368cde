"""Every topology against direct enumeration: which frame labellings a unit sequence has, and what they weigh."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import kaldifst
import numpy as np
import pytest
import torch

from distill.fsa.graph import Fsa
from distill.graphs import topology
from distill.graphs.biphones import count_pairs, tied_left_biphones
from distill.graphs.topology import KINDS, Topology, load_topology, monophones, save_topology
from distill.lfmmi import NativeEngine

UNITS = 4  # blank and three units
# (1, 2) and (2, 1) often, unit 3 so rarely that it shares outputs with nothing but other rare units
COUNTS = count_pairs([(1, 2, 1, 2), (2, 1), (1, 1), (3, 1)], UNITS)
CONTEXTS = ("mono", "biphone", "tied", "tied_rare", "tied_independent")


def make(kind: str, context: str) -> Topology:
    if context == "mono":
        return monophones(kind, UNITS)
    if context == "biphone":
        return tied_left_biphones(kind, np.zeros((UNITS, UNITS)), 0)
    if context == "tied_independent":
        return tied_left_biphones(kind, COUNTS, 2, 0, independent=[3])
    return tied_left_biphones(kind, COUNTS, 2, 9 if context == "tied_rare" else 0)


def labellings(how: Topology, units: Sequence[int], frames: int) -> Iterator[tuple[int, ...]]:
    """All ways to spend `frames` frames on a unit sequence, from the definitions: durations, then blanks."""
    lefts = [0, *units[:-1]] if how.has_context else [0] * len(units)
    classes = [int(how.classes[left, unit]) for left, unit in zip(lefts, units)]
    blanks = 0 if how.kind == "two_pdf" else frames
    lengths = [range(blanks + 1), *(range(1, frames + 1), range(blanks + 1)) * len(classes)]
    for spent in compositions(lengths, frames):
        durations, gaps = spent[1::2], spent[2::2]
        inner = zip(classes, classes[1:], gaps)
        if how.kind == "ctc" and any(a == b and not gap for a, b, gap in inner):
            continue  # equal outputs side by side are one unit
        names = [(2 * c, 2 * c + 1) if how.kind == "two_pdf" else (1 + c, 1 + c) for c in classes]
        pieces = ((enter, *[hold] * (d - 1), *[0] * gap) for (enter, hold), d, gap in zip(names, durations, gaps))
        yield (*[0] * spent[0], *itertools.chain(*pieces))


def compositions(lengths: Sequence[Iterable[int]], total: int) -> Iterator[tuple[int, ...]]:
    """All choices of one number from each range that add up to `total`."""
    if not lengths:
        yield from [()] if total == 0 else []
        return
    for first in lengths[0]:
        if first <= total:
            yield from ((first, *rest) for rest in compositions(lengths[1:], total - first))


def sequences(longest: int) -> list[tuple[int, ...]]:
    return [s for n in range(longest + 1) for s in itertools.product(range(1, UNITS), repeat=n)]


def random_graph(states: int, seed: int) -> Fsa:
    """Not deterministic, with parallel arcs, arcs back to the start, and states that several units reach."""
    rng = np.random.default_rng(seed)
    arcs = [
        (int(a), int(b), int(u), float(w))
        for a, b, u, w in zip(
            rng.integers(0, states, 9), rng.integers(0, states, 9), rng.integers(1, UNITS, 9), rng.normal(size=9)
        )
    ]
    return Fsa.from_arcs(arcs, {0: -0.3, states - 1: 0.4}, states)


def path_weights(graph: Fsa, units: Sequence[int]) -> list[float]:
    """Weights of all paths of a graph that read a unit sequence."""
    alive = [(0, 0.0)]
    for unit in units:
        leaving = [np.flatnonzero((graph.src == state) & (graph.label == unit)) for state, _ in alive]
        alive = [(int(graph.dst[a]), w + graph.weight[a]) for (_, w), arcs in zip(alive, leaving) for a in arcs]
    return [w + graph.final[state] for state, w in alive if graph.final[state] > -np.inf]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("seed", range(3))
def test_composition_sums_all_labellings(kind: str, context: str, seed: int) -> None:
    how, graph = make(kind, context), random_graph(3, seed)
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(1, 4, how.num_outputs, generator=generator, dtype=torch.float64).log_softmax(-1)
    scores, paths = log_probs[0].numpy(), []
    for units in sequences(4):
        weights = path_weights(graph, units)
        for labels in labellings(how, units, 4) if weights else ():
            paths += [w + scores[range(4), labels].sum() for w in weights]
    result = NativeEngine().score(log_probs, torch.tensor([4]), [how.compose(graph)])
    assert result.valid.item() == bool(paths)
    if paths:
        assert result.total.item() == pytest.approx(np.logaddexp.reduce(paths), rel=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_output_fst_has_each_labelling_once_and_columns_tell_units(kind: str, context: str) -> None:
    how = make(kind, context)
    expected = Counter((labels, units) for units in sequences(4) for labels in labellings(how, units, 4))
    found: Counter = Counter()
    for columns, units in fst_paths(how.output_fst(), 4):
        found[tuple(how.output_columns[list(columns)].tolist()), units] += 1
        if kind != "ctc_compact":
            assert tuple(how.units(columns)) == units
    assert found == expected


def fst_paths(fst: kaldifst.StdVectorFst, frames: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(input labels - 1, output labels) of all paths of that many frames."""
    paths, stack = [], [(fst.start, (), ())]
    while stack:
        state, columns, units = stack.pop()
        if len(columns) == frames:
            paths.append((columns, units))
        for arc in kaldifst.ArcIterator(fst, state):
            following = columns if arc.ilabel == 0 else (*columns, arc.ilabel - 1)
            silent = arc.ilabel == 0 and len(columns) == frames  # a way out that says nothing more
            if len(following) <= frames and not silent:
                stack.append((arc.nextstate, following, units if arc.olabel == 0 else (*units, arc.olabel)))
    return paths


def looping_lm(seed: int) -> Fsa:
    """Bigram of units whose arcs sum to one in each state; paths may end anywhere, with weight one."""
    weights = np.random.default_rng(seed).dirichlet(np.ones(UNITS - 1), UNITS)
    arcs = [(a, u, u, math.log(weights[a, u - 1])) for a in range(UNITS) for u in range(1, UNITS)]
    return Fsa.from_arcs(arcs, dict.fromkeys(range(UNITS), 0.0), UNITS)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("frames", [1, 2, 7])
def test_mass_of_a_stochastic_lm_is_the_number_of_ways_to_spend_frames(context: str, frames: int) -> None:
    """Under log-probabilities of zero: (T - 1 times) stay or go on; with blanks, Fibonacci's number 2 T + 1."""
    fibonacci = [1, 1]
    while len(fibonacci) < 2 * frames + 1:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    for kind, ways in (("two_pdf", 2 ** (frames - 1)), ("ctc_compact", fibonacci[2 * frames])):
        how = make(kind, context)
        zeros = torch.zeros(1, frames, how.num_outputs, dtype=torch.float64)
        total = NativeEngine().score(zeros, torch.tensor([frames]), how.compose(looping_lm(0))).total
        assert total.item() == pytest.approx(math.log(ways), abs=1e-9)


def test_outputs_of_end_to_end_lf_mmi() -> None:
    """41 phones: 2 * 41 * 42 outputs as a full tree (Hadian et al. 2018); forward before self-loop."""
    how = tied_left_biphones("two_pdf", np.zeros((42, 42)), 0)
    assert how.num_outputs == 3444
    assert monophones("two_pdf", 42).num_outputs == 82
    assert monophones("ctc", 42).num_outputs == 42
    start, after_one = (2 * int(how.classes[left, 1]) for left in (0, 1))
    assert how.units([start, start + 1, start + 1, after_one, after_one, after_one + 1]) == [1, 1, 1]


def test_tying_follows_the_counts() -> None:
    how = tied_left_biphones("ctc", COUNTS, 2, 2)
    # columns: unit 1 (4 times), unit 2 (3 times), unit 3 (once, as often as the threshold allows or less)
    beginnings = [int(how.classes[0, u]) for u in (1, 2, 3)]
    assert len(set(beginnings)) == 3
    assert how.classes[2, 1] != how.classes[1, 1]  # (2, 1) seen twice, (1, 1) once
    assert how.classes[1, 1] == how.classes[3, 1]
    assert how.classes[2, 2] == how.classes[3, 2] != how.classes[1, 2]
    assert len({int(c) for c in how.classes[1:, 3]}) == 1
    assert sorted(set(how.classes[:, 1:].ravel().tolist())) == list(range(how.num_classes))
    rare = tied_left_biphones("two_pdf", COUNTS, 99, 99)
    assert rare.num_outputs == 2 * 4  # three beginnings, and what all else shares
    assert len(rare.output_columns) == rare.num_outputs + 2


def test_independent_units_have_one_class_and_end_context() -> None:
    how = tied_left_biphones("two_pdf", COUNTS, 1, 0, independent=[3])
    assert len(set(how.classes[:, 3].tolist())) == 1
    assert (how.classes[3, 1:3] == how.classes[0, 1:3]).all()


def test_pairs_are_counted_with_the_beginning() -> None:
    assert COUNTS[0].tolist() == [0, 2, 1, 1]
    assert COUNTS[1].tolist() == [0, 1, 2, 0]
    assert COUNTS.sum() == 10


def test_short_form_is_standard_ctc() -> None:
    graph = random_graph(3, 1)
    one, other = topology.ctc(graph), monophones("ctc", UNITS).compose(graph)
    for name in ("label", "initial", "final", "src", "dst", "weight"):
        assert torch.equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_files_give_the_same_topology(kind: str, context: str, tmp_path: Path) -> None:
    how = make(kind, context)
    save_topology(how, tmp_path)
    again = load_topology(tmp_path, UNITS)
    assert again.kind == kind
    np.testing.assert_array_equal(again.classes, how.classes)


def test_broken_topology_files(tmp_path: Path) -> None:
    assert load_topology(tmp_path, 7).num_outputs == 7  # a lang folder of icefall's has no such file
    save_topology(tied_left_biphones("two_pdf", np.zeros((UNITS, UNITS)), 0), tmp_path)
    with pytest.raises(ValueError, match=r"for 4 units, but tokens\.txt has 5"):
        load_topology(tmp_path, 5)
    (tmp_path / "pdfs.txt").write_text("0 1 0 1\n")
    with pytest.raises(ValueError, match="stage 2"):
        load_topology(tmp_path, UNITS)
    (tmp_path / "pdfs.txt").unlink()
    with pytest.raises(ValueError, match="left unit first further"):
        load_topology(tmp_path, UNITS)
    (tmp_path / "topology.json").write_text("{}")
    with pytest.raises(ValueError, match="not readable as a topology"):
        load_topology(tmp_path, UNITS)


def test_wrong_topologies() -> None:
    with pytest.raises(ValueError, match="'hmm' is not known; expected one of ctc, ctc_compact, two_pdf"):
        monophones("hmm", 4)
    with pytest.raises(ValueError, match=r"label 3, expected 1\.\.1"):
        monophones("ctc", 2).compose(Fsa.from_arcs([(0, 1, 3, 0.0)], {1: 0.0}, 2))
