"""Topologies turn a graph over units into a graph over frames (H of HCLG)."""

from __future__ import annotations

import numpy as np
import torch

from distill.fsa.graph import Fsa, Hmm

BLANK = 0


def ctc(graph: Fsa) -> Hmm:
    """Compose a unit graph with the standard CTC topology: repeats collapse, blank separates.

    States of the result are one per (entered state, unit) of `graph`, then one blank per state of
    `graph`. A unit is held by its self-loop; the same unit again needs a blank in between, so the
    direct arc exists only between different units (as in k2's `ctc_topo(modified=False)`).
    """
    entered = np.stack([graph.dst, graph.label], 1).astype(np.int64)
    units, unit_of_arc = np.unique(entered, axis=0, return_inverse=True)
    unit_of_arc = unit_of_arc.reshape(-1)  # numpy 2.0 returned a column here
    num_units = len(units)
    blank = num_units + np.arange(graph.num_states)
    held, blank_after = np.arange(num_units), blank[units[:, 0]] if num_units else blank[:0]

    # every unit state that stands in state i of `graph` continues with the arcs of i
    arcs_of, starts = _join(units[:, 0], graph.src) if num_units else (np.zeros(0, int), np.zeros(0, int))
    different = units[starts, 1] != graph.label[arcs_of]
    arcs_of, starts = arcs_of[different], starts[different]
    src = np.concatenate([held, blank, held, starts, blank[graph.src]])
    dst = np.concatenate([held, blank, blank_after, unit_of_arc[arcs_of], unit_of_arc])
    zeros = np.zeros(num_units + len(blank) + num_units)
    weight = np.concatenate([zeros, graph.weight[arcs_of], graph.weight])

    initial = np.full(num_units + graph.num_states, -np.inf)
    first = graph.src == 0
    np.logaddexp.at(initial, unit_of_arc[first], graph.weight[first])
    initial[blank[0]] = 0.0
    final = np.concatenate([graph.final[units[:, 0]], graph.final])
    label = np.concatenate([units[:, 1], np.full(graph.num_states, BLANK)])
    return Hmm(
        label=torch.from_numpy(label.astype(np.int64)),
        initial=torch.from_numpy(initial),
        final=torch.from_numpy(final),
        src=torch.from_numpy(src.astype(np.int64)),
        dst=torch.from_numpy(dst.astype(np.int64)),
        weight=torch.from_numpy(weight),
        accepts_empty=float(graph.final[0]),
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
