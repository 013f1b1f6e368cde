"""Readers of graph files that only tests need: vectors of graphs, graphs over frames, OpenFst's text."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from distill.fsa.graph import Fsa, Hmm, expand
from distill.fsa.k2_format import from_k2_dict


def from_k2_vector_dict(content: dict[str, Any]) -> list[Fsa]:
    """The graphs of an `FsaVec`'s dict."""
    row = content["arcs"]
    count = int(row[0])
    begin = row[3 + count : 4 + 2 * count].tolist()
    arcs = row[4 + 2 * count :].reshape(begin[-1], 4)
    return [from_k2_dict({"arcs": arcs[low:high]}) for low, high in pairwise(begin)]


def hmm_from_k2_dict(content: dict[str, Any]) -> Hmm:
    """A k2 graph over frames, such as icefall's ctc_topo_P: its states are split until each has one label."""
    graph = from_k2_dict(content)
    width = int(graph.label.max(initial=0)) + 1
    entered, state = np.unique(graph.dst.astype(np.int64) * width + graph.label, return_inverse=True)
    at, state = entered // width, state.reshape(-1)
    order = np.argsort(graph.src, kind="stable")
    low, high = (np.searchsorted(graph.src[order], at, side) for side in ("left", "right"))
    origin, offset = expand(high - low)
    arc = order[low[origin] + offset]
    initial, first = np.full(len(at), -np.inf), graph.src == 0
    np.logaddexp.at(initial, state[first], graph.weight[first])
    label, final, empty = torch.from_numpy(entered % width), torch.from_numpy(graph.final[at]), float(graph.final[0])
    arcs = (torch.from_numpy(x) for x in (origin, state[arc], graph.weight[arc]))
    return Hmm(label, torch.from_numpy(initial), final, *arcs, accepts_empty=empty)


def from_openfst_text(text: str) -> Fsa:
    """The acceptor of AT&T text that begins with state 0."""
    rows = [line.split() for line in text.splitlines()]
    arcs = [(int(r[0]), int(r[1]), int(r[2]), -float(r[4])) for r in rows if len(r) == 5 and r[2] == r[3]]
    final = {int(r[0]): -float(r[1]) for r in rows if len(r) == 2}
    return Fsa.from_arcs(arcs, final, 1 + max(max(arc[:2]) for arc in arcs))
