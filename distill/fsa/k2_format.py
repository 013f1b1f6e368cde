"""k2's file format: graphs as the dict of tensors that `k2.Fsa.from_dict` reads and `Fsa.as_dict` gives."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distill.files import replacing
from distill.fsa.epsilons import ArcTable, frames_only
from distill.fsa.graph import Fsa, Hmm
from distill.fsa.lattice import NO_FRAME, DecodingGraph
from distill.fsa.openfst import read_openfst, save_fst

if TYPE_CHECKING:
    import kaldifst


def k2_dict(fsa: Fsa) -> dict[str, Any]:
    """The dict of a graph over units: arcs (A, 4) int32, the score's bits in the last column.

    k2 ends every path in one final state, the last, through an arc of label -1; its arcs are sorted by source.
    """
    ending = np.flatnonzero(np.isfinite(fsa.final))
    src, dst = np.concatenate([fsa.src, ending]), np.concatenate([fsa.dst, np.full(len(ending), fsa.num_states)])
    label = np.concatenate([fsa.label, np.full(len(ending), -1)])
    return _dict_of(src, dst, label, np.concatenate([fsa.weight, fsa.final[ending]]))


def hmm_to_k2_dict(graph: Hmm) -> dict[str, Any]:
    """The dict of a graph over frames: a start, then the graph's states, then the end.

    Labels are output columns, as `k2.intersect_dense` takes them (its label 0 is a symbol, not epsilon).
    """
    states = graph.num_states
    initial, final, label = (x.cpu().numpy() for x in (graph.initial, graph.final, graph.label))
    src, dst, weight = (x.cpu().numpy() for x in (graph.src, graph.dst, graph.weight))
    begin, ending = np.flatnonzero(np.isfinite(initial)), np.flatnonzero(np.isfinite(final))
    empty = [graph.accepts_empty] if np.isfinite(graph.accepts_empty) else []
    zero, end = np.zeros(len(empty), dtype=np.int64), np.full(len(empty), states + 1)
    return _dict_of(
        np.concatenate([np.zeros(len(begin), dtype=np.int64), src + 1, ending + 1, zero]),
        np.concatenate([begin + 1, dst + 1, np.full(len(ending), states + 1), end]),
        np.concatenate([label[begin], label[dst], np.full(len(ending) + len(empty), -1)]),
        np.concatenate([initial[begin], weight, final[ending], empty]),
    )


def transducer_to_k2_dict(fst: kaldifst.StdVectorFst) -> dict[str, Any]:
    """The dict of a kaldifst transducer (HLG, L): arcs, and aux_labels for the outputs.

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
    return _dict_of(number[source], number[target], label, score, output)


def decoding_graph_to_k2_dict(graph: DecodingGraph, columns: np.ndarray | None = None) -> dict[str, Any]:
    """The dict of a decoding graph, as icefall's decode.py reads it (HLG.pt).

    Labels are output columns, 0 is blank and none is epsilon; aux_labels are word ids, 0 for none; final arcs
    have -1 in both. columns: output of each label, where labels are more than outputs (tied units). Raises
    ValueError as `frames_only` does.
    """
    graph = frames_only(graph)
    label = graph.label if columns is None else columns[graph.label]
    ending = np.flatnonzero(np.isfinite(graph.final))
    last = np.full(len(ending), -1)
    return _dict_of(
        np.concatenate([np.repeat(np.arange(graph.num_states), np.diff(graph.first)), ending]),
        np.concatenate([graph.dst, np.full(len(ending), graph.num_states)]),
        np.concatenate([label, last]),
        np.concatenate([graph.score, graph.final[ending]]),
        np.concatenate([graph.word, last]),
    )


def _dict_of(
    src: np.ndarray, dst: np.ndarray, label: np.ndarray, score: np.ndarray, output: np.ndarray | None = None
) -> dict[str, Any]:
    """The dict of arcs (A,) in k2's order: by source, label (-1 last: it compares as unsigned), target.

    output (A,): labels of a transducer's other side, written as aux_labels.
    """
    order = np.lexsort((dst, label.astype(np.uint32), src))
    columns = [src, dst, label, score.astype(np.float32).view(np.int32)]
    content = {"arcs": torch.from_numpy(np.stack([column[order].astype(np.int32) for column in columns], 1))}
    return content if output is None else content | {"aux_labels": torch.from_numpy(output[order].astype(np.int32))}


