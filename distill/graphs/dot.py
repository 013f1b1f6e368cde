"""Graphs as text for Graphviz: `dot -Tsvg graph.dot -o graph.svg`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill.fsa.k2_format import k2_arcs

MOST_STATES = 200  # more cannot be read
MOST_LABELS = 6  # of arcs between the same two states; the others are counted


def dot(content: Any, inputs: Mapping[int, str], outputs: Mapping[int, str], most: int = 0, where: str = "") -> str:
    """Graphviz text of a k2 dict (aux_labels make it a transducer), labels by their names, if they have one.

    most: number of states drawn, those nearest to the start; 0: all. Raises ValueError naming `where` for another
    dict, and for a graph of more than 200 states where `most` is 0.
    """
    src, dst, label, score = k2_arcs(content, where)
    last = label == -1
    count = int(max(src.max(initial=0), dst[~last].max(initial=0))) + 1
    if count > MOST_STATES and not most:
        raise ValueError(f"the graph has {count} states, too many to read; draw the first of them with --states 50")
    near = set(_nearest(src[~last], dst[~last], most or count))
    names = [_name(x, inputs) for x in label.tolist()]
    if "aux_labels" in content:
        names = [f"{x}:{_name(y, outputs)}" for x, y in zip(names, content["aux_labels"].tolist())]
    labels: dict[tuple[int, int], list[str]] = {}
    lines = ["rankdir=LR", "node [shape=circle]", "0 [style=bold]"]
    for s, d, name, weight, ends in zip(src.tolist(), dst.tolist(), names, score.tolist(), last.tolist()):
        number = f"{weight:.2f}" if abs(weight) >= 0.005 else ""
        if ends and s in near:
            lines.append(f"{s} [shape=doublecircle, xlabel={json.dumps(number)}]")
        elif s in near and d in near:
            labels.setdefault((s, d), []).append(f"{name} {number}".strip())
    for (s, d), every in labels.items():
        shown = every if len(every) <= MOST_LABELS + 1 else [*every[:MOST_LABELS], f"… {len(every) - MOST_LABELS} more"]
        lines.append(f"{s} -> {d} [label={json.dumps(chr(10).join(shown), ensure_ascii=False)}]")
    if count > len(near):
        lines.append(f'label="{count - len(near)} states left out"')
    return "digraph {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


def _name(label: int, names: Mapping[int, str]) -> str:
    symbol = names.get(label, str(label))
    return "ε" if symbol in ("0", "<eps>") else symbol


def _nearest(src: np.ndarray, dst: np.ndarray, most: int) -> list[int]:
    """At most so many states in breadth-first order from the start, then those out of its reach."""
    following: dict[int, list[int]] = {}
    for s, d in zip(src.tolist(), dst.tolist()):
        following.setdefault(s, []).append(d)
    queue, seen = [0], {0}
    for state in queue:
        fresh = [d for d in dict.fromkeys(following.get(state, [])) if d not in seen]
        seen.update(fresh)
        queue += fresh
        if len(queue) >= most:
            break
    return [*dict.fromkeys([*queue, *following, *dst.tolist()])][:most]
