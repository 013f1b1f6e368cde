"""File formats of graphs: k2's dict of tensors, and OpenFst's text and binary forms."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distill.fsa.graph import Fsa

if TYPE_CHECKING:
    import kaldifst


def k2_dict(fsa: Fsa) -> dict[str, Any]:
    """The dict that `k2.Fsa.from_dict` reads: arcs (A, 4) int32, the score's bits in the last column.

    k2 ends every path in one final state, the last, through an arc of label -1; its arcs are sorted by source.
    """
    end = fsa.num_states
    finals = np.flatnonzero(np.isfinite(fsa.final))
    src = np.concatenate([fsa.src, finals])
    dst = np.concatenate([fsa.dst, np.full(len(finals), end)])
    label = np.concatenate([fsa.label, np.full(len(finals), -1)])
    score = np.concatenate([fsa.weight, fsa.final[finals]]).astype(np.float32)
    order = np.lexsort((label, src))
    columns = [src, dst, label, score.view(np.int32)]
    arcs = np.stack([column[order].astype(np.int32) for column in columns], 1)
    return {"arcs": torch.from_numpy(arcs)}


def from_k2_dict(content: dict[str, Any], where: str = "k2 dict") -> Fsa:
    """The graph of a k2 dict without epsilons; raises ValueError naming `where` for anything else."""
    arcs = content.get("arcs") if isinstance(content, dict) else None
    if not isinstance(arcs, torch.Tensor) or arcs.ndim != 2 or arcs.shape[1] != 4:
        raise ValueError(f"{where}: expected a dict with 'arcs' of shape (A, 4), as k2's Fsa.as_dict gives")
    src, dst, label, bits = arcs.to(torch.int32).numpy().T
    score = np.ascontiguousarray(bits).view(np.float32).astype(np.float64)
    last = label == -1
    states = int(max(src.max(initial=0), dst[~last].max(initial=0))) + 1
    final = np.full(states, -np.inf)
    np.logaddexp.at(final, src[last], score[last])
    return Fsa(src[~last].copy(), dst[~last].copy(), label[~last].copy(), score[~last], final)


def save_fsa(path: Path, fsa: Fsa) -> None:
    """Write a graph as a k2 dict."""
    save_dict(path, k2_dict(fsa))


def save_dict(path: Path, content: dict[str, Any]) -> None:
    """torch.save under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load_fsa(path: Path) -> Fsa:
    """Read a graph that `save_fsa`, or k2 itself, wrote; raises FileNotFoundError or ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"no graph at {path}; stages 2 to 4 write graphs (run.sh --stage 2 --stop-stage 4)")
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for cut or foreign files
        raise ValueError(f"{path}: not readable as a graph ({error})") from None
    return from_k2_dict(content, str(path))


def to_openfst_text(fsa: Fsa) -> str:
    """AT&T text of an acceptor with costs (negated log-weights), the start state first."""
    order = np.argsort(fsa.src, kind="stable")
    lines = [f"{fsa.src[a]} {fsa.dst[a]} {fsa.label[a]} {fsa.label[a]} {float(-fsa.weight[a])!r}" for a in order]
    lines += [f"{state} {float(-fsa.final[state])!r}" for state in np.flatnonzero(np.isfinite(fsa.final))]
    if lines and not lines[0].startswith("0 "):
        raise ValueError("the start state has no arcs: OpenFst's text form would start elsewhere")
    return "\n".join(lines) + "\n"


def from_openfst_text(text: str) -> Fsa:
    """Read AT&T text of an epsilon-free acceptor; the source of the first line is the start state."""
    numbers: dict[str, int] = {}
    arcs, final = [], {}
    for line_number, line in enumerate(text.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) not in (1, 2, 3, 4, 5):
            raise ValueError(f"line {line_number}: expected an arc or a final state, got {line!r}")
        state = numbers.setdefault(fields[0], len(numbers))
        if len(fields) <= 2:
            final[state] = -float(fields[1]) if len(fields) == 2 else 0.0
            continue
        following = numbers.setdefault(fields[1], len(numbers))
        cost = float(fields[-1]) if len(fields) == 5 or (len(fields) == 4 and "." in fields[3]) else 0.0
        arcs.append((state, following, int(fields[2]), -cost))
    return Fsa.from_arcs(arcs, final, max(1, len(numbers)))


def transducer_to_k2_dict(fst: kaldifst.StdVectorFst) -> dict[str, Any]:
    """A kaldifst transducer (HLG, L) as the dict that k2 reads: arcs, and aux_labels for the outputs."""
    import kaldifst

    rows, scores, outputs = [], [], []
    end = sum(1 for _ in kaldifst.StateIterator(fst))
    for state in kaldifst.StateIterator(fst):
        for arc in kaldifst.ArcIterator(fst, state):
            rows.append((state, arc.nextstate, arc.ilabel))
            scores.append(-arc.weight.value)
            outputs.append(arc.olabel)
        cost = fst.final(state).value
        if np.isfinite(cost):
            rows.append((state, end, -1))
            scores.append(-cost)
            outputs.append(-1)
    table = np.array(rows, dtype=np.int32).reshape(-1, 3)
    bits = np.array(scores, dtype=np.float32).view(np.int32)
    arcs = torch.from_numpy(np.concatenate([table, bits[:, None]], 1))
    return {"arcs": arcs, "aux_labels": torch.tensor(outputs, dtype=torch.int32)}
