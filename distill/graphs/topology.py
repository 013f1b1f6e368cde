"""Topologies turn a graph over units into a graph over frames (H, with left context C, of HCLG).

A topology says which of the model's outputs the frames of a unit may take. A unit has a class, which
follows from the unit itself (monophones) or from the unit and the one before it (left biphones,
`distill.graphs.biphones`). Three kinds give outputs to classes:

- ctc: output 0 is blank, 1 + c is class c. Repeats collapse, a blank separates equal outputs
  (Graves et al. 2006; k2's `ctc_topo(modified=False)`).
- ctc_compact: the same outputs, but a blank between equal outputs is optional, so a repeat is either
  one unit or two (compact CTC of Laptev et al. 2021, arXiv 2110.03098; k2's `modified=True`).
- two_pdf: output 2c for the first frame of a unit, 2c + 1 for all its further ones, no blank
  (Hadian et al. 2018, end-to-end LF-MMI; Kaldi's steps/nnet3/chain/e2e).

Graphs over units never hold context: it comes in when they are composed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from distill.files import replacing
from distill.fsa.graph import Fsa, Hmm, Numerator

if TYPE_CHECKING:
    import kaldifst

BLANK = 0
KINDS = ("ctc", "ctc_compact", "two_pdf")


@dataclass(frozen=True, eq=False)
class Topology:
    """How units become outputs of a model.

    kind: one of `KINDS`. classes (R, U): class of unit u after left context r, -1 for unit 0. R is 1
    without context, else U: row l stands for the unit l before, row 0 for the beginning.
    """

    kind: str
    classes: np.ndarray

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"topology '{self.kind}' is not known; expected one of {', '.join(KINDS)}")
        rows, units = self.classes.shape
        if rows not in (1, units) or self.classes[:, 1:].min(initial=0) < 0:
            raise ValueError(f"classes must be (1, U) or (U, U) and not negative, got ({rows}, {units})")

    @property
    def num_units(self) -> int:
        """Units, blank included: as many as tokens.txt has lines."""
        return self.classes.shape[1]

    @property
    def num_classes(self) -> int:
        return int(self.classes.max(initial=-1)) + 1

    @property
    def num_outputs(self) -> int:
        """V: width of a model's output."""
        return 2 * self.num_classes if self.kind == "two_pdf" else 1 + self.num_classes

    @property
    def has_context(self) -> bool:
        """Whether a unit's outputs depend on the unit before it."""
        return len(self.classes) > 1

    def enter(self, classes: np.ndarray) -> np.ndarray:
        """Outputs of the first frame of units of these classes."""
        return 2 * classes if self.kind == "two_pdf" else 1 + classes

    def hold(self, classes: np.ndarray) -> np.ndarray:
        """Outputs of the further frames."""
        return 2 * classes + 1 if self.kind == "two_pdf" else 1 + classes

    def row(self, unit: np.ndarray | int) -> np.ndarray | int:
        """Row of `classes` that follows a unit (0: the beginning)."""
        return unit if self.has_context else unit * 0

    def compose(self, graph: Fsa) -> Hmm:
        """H o C o graph: the frame labellings of a unit graph, each path with its weight.

        A graph with windows becomes a `Numerator` with windows. Raises ValueError for labels outside the units.
        """
        if graph.num_arcs and graph.label.max() >= self.num_units:
            raise ValueError(f"graph has label {graph.label.max()}, expected 1..{self.num_units - 1}")
        arcs, state, last = _with_last_unit(graph) if self.has_context else _without_context(graph)
        entries, final = self._entries(arcs, last), graph.final[state]
        hmm = (_two_pdf if self.kind == "two_pdf" else _ctc)(self, entries, arcs, final)
        if graph.window is None:
            return hmm
        held = np.tile(entries.state, 2) if self.kind == "two_pdf" else [*entries.state, *range(len(state))]
        window = torch.from_numpy(graph.window[state[held]].astype(np.int64))
        return Numerator(**{field.name: getattr(hmm, field.name) for field in fields(hmm)}, window=window)

    def _entries(self, arcs: _Arcs, last: np.ndarray) -> _Entries:
        """Places where a unit begins, as (state after it, class)."""
        classes = self.classes[last[arcs.src], arcs.label]
        width = self.num_classes + 1
        keys, entry = np.unique(arcs.dst * width + classes, return_inverse=True)
        return _Entries(keys // width, keys % width, entry.reshape(-1))

    def hears(self, previous: int, output: int) -> int:
        """Unit that is newly heard when a frame's output follows `previous` (-1 or blank at the start), or 0.

        Under ctc_compact a repeated output counts as one unit. Of units that share an output (tying) the
        first is meant, unless `output` is one of the further columns of `output_columns`.
        """
        if self.kind != "two_pdf" and output == previous:
            return 0
        return self._unit_entered[output]

    def hears_table(self) -> np.ndarray:
        """`hears` as a table (C + 1, C) int32 over the columns of `output_columns`: row i + 1 for previous i."""
        heard = np.asarray(self._unit_entered, dtype=np.int32)
        table = np.tile(heard, (len(heard) + 1, 1))
        if self.kind != "two_pdf":
            np.fill_diagonal(table[1:], 0)
        return table

    def output_names(self, units: Sequence[str]) -> list[str]:
        """A name for each output from the units' symbols: "K-AE_1" is AE after K, "*-AE" AE after all not named.

        Of two_pdf "_1" is the first frame and "_2" the further ones. "^" is the beginning.
        """
        names = [""] * self.num_classes
        for unit in range(1, self.num_units):
            lefts, counts = self.classes[:, unit], Counter(self.classes[:, unit].tolist())
            for left, c in enumerate(lefts.tolist()):
                alone = counts[c] < self.num_units and (counts[c] == 1 or left == 0)
                context = ("^" if left == 0 else units[left]) if alone else "*"
                symbol = "*" if c in self._classes_of_many else units[unit]
                names[c] = names[c] or (f"{context}-{symbol}" if self.has_context else symbol)
        if self.kind == "two_pdf":
            return [f"{name}_{part}" for name in names for part in (1, 2)]
        return [units[BLANK], *names]

    def units(self, outputs: Sequence[int]) -> list[int]:
        """Frame outputs to the units heard."""
        heard, previous = [], -1
        for output in outputs:
            unit = self.hears(previous, output)
            if unit:
                heard.append(unit)
            previous = output
        return heard

    @cached_property
    def _shared(self) -> list[tuple[int, int]]:
        """(class, unit) of every unit that shares its class with a smaller unit."""
        found = {(int(c), u) for u in range(1, self.num_units) for c in np.unique(self.classes[:, u])}
        smallest: dict[int, int] = {}
        for c, u in sorted(found):
            smallest.setdefault(c, u)
        return [(c, u) for c, u in sorted(found) if smallest[c] != u]

    @cached_property
    def _classes_of_many(self) -> set[int]:
        return {c for c, _ in self._shared}

    @cached_property
    def output_columns(self) -> np.ndarray:
        """For each input label - 1 of `output_fst` the output it scores with: 0 .. V - 1, then doubles.

        Units that share an output have labels of their own, so that a path tells which unit it means. A
        decoder gives the graph `log_probs[:, output_columns]`; without shared outputs that changes nothing.
        """
        doubles = self.enter(np.array([c for c, _ in self._shared], dtype=np.int64))
        return np.concatenate([np.arange(self.num_outputs), doubles])

    @cached_property
    def _unit_entered(self) -> list[int]:
        heard = np.zeros(len(self.output_columns), dtype=np.int64)
        for unit in range(self.num_units - 1, 0, -1):
            heard[self.enter(np.unique(self.classes[:, unit]))] = unit
        heard[self.num_outputs :] = [unit for _, unit in self._shared]
        return heard.tolist()

    def output_fst(self) -> kaldifst.StdVectorFst:
        """H o C with OpenFst: input label o + 1 is column o of `output_columns`, output labels are units.

        Every state may end a path. Weights are zero.
        """
        import kaldifst

        fst = kaldifst.StdVectorFst()
        for source, target, column, unit in self._output_arcs():
            while fst.num_states <= max(source, target):
                fst.set_final(fst.add_state(), 0.0)
            fst.add_arc(source, kaldifst.StdArc(column + 1, unit, 0.0, target))
        fst.start = 0
        return fst

    def _output_arcs(self) -> Iterator[tuple[int, int, int, int]]:
        """(source, target, column, unit) of `output_fst`; column -1 takes no frame.

        First come the states that have heard no unit since the row's context (one a row; in CTC they
        hold blank), then one for each pair of a unit and its class.
        """
        rows, blank = len(self.classes), self.kind != "two_pdf"
        pairs = sorted({(u, int(c)) for u in range(1, self.num_units) for c in self.classes[:, u]})
        state = {pair: rows + number for number, pair in enumerate(pairs)}
        double = {pair: self.num_outputs + number for number, pair in enumerate(self._shared)}
        columns = {(u, c): double.get((c, u), int(self.enter(np.array(c)))) for u, c in pairs}
        entering = [[(u, int(c)) for u, c in enumerate(row) if u] for row in self.classes]
        for row in range(rows):
            if blank:
                yield row, row, BLANK, 0
            yield from ((row, state[pair], columns[pair], pair[0]) for pair in entering[row])
        for (unit, c), here in state.items():
            row, held = int(self.row(unit)), int(self.hold(np.array(c)))
            yield here, here, columns[unit, c] if blank else held, 0
            if self.kind == "ctc_compact":
                yield here, row, -1, 0
                continue
            if blank:
                yield here, row, BLANK, 0
            for pair in entering[row]:
                if not blank or pair[1] != c:  # in CTC equal outputs need a blank between them
                    yield here, state[pair], columns[pair], pair[0]


def monophones(kind: str, num_units: int) -> Topology:
    """Outputs that depend on the unit alone; num_units counts blank."""
    return Topology(kind, np.arange(-1, num_units - 1)[None])


def ctc(graph: Fsa) -> Hmm:
    """Compose a unit graph with the standard CTC topology, monophones: output u is unit u."""
    return monophones("ctc", int(graph.label.max(initial=0)) + 1).compose(graph)


def save_topology(topology: Topology, folder: Path) -> None:
    """Write topology.json; with context also pdfs.txt, lines "left unit first further": ids, then outputs."""
    content = {
        "kind": topology.kind,
        "context": "left" if topology.has_context else "none",
        "units": topology.num_units,
        "outputs": topology.num_outputs,
    }
    if topology.has_context:
        left, unit = np.nonzero(topology.classes >= 0)
        classes = topology.classes[left, unit]
        rows = np.stack([left, unit, topology.enter(classes), topology.hold(classes)], 1)
        _write(folder / "pdfs.txt", "".join(f"{a} {b} {c} {d}\n" for a, b, c, d in rows.tolist()))
    _write(folder / "topology.json", json.dumps(content, indent=1) + "\n")


def load_topology(folder: Path, num_units: int) -> Topology:
    """Read what `save_topology` wrote; a lang folder without topology.json has the standard CTC topology.

    Raises ValueError for a file that is not one, or was made for other units.
    """
    path = folder / "topology.json"
    if not path.is_file():
        return monophones("ctc", num_units)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind, context, units, outputs = (content[name] for name in ("kind", "context", "units", "outputs"))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not readable as a topology ({error!r}); run stage 2 again") from None
    if units != num_units:
        raise ValueError(f"{path} is for {units} units, but tokens.txt has {num_units}; run stage 2 again")
    found = Topology(kind, _read_classes(folder / "pdfs.txt", num_units, kind)) if context == "left" else None
    found = found or monophones(kind, num_units)
    if found.num_outputs != outputs:
        raise ValueError(f"{path} promises {outputs} outputs, pdfs.txt has {found.num_outputs}; run stage 2 again")
    return found


def _read_classes(path: Path, num_units: int, kind: str) -> np.ndarray:
    try:
        rows = np.loadtxt(path, dtype=np.int64, ndmin=2)
        classes = np.full((num_units, num_units), -1)
        classes[rows[:, 0], rows[:, 1]] = rows[:, 2] // 2 if kind == "two_pdf" else rows[:, 2] - 1
        if classes[:, 1:].min() < 0:
            raise ValueError("pairs are missing")
    except (OSError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: expected lines 'left unit first further' ({error}); run stage 2 again") from None
    return classes


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class _Arcs(NamedTuple):
    """Arcs of a unit graph, (A,) each."""

    src: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    weight: np.ndarray


class _Entries(NamedTuple):
    """state, label (E,): the state reached by a unit and its class; of_arc (A,): the entry of each arc."""

    state: np.ndarray
    label: np.ndarray
    of_arc: np.ndarray


def _without_context(graph: Fsa) -> tuple[_Arcs, np.ndarray, np.ndarray]:
    arcs = _Arcs(graph.src.astype(np.int64), graph.dst.astype(np.int64), graph.label.astype(np.int64), graph.weight)
    return arcs, np.arange(graph.num_states), np.zeros(graph.num_states, dtype=np.int64)


def _with_last_unit(graph: Fsa) -> tuple[_Arcs, np.ndarray, np.ndarray]:
    """Split states until each is reached by one unit only; also each one's state and unit, 0 for none (C o graph)."""
    width = int(graph.label.max(initial=0)) + 1
    reached = graph.dst.astype(np.int64) * width + graph.label
    keys = np.unique(np.concatenate([[0], reached]))  # key 0: the start state, before any unit
    state, last = keys // width, keys % width
    arc, src = _join(state, graph.src)
    dst = np.searchsorted(keys, reached)[arc]
    return _Arcs(src, dst, graph.label[arc].astype(np.int64), graph.weight[arc]), state, last


def _ctc(topology: Topology, entries: _Entries, arcs: _Arcs, final: np.ndarray) -> Hmm:
    """One state per entry, held by its self-loop, then one blank per state of the unit graph."""
    count, states = len(entries.state), len(final)
    blank = count + np.arange(states)
    held = np.arange(count)
    onward, origin = _join(entries.state, arcs.src)
    if topology.kind == "ctc":  # equal outputs need a blank between them
        different = entries.label[origin] != entries.label[entries.of_arc[onward]]
        onward, origin = onward[different], origin[different]
    src = [held, blank, held, origin, blank[arcs.src]]
    dst = [held, blank, blank[entries.state], entries.of_arc[onward], entries.of_arc]
    weight = [np.zeros(count + states + count), arcs.weight[onward], arcs.weight]
    label = np.concatenate([topology.enter(entries.label), np.full(states, BLANK)])
    initial = np.concatenate([_first(entries, arcs), np.full(states, -np.inf)])
    initial[blank[0]] = 0.0
    ending = np.concatenate([final[entries.state], final])
    return _hmm(label, initial, ending, src, dst, weight, final[0])


def _two_pdf(topology: Topology, entries: _Entries, arcs: _Arcs, final: np.ndarray) -> Hmm:
    """Two states per entry: its first frame, then its further frames."""
    count = len(entries.state)
    first, further = np.arange(count), count + np.arange(count)
    onward, origin = _join(entries.state, arcs.src)
    following = entries.of_arc[onward]
    src = [first, further, origin, origin + count]
    dst = [further, further, following, following]
    weight = [np.zeros(2 * count), arcs.weight[onward], arcs.weight[onward]]
    label = np.concatenate([topology.enter(entries.label), topology.hold(entries.label)])
    initial = np.concatenate([_first(entries, arcs), np.full(count, -np.inf)])
    return _hmm(label, initial, np.tile(final[entries.state], 2), src, dst, weight, final[0])


def _first(entries: _Entries, arcs: _Arcs) -> np.ndarray:
    """Log-weight with which a path begins in each entry."""
    initial = np.full(len(entries.state), -np.inf)
    begins = arcs.src == 0
    np.logaddexp.at(initial, entries.of_arc[begins], arcs.weight[begins])
    return initial


def _hmm(
    label: np.ndarray,
    initial: np.ndarray,
    final: np.ndarray,
    src: list[np.ndarray],
    dst: list[np.ndarray],
    weight: list[np.ndarray],
    empty: float,
) -> Hmm:
    return Hmm(
        label=torch.from_numpy(label.astype(np.int64)),
        initial=torch.from_numpy(initial),
        final=torch.from_numpy(final),
        src=torch.from_numpy(np.concatenate(src).astype(np.int64)),
        dst=torch.from_numpy(np.concatenate(dst).astype(np.int64)),
        weight=torch.from_numpy(np.concatenate(weight)),
        accepts_empty=float(empty),
    )


def _join(states: np.ndarray, arc_states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (arc, row) where the arc leaves the state of the row: two index arrays."""
    order = np.argsort(arc_states, kind="stable")
    low = np.searchsorted(arc_states[order], states, "left")
    high = np.searchsorted(arc_states[order], states, "right")
    count = high - low
    row = np.repeat(np.arange(len(states)), count)
    offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return order[np.repeat(low, count) + offset], row