def k2_vector_dict(graphs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Many acceptors as the dict of one `FsaVec` (the numerators of a batch); each (A, 4) arcs as `k2_dict` has them.

    k2's layout, one line of int32: number of graphs, 0, offsets of their states and of their arcs, all arcs. A graph
    in which no path can end becomes an empty one.
    """
    tables = [graph["arcs"] if (graph["arcs"][:, 2] == -1).any() else graph["arcs"][:0] for graph in graphs]
    states = [int(arcs[:, 1].max()) + 1 if len(arcs) else 0 for arcs in tables]
    begin = [np.cumsum([0, *sizes]) for sizes in (states, [len(arcs) for arcs in tables])]
    head = torch.from_numpy(np.concatenate([[len(tables), 0], *begin]).astype(np.int32))
    return {"arcs": torch.cat([head, *(arcs.reshape(-1) for arcs in tables)])}


def from_k2_dict(content: Any, where: str = "k2 dict") -> Fsa:
    """The graph of a k2 dict without epsilons; raises ValueError naming `where` for anything else."""
    src, dst, label, score = k2_arcs(content, where)
    last = label == -1
    states = int(max(src.max(initial=0), dst[~last].max(initial=0))) + 1
    final = np.full(states, -np.inf)
    np.logaddexp.at(final, src[last], score[last])
    return Fsa(src[~last], dst[~last], label[~last], score[~last], final)


def k2_arcs(content: Any, where: str = "k2 dict") -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """ArcTable of one k2 graph, (A,) each: src, dst, label int32, -1 into the final state; score float64.

    Raises ValueError naming `where` for anything but the dict of one graph.
    """
    arcs = content.get("arcs") if isinstance(content, dict) else None
    if not isinstance(arcs, torch.Tensor) or arcs.ndim != 2 or arcs.shape[1] != 4:
        raise ValueError(f"{where}: expected a dict with 'arcs' of shape (A, 4), as k2's Fsa.as_dict gives")
    if arcs.dtype != torch.int32:
        raise ValueError(f"{where}: 'arcs' are {arcs.dtype}, expected torch.int32 (scores are float32 bits in it)")
    src, dst, label, bits = (column.copy() for column in arcs.numpy().T)
    return src, dst, label, bits.view(np.float32).astype(np.float64)


def decoding_graph_from_k2_dict(content: Any, where: str = "k2 dict") -> DecodingGraph:
    """HLG as k2 and icefall write it (HLG.pt); the reverse of `decoding_graph_to_k2_dict`.

    aux_labels may be ragged, as icefall has them, or lists: words beyond an arc's first stand on arcs without a
    frame. Raises ValueError naming `where` for the dict of anything but a transducer.
    """
    src, dst, label, score = k2_arcs(content, where)
    row, word = _words(content.get("aux_labels"), label, where)
    last = label == -1
    states = int(max(src.max(initial=0), dst[~last].max(initial=0))) + 1
    place = np.arange(len(row)) - np.searchsorted(row, row)  # of a word on its arc
    more = np.bincount(row, minlength=len(src)) - 1  # words beyond the first
    fresh = states + np.cumsum(more) - more  # first of the states between them
    begins, ends = place == 0, place == more[row]
    source = np.where(begins, src[row], fresh[row] + place - 1)
    target = np.where(ends, dst[row], fresh[row] + place)
    labels = np.where(begins, label[row], NO_FRAME)
    scores = np.where(begins, score[row], 0.0)
    ending = last[row] & ends
    final = np.full(states + int(more.sum()), -np.inf)
    np.logaddexp.at(final, source[ending], scores[ending])
    return ArcTable(source, target, labels, np.maximum(word, 0), scores).take(~ending).graph(final)


def _words(aux: Any, label: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Arc and word id of each word, at least one for every arc (0 or -1: none), in order of the arcs."""
    if isinstance(aux, torch.Tensor) and aux.shape == label.shape:
        return np.arange(len(label)), aux.numpy()
    lists = aux.tolist() if hasattr(aux, "tolist") else aux  # k2.RaggedTensor, or what its tolist() gave
    if not isinstance(lists, list) or len(lists) != len(label):
        raise ValueError(f"{where}: expected aux_labels, one for each of {len(label)} arcs; is it an acceptor?")
    words = [[word for word in some if word > 0] for some in lists]
    for some, ends in zip(words, label == -1):
        if ends or not some:  # a final arc takes no frame and ends the path, so its words stand before it
            some.append(0)
    return np.repeat(np.arange(len(words)), [len(some) for some in words]), np.array([*chain.from_iterable(words)])


def save_fsa(path: Path, fsa: Fsa) -> None:
    """Write a graph as a k2 dict."""
    save_dict(path, k2_dict(fsa))


def save_dict(path: Path, content: dict[str, Any]) -> None:
    """torch.save, whole or not at all."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def load_fsa(path: Path) -> Fsa:
    """Read a graph that `save_fsa`, or k2 itself, wrote; raises FileNotFoundError or ValueError."""
    return from_k2_dict(load_dict(path), str(path))


def load_dict(path: Path) -> Any:
    """Read a k2 dict; raises FileNotFoundError, or ValueError for anything that is not one of plain tensors."""
    if not path.is_file():
        raise FileNotFoundError(f"no graph at {path}; stages 2 to 4 write graphs (run.sh --stage 2 --stop-stage 4)")
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for cut or foreign files
        raise ValueError(
            f"{path}: not readable as a graph: cut short, or not what torch.save wrote ({type(error).__name__});"
            " remove it and make it again (run.sh --stage 4 --stop-stage 4)"
        ) from None
