"""File formats of graphs: k2's dict of tensors, and OpenFst's text and binary forms."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from distill.files import refusal, replacing
from distill.fsa.graph import Fsa, Hmm

if TYPE_CHECKING:
    import kaldifst

OPENFST_MAGIC = struct.pack("<i", 2125659606)


def k2_dict(fsa: Fsa) -> dict[str, Any]:
    """The dict that `k2.Fsa.from_dict` reads: arcs (A, 4) int32, the score's bits in the last column.

    k2 ends every path in one final state, the last, through an arc of label -1; its arcs are sorted by source.
    """
    ending = np.flatnonzero(np.isfinite(fsa.final))
    src, dst = np.concatenate([fsa.src, ending]), np.concatenate([fsa.dst, np.full(len(ending), fsa.num_states)])
    label = np.concatenate([fsa.label, np.full(len(ending), -1)])
    return k2_arcs(src, dst, label, np.concatenate([fsa.weight, fsa.final[ending]]))


def hmm_to_k2_dict(graph: Hmm) -> dict[str, Any]:
    """The dict that `k2.Fsa.from_dict` reads, of a graph over frames: a start, then the graph's states, then the end.

    Labels are output columns, as `k2.intersect_dense` takes them (its label 0 is a symbol, not epsilon).
    """
    states = graph.num_states
    initial, final, label = (x.cpu().numpy() for x in (graph.initial, graph.final, graph.label))
    src, dst, weight = (x.cpu().numpy() for x in (graph.src, graph.dst, graph.weight))
    begin, ending = np.flatnonzero(np.isfinite(initial)), np.flatnonzero(np.isfinite(final))
    empty = [graph.accepts_empty] if np.isfinite(graph.accepts_empty) else []
    zero, end = np.zeros(len(empty), dtype=np.int64), np.full(len(empty), states + 1)
    return k2_arcs(
        np.concatenate([np.zeros(len(begin), dtype=np.int64), src + 1, ending + 1, zero]),
        np.concatenate([begin + 1, dst + 1, np.full(len(ending), states + 1), end]),
        np.concatenate([label[begin], label[dst], np.full(len(ending) + len(empty), -1)]),
        np.concatenate([initial[begin], weight, final[ending], empty]),
    )


def k2_arcs(
    src: np.ndarray, dst: np.ndarray, label: np.ndarray, score: np.ndarray, output: np.ndarray | None = None
) -> dict[str, Any]:
    """k2's dict of arcs (A,) in k2's order: by source, label (-1 last: it compares as unsigned), target.

    output (A,): labels of a transducer's other side, written as aux_labels.
    """
    order = np.lexsort((dst, label.astype(np.uint32), src))
    columns = [src, dst, label, score.astype(np.float32).view(np.int32)]
    content = {"arcs": torch.from_numpy(np.stack([column[order].astype(np.int32) for column in columns], 1))}
    return content if output is None else content | {"aux_labels": torch.from_numpy(output[order].astype(np.int32))}


def k2_vector_dict(graphs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Many acceptors as the dict of one `FsaVec` (the numerators of a batch); each (A, 4) arcs as `k2_dict` has them.

    k2's layout, one line of int32: how many, 0, where the states and where the arcs of each begin, all arcs. Of a
    graph in which no path can end nothing stays.
    """
    tables = [graph["arcs"] if (graph["arcs"][:, 2] == -1).any() else graph["arcs"][:0] for graph in graphs]
    states = [int(arcs[:, 1].max()) + 1 if len(arcs) else 0 for arcs in tables]
    begin = [np.cumsum([0, *sizes]) for sizes in (states, [len(arcs) for arcs in tables])]
    head = torch.from_numpy(np.concatenate([[len(tables), 0], *begin]).astype(np.int32))
    return {"arcs": torch.cat([head, *(arcs.reshape(-1) for arcs in tables)])}


class K2Arcs(NamedTuple):
    """A k2 graph's arcs, (A,) each: src, dst, label int32, -1 into the final state; score float64."""

    src: np.ndarray
    dst: np.ndarray
    label: np.ndarray
    score: np.ndarray

    @classmethod
    def of(cls, content: Any, where: str = "k2 dict") -> K2Arcs:
        """Raises ValueError naming `where` for anything but the dict of one graph."""
        arcs = content.get("arcs") if isinstance(content, dict) else None
        if not isinstance(arcs, torch.Tensor) or arcs.ndim != 2 or arcs.shape[1] != 4:
            raise ValueError(f"{where}: expected a dict with 'arcs' of shape (A, 4), as k2's Fsa.as_dict gives")
        if arcs.dtype != torch.int32:
            raise ValueError(f"{where}: 'arcs' are {arcs.dtype}, expected torch.int32 (scores are float32 bits in it)")
        src, dst, label, bits = (column.copy() for column in arcs.to(torch.int32).numpy().T)
        return cls(src, dst, label, bits.view(np.float32).astype(np.float64))


