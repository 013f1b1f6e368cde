"""Topologies: the outputs that the frames of a unit emit (H, with left context C, of HCLG).

Composed with a topology, a graph over units becomes a graph over frames. A unit has a class: one of its own
(monophones), or one that depends on the unit before it (left biphones, `distill.graphs.biphones`). Three kinds assign
outputs to classes:

- ctc: output 0 is blank, 1 + c is class c. Repeats are merged, equal units are separated by a blank
  (Graves et al. 2006; k2's `ctc_topo(modified=False)`).
- ctc_compact: the same outputs, but the blank between equal units is optional, so a repeat is either
  one unit or two (compact CTC of Laptev et al. 2021, arXiv 2110.03098; k2's `modified=True`).
- two_pdf: output 2c in the first frame of a unit, 2c + 1 in all further ones, no blank
  (Hadian et al. 2018, end-to-end LF-MMI; Kaldi's steps/nnet3/chain/e2e).

Graphs over units are free of context, which composition adds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from distill.config.model import BLANK
from distill.files import write_text
from distill.fsa.graph import Fsa, Hmm, Numerator, expand
from distill.search.determinise import UnitTable

if TYPE_CHECKING:
    import kaldifst

KINDS = ("ctc", "ctc_compact", "two_pdf")


@dataclass(frozen=True, eq=False)
class Topology:
    """Outputs of a model for the frames of its units.

    kind: one of `KINDS`. classes (R, U): class of unit u after left context r, -1 for unit 0 (blank). R is 1
    without context, else U: row l is the context of unit l, row 0 the start of an utterance.
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
        """Number of units, blank included: the lines of tokens.txt."""
        return self.classes.shape[1]

    @property
    def num_classes(self) -> int:
        return int(self.classes.max(initial=-1)) + 1

    @property
    def num_outputs(self) -> int:
        """V: width of the model's output layer."""
        return 2 * self.num_classes if self.kind == "two_pdf" else 1 + self.num_classes

    @property
    def has_context(self) -> bool:
        """True if the outputs of a unit depend on the unit before it."""
        return len(self.classes) > 1

    def enter(self, classes: np.ndarray) -> np.ndarray:
        """Outputs in the first frame of units of these classes."""
        return 2 * classes if self.kind == "two_pdf" else 1 + classes

    def loop(self, classes: np.ndarray) -> np.ndarray:
        """Outputs in the further frames, on the self-loop."""
        return 2 * classes + 1 if self.kind == "two_pdf" else 1 + classes

    def row(self, unit: np.ndarray | int) -> np.ndarray | int:
        """Row of `classes` after a unit (0: the start of an utterance)."""
        return unit if self.has_context else unit * 0

    def compose(self, graph: Fsa) -> Hmm:
        """H o C o graph: all frame labellings of the paths of a unit graph, with their weights.

        A graph with windows becomes a `Numerator` with windows. Raises ValueError for labels outside the units.
        """
        if graph.num_arcs and graph.label.max() >= self.num_units:
            raise ValueError(f"graph has label {graph.label.max()}, expected 1..{self.num_units - 1}")
        arcs, state, last = _with_last_unit(graph, self.has_context)
        entries, final = self._entries(arcs, last), graph.final[state]
        build = _two_pdf if self.kind == "two_pdf" else _ctc
        label, initial, ending, src, dst, weight = map(torch.from_numpy, build(self, entries, arcs, final))
        parts = (label.long(), initial, ending, src.long(), dst.long(), weight, float(final[0]))
        if graph.window is None:
            return Hmm(*parts)
        of_state = np.tile(entries.state, 2) if self.kind == "two_pdf" else [*entries.state, *range(len(state))]
        return Numerator(*parts, window=torch.from_numpy(graph.window[state[of_state]].astype(np.int64)))

    def _entries(self, arcs: _Arcs, last: np.ndarray) -> _Entries:
        """Distinct pairs of a state and the class of a unit on an arc into it."""
        classes = self.classes[last[arcs.src], arcs.label]
        width = self.num_classes + 1
        keys, entry = np.unique(arcs.dst * width + classes, return_inverse=True)
        return _Entries(keys // width, keys % width, entry.reshape(-1))

    def unit_begun(self, previous: int, output: int) -> int:
        """Unit that starts at a frame, 0 for none; previous: output of the frame before (-1 or blank at the start).

        Under ctc_compact a repeated output continues its unit. Of units that share an output (tying) the
        first is returned, unless `output` is one of the extra columns of `output_columns`.
        """
        return int((self.unit_table.again if output == previous else self.unit_table.fresh)[output])

    @cached_property
    def unit_table(self) -> UnitTable:
        """`unit_begun` as a table over `output_columns`."""
        fresh = np.zeros(len(self.output_columns), dtype=np.int32)
        for unit in range(self.num_units - 1, 0, -1):
            fresh[self.enter(np.unique(self.classes[:, unit]))] = unit
        fresh[self.num_outputs :] = [unit for _, unit in self._shared]
        return UnitTable(fresh, fresh if self.kind == "two_pdf" else np.zeros_like(fresh))

    def output_names(self, units: Sequence[str]) -> list[str]:
        """Names of the outputs: "K-AE" is AE after K, "^-AE" at the start, "*-AE" in all other contexts.

        The outputs of two_pdf end in "_1" (first frame) and "_2" (further frames).
        """
        names, tied = [""] * self.num_classes, {c for c, _ in self._shared}
        for unit in range(1, self.num_units):
            lefts, counts = self.classes[:, unit], Counter(self.classes[:, unit].tolist())
            for left, c in enumerate(lefts.tolist()):
                alone = counts[c] < self.num_units and (counts[c] == 1 or left == 0)
                context = ("^" if left == 0 else units[left]) if alone else "*"
                symbol = "*" if c in tied else units[unit]
                names[c] = names[c] or (f"{context}-{symbol}" if self.has_context else symbol)
        if self.kind == "two_pdf":
            return [f"{name}_{part}" for name in names for part in (1, 2)]
        return [units[BLANK], *names]

    def units(self, outputs: Sequence[int]) -> list[int]:
        """Unit sequence of a frame labelling."""
        return [u for u in map(self.unit_begun, [-1, *outputs[:-1]], outputs) if u]

    @cached_property
    def _shared(self) -> list[tuple[int, int]]:
        """(class, unit) of units that share their class with a unit of smaller id."""
        pairs = sorted({(int(c), u) for u in range(1, self.num_units) for c in np.unique(self.classes[:, u])})
        smallest = dict(reversed(pairs))
        return [(c, u) for c, u in pairs if smallest[c] != u]

    @cached_property
    def output_columns(self) -> np.ndarray:
        """Output of each input label - 1 of `output_fst`: 0 .. V - 1, then those of units that share a class.

        These units have input labels of their own, so that a path determines its units. A decoder searches
        with `log_probs[:, output_columns]`, which is log_probs where no outputs are shared.
        """
        doubles = self.enter(np.array([c for c, _ in self._shared], dtype=np.int64))
        return np.concatenate([np.arange(self.num_outputs), doubles])

    def output_fst(self) -> kaldifst.StdVectorFst:
        """H o C with OpenFst: input label o + 1 is column o of `output_columns`, output labels are units.

        All states are final, all weights zero.
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

        States: one for each row of `classes`, before the next unit (in CTC it emits blank), then one for each pair
        of a unit and its class.
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
            row, further = int(self.row(unit)), int(self.loop(np.array(c)))
            yield here, here, columns[unit, c] if blank else further, 0
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
        rows = np.stack([left, unit, topology.enter(classes), topology.loop(classes)], 1)
        write_text(folder / "pdfs.txt", "".join(f"{a} {b} {c} {d}\n" for a, b, c, d in rows.tolist()))
    write_text(folder / "topology.json", json.dumps(content, indent=1) + "\n")


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
    if context == "left":
        topology = Topology(kind, _read_classes(folder / "pdfs.txt", num_units, kind))
    else:
        topology = monophones(kind, num_units)
    if topology.num_outputs != outputs:
        raise ValueError(f"{path} names {outputs} outputs, pdfs.txt has {topology.num_outputs}; run stage 2 again")
    return topology


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


class _Arcs(NamedTuple):
    """Arcs of a unit graph, (A,) each."""

    src: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    weight: np.ndarray


class _Entries(NamedTuple):
    """Pairs of a state and the class of a unit that leads into it: state, label (E,); of_arc (A,): pairs of arcs."""

    state: np.ndarray
    label: np.ndarray
    of_arc: np.ndarray


def _with_last_unit(graph: Fsa, context: bool) -> tuple[_Arcs, np.ndarray, np.ndarray]:
    """C o graph: states are split by the unit that leads into them; without context the graph itself.

    Returns the arcs, and the original state and the last unit (0 for none) of each state.
    """
    src, dst, label = (x.astype(np.int64) for x in (graph.src, graph.dst, graph.label))
    if not context:
        return _Arcs(src, dst, label, graph.weight), np.arange(graph.num_states), np.zeros(graph.num_states, np.int64)
    width = int(label.max(initial=0)) + 1
    reached = dst * width + label
    keys = np.unique(np.concatenate([[0], reached]))  # key 0: the start state, before any unit
    state, last = keys // width, keys % width
    arc, row = _join(state, src)
    return _Arcs(row, np.searchsorted(keys, reached)[arc], label[arc], graph.weight[arc]), state, last


def _ctc(topology: Topology, entries: _Entries, arcs: _Arcs, final: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fields of an `Hmm`: a state with a self-loop for each entry, then a blank for each state of the unit graph."""
    count, states = len(entries.state), len(final)
    blank = count + np.arange(states)
    own = np.arange(count)
    onward, origin = _join(entries.state, arcs.src)
    if topology.kind == "ctc":  # equal outputs need a blank between them
        different = entries.label[origin] != entries.label[entries.of_arc[onward]]
        onward, origin = onward[different], origin[different]
    src = [own, blank, own, origin, blank[arcs.src]]
    dst = [own, blank, blank[entries.state], entries.of_arc[onward], entries.of_arc]
    weight = [np.zeros(count + states + count), arcs.weight[onward], arcs.weight]
    label = np.concatenate([topology.enter(entries.label), np.full(states, BLANK)])
    initial = np.concatenate([_first(entries, arcs), np.full(states, -np.inf)])
    initial[blank[0]] = 0.0
    ending = np.concatenate([final[entries.state], final])
    return label, initial, ending, *map(np.concatenate, (src, dst, weight))


def _two_pdf(topology: Topology, entries: _Entries, arcs: _Arcs, final: np.ndarray) -> tuple[np.ndarray, ...]:
    """Fields of an `Hmm`: two states for each entry, its first frame and its further ones."""
    count = len(entries.state)
    first, further = np.arange(count), count + np.arange(count)
    onward, origin = _join(entries.state, arcs.src)
    following = entries.of_arc[onward]
    src = [first, further, origin, origin + count]
    dst = [further, further, following, following]
    weight = [np.zeros(2 * count), arcs.weight[onward], arcs.weight[onward]]
    label = np.concatenate([topology.enter(entries.label), topology.loop(entries.label)])
    initial = np.concatenate([_first(entries, arcs), np.full(count, -np.inf)])
    ending = np.tile(final[entries.state], 2)
    return label, initial, ending, *map(np.concatenate, (src, dst, weight))


def _first(entries: _Entries, arcs: _Arcs) -> np.ndarray:
    """Log-weight of starting in each entry."""
    initial = np.full(len(entries.state), -np.inf)
    begins = arcs.src == 0
    np.logaddexp.at(initial, entries.of_arc[begins], arcs.weight[begins])
    return initial


def _join(states: np.ndarray, arc_states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index pairs (arc, row) of arcs that leave states[row]: two arrays."""
    order = np.argsort(arc_states, kind="stable")
    low = np.searchsorted(arc_states[order], states, "left")
    high = np.searchsorted(arc_states[order], states, "right")
    row, offset = expand(high - low)
    return order[low[row] + offset], row