def from_k2_dict(content: dict[str, Any], where: str = "k2 dict") -> Fsa:
    """The graph of a k2 dict without epsilons; raises ValueError naming `where` for anything else."""
    src, dst, label, score = K2Arcs.of(content, where)
    last = label == -1
    states = int(max(src.max(initial=0), dst[~last].max(initial=0))) + 1
    final = np.full(states, -np.inf)
    np.logaddexp.at(final, src[last], score[last])
    return Fsa(src[~last], dst[~last], label[~last], score[~last], final)


def from_k2_vector_dict(content: dict[str, Any], where: str = "k2 dict") -> list[Fsa]:
    """The graphs of an `FsaVec`'s dict; raises ValueError naming `where` for anything else."""
    row = content.get("arcs") if isinstance(content, dict) else None
    if not isinstance(row, torch.Tensor) or row.ndim != 1 or len(row) < 4 or len(row) < 4 + 2 * int(row[0]):
        raise ValueError(f"{where}: expected a dict with 'arcs' of shape (N,), as k2's Fsa.as_dict gives for an FsaVec")
    count = int(row[0])
    begin = row[3 + count : 4 + 2 * count].tolist()
    table = row[4 + 2 * count :]
    if len(table) != 4 * begin[-1]:
        raise ValueError(f"{where}: it promises {begin[-1]} arcs and has {len(table) / 4:g}; is it cut short?")
    arcs = table.reshape(-1, 4)
    return [from_k2_dict({"arcs": arcs[low:high]}, where) for low, high in pairwise(begin)]


def hmm_from_k2_dict(content: dict[str, Any], where: str = "k2 dict") -> Hmm:
    """A k2 graph over frames, such as icefall's ctc_topo_P, as the engines run it: labels are output columns.

    Its states are split until each is reached by one label only. Raises ValueError naming `where`.
    """
    graph = from_k2_dict(content, where)
    width = int(graph.label.max(initial=0)) + 1
    entered, state = np.unique(graph.dst.astype(np.int64) * width + graph.label, return_inverse=True)
    at, state = entered // width, state.reshape(-1)
    order = np.argsort(graph.src, kind="stable")
    low, high = (np.searchsorted(graph.src[order], at, side) for side in ("left", "right"))
    origin = np.repeat(np.arange(len(at)), high - low)
    arc = order[np.arange(len(origin)) - np.repeat(np.cumsum(high - low) - high, high - low)]
    initial, first = np.full(len(at), -np.inf), graph.src == 0
    np.logaddexp.at(initial, state[first], graph.weight[first])
    return Hmm(
        label=torch.from_numpy(entered % width),
        initial=torch.from_numpy(initial),
        final=torch.from_numpy(graph.final[at]),
        src=torch.from_numpy(origin),
        dst=torch.from_numpy(state[arc]),
        weight=torch.from_numpy(graph.weight[arc]),
        accepts_empty=float(graph.final[0]),
    )


def save_fsa(path: Path, fsa: Fsa) -> None:
    """Write a graph as a k2 dict."""
    save_dict(path, k2_dict(fsa))


def save_dict(path: Path, content: dict[str, Any]) -> None:
    """torch.save under a temporary name, then rename."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def save_fst(path: Path, fst: kaldifst.StdVectorFst) -> None:
    """Write OpenFst's binary form under a temporary name, then rename; raises OSError where the disk refuses it."""
    with replacing(path) as temporary:
        if not fst.write(str(temporary)):  # OpenFst gives no reason
            raise OSError(refusal(path.parent), "OpenFst could not write")


def load_fsa(path: Path) -> Fsa:
    """Read a graph that `save_fsa`, or k2 itself, wrote; raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"no graph at {path}; stages 2 to 4 write graphs (run.sh --stage 2 --stop-stage 4)")
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for cut or foreign files
        raise ValueError(
            f"{path}: not readable as a graph: cut short, or not what torch.save wrote ({type(error).__name__});"
            " remove it and make it again (run.sh --stage 4 --stop-stage 4)"
        ) from None
    return from_k2_dict(content, str(path))


def to_openfst_text(fsa: Fsa) -> str:
    """AT&T text of an acceptor with costs (negated log-weights), the start state first.

    Labels stand twice on a line: `kaldifst.compile(text, acceptor=False)`, `k2.Fsa.from_openfst(text, acceptor=False)`.
    """
    order = np.argsort(fsa.src, kind="stable")
    lines = [f"{fsa.src[a]} {fsa.dst[a]} {fsa.label[a]} {fsa.label[a]} {float(-fsa.weight[a])!r}" for a in order]
    lines += [f"{state} {float(-fsa.final[state])!r}" for state in np.flatnonzero(np.isfinite(fsa.final))]
    if lines and not lines[0].startswith("0 "):
        raise ValueError("the start state has no arcs: OpenFst's text form would start elsewhere")
    return "\n".join(lines) + "\n"


def k2_dict_to_openfst_text(content: dict[str, Any]) -> str:
    """AT&T text of a k2 dict with costs, as `k2.Fsa.from_openfst` reads it: final arcs become final costs.

    Of a transducer (aux_labels, one on an arc) lines have two labels, of an acceptor one.
    """
    src, dst, label, score = K2Arcs.of(content)
    labels = [label, content["aux_labels"].numpy()] if "aux_labels" in content else [label]
    rows = zip(src.tolist(), dst.tolist(), zip(*(column.tolist() for column in labels)), (-score).tolist())
    lines = [f"{s} {c!r}" if u[0] == -1 else f"{s} {d} {' '.join(map(str, u))} {c!r}" for s, d, u, c in rows]
    return "\n".join(lines) + "\n"


def from_openfst_text(text: str) -> Fsa:
    """Read AT&T text of an epsilon-free acceptor, arcs as "src dst label label [cost]".

    The source of the first line is the start state; it changes numbers with state 0. Raises
    ValueError naming the line for epsilons, different labels on an arc, or anything else.
    """
    rows = [_openfst_line(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.split()]
    start = rows[0][0] if rows else 0
    swap = {start: 0, 0: start}
    arcs, final, highest = [], {}, 0
    for source, target, label, cost in rows:
        state = swap.get(source, source)
        if target is None:
            final[state], end = -cost, state
        else:
            end = swap.get(target, target)
            arcs.append((state, end, label, -cost))
        highest = max(highest, state, end)
    return Fsa.from_arcs(arcs, final, highest + 1)


def _openfst_line(number: int, fields: Sequence[str]) -> tuple[int, int | None, int, float]:
    """Source, target, label and cost of an arc, or of a final state, which has no target."""
    try:
        if len(fields) <= 2:
            return int(fields[0]), None, 0, float(fields[1]) if len(fields) == 2 else 0.0
        src, dst, label, again = map(int, fields[:4])
        cost = float(fields[4]) if len(fields) == 5 else 0.0
        if len(fields) <= 5 and label == again >= 1 and min(src, dst) >= 0:
            return src, dst, label, cost
    except ValueError:
        pass
    raise ValueError(
        f"line {number}: expected 'src dst label label [cost]', label >= 1, or 'state [cost]', got"
        f" {' '.join(fields)!r}; labels must be numbers (no symbol tables), epsilons removed (fstrmepsilon)"
    )


ARC = np.dtype([("input", "<i4"), ("output", "<i4"), ("cost", "<f4"), ("target", "<i4")])


def transducer_to_k2_dict(fst: kaldifst.StdVectorFst) -> dict[str, Any]:
    """A kaldifst transducer (HLG, L) as the dict that k2 reads: arcs, and aux_labels for the outputs.

    Labels stay as they are: 0 is epsilon and final arcs have -1. State 0 becomes the start.
    """
    with tempfile.TemporaryDirectory() as folder:  # arc by arc through Python takes minutes for a large graph
        path = Path(folder) / "graph.fst"
        save_fst(path, fst)
        start, final, source, arcs = read_openfst(path)
    ending = np.flatnonzero(np.isfinite(final))
    source = np.concatenate([source, ending])
    target = np.concatenate([arcs["target"], np.full(len(ending), len(final))])
    label, output = (np.concatenate([arcs[name], np.full(len(ending), -1)]) for name in ("input", "output"))
    score = -np.concatenate([arcs["cost"], final[ending]])
    number = np.arange(len(final) + 1)
    number[[0, start]] = start, 0
    return k2_arcs(number[source], number[target], label, score, output)


def read_openfst(path: Path) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Read OpenFst's binary form (type vector, standard arcs, no symbol tables).

    Returns the start state, final costs (S,) float32 with inf where not final, and for the arcs in
    order of their source: source (A,), fields of `ARC` (A,). Raises ValueError for another kind of file.
    """
    data = path.read_bytes()
    try:
        place, flags, start, count = _openfst_header(data)
        if flags & 3:
            raise ValueError("it holds symbol tables")
        final, arcs_of = np.empty(count, dtype=np.float32), np.empty(count, dtype=np.int64)
        pieces = []
        for state in range(count):
            final[state], arcs_of[state] = struct.unpack_from("<fq", data, place)
            place += 12
            pieces.append(data[place : place + ARC.itemsize * arcs_of[state]])
            place += ARC.itemsize * int(arcs_of[state])
        if place > len(data):
            raise ValueError("it is cut short")
    except (struct.error, ValueError) as error:
        raise ValueError(
            f"{path}: cut short, or not an OpenFst vector graph ({error}); remove it and make it again"
            " (run.sh --stage 4 --stop-stage 4), or convert it with fstconvert --fst_type=vector"
        ) from None
    return start, final, np.repeat(np.arange(count), arcs_of), np.frombuffer(b"".join(pieces), dtype=ARC)


def _openfst_header(data: bytes) -> tuple[int, int, int, int]:
    """Offset of the first state, flags, start state, number of states."""
    place = 4
    kinds = []
    for _ in range(2):
        (length,) = struct.unpack_from("<i", data, place)
        kinds.append(data[place + 4 : place + 4 + length])
        place += 4 + length
    if data[:4] != OPENFST_MAGIC or kinds != [b"vector", b"standard"]:
        raise ValueError(f"expected a vector graph of standard arcs, got {kinds}")
    _, flags, _, start, states, _ = struct.unpack_from("<iiQqqq", data, place)
    return place + struct.calcsize("<iiQqqq"), flags, start, states
