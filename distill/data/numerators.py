"""Numerator graphs of cuts: from transcripts, or from the graphs that a teacher wrote (stage 7)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from distill.fsa import Fsa, Hmm
from distill.graphs.lexicon import Lang
from distill.graphs.numerator import UnitLm, transcript_graph
from distill.graphs.weighting import with_lm

FORMAT = "numerators/1"


def save_graphs(path: Path, graphs: Mapping[str, Fsa]) -> None:
    """Write unit graphs by cut id: all arrays end to end, with offsets (n-best trees and lattices alike)."""
    values = list(graphs.values())
    fields = ("src", "dst", "label", "weight", "final")

    def joined(field: str) -> torch.Tensor:
        arrays = [getattr(graph, field) for graph in values]
        kind = np.float32 if field in ("weight", "final") else np.int32
        return torch.from_numpy(np.concatenate([*arrays, np.zeros(0)]).astype(kind))

    content = {
        "format": FORMAT,
        "ids": list(graphs),
        "arcs": torch.tensor([graph.num_arcs for graph in values], dtype=torch.int64),
        "states": torch.tensor([graph.num_states for graph in values], dtype=torch.int64),
        **{field: joined(field) for field in fields},
    }
    temporary = path.with_name(path.name + ".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load_graphs(path: Path) -> dict[str, Fsa]:
    """Read what `save_graphs` wrote; raises FileNotFoundError or ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"no numerators at {path}; stage 7 writes them (run.sh --stage 7 --stop-stage 7)")
    try:
        content = torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for a cut or foreign file
        raise ValueError(f"{path}: not readable ({error}); remove it and run stage 7 again") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a file of format '{FORMAT}'; remove it and run stage 7 again")
    arcs = np.concatenate([[0], content["arcs"].cumsum(0).numpy()])
    states = np.concatenate([[0], content["states"].cumsum(0).numpy()])
    by_arc = {name: content[name].numpy() for name in ("src", "dst", "label")}
    weight, final = content["weight"].double().numpy(), content["final"].double().numpy()
    graphs = {}
    for k, cut_id in enumerate(content["ids"]):
        a, s = slice(arcs[k], arcs[k + 1]), slice(states[k], states[k + 1])
        graphs[cut_id] = Fsa(by_arc["src"][a], by_arc["dst"][a], by_arc["label"][a], weight[a], final[s])
    return graphs


class Numerators:
    """The numerator of each cut as the engine runs it, made once and kept.

    A cut with text gets its transcript's graph (all pronunciations, optional silence), one without
    gets the teacher's. Both carry the denominator LM's weights.
    """

    def __init__(self, lang: Lang, lm: UnitLm, stored: Mapping[str, Fsa]) -> None:
        self.lang, self.lm, self.stored = lang, lm, stored
        self._made: dict[str, Hmm] = {}

    def of(self, cut_id: str, text: str | None) -> Hmm:
        """Raises ValueError for a word outside the lexicon, or a cut with neither text nor stored graph."""
        if cut_id not in self._made:
            self._made[cut_id] = self.lang.topology.compose(with_lm(self._graph(cut_id, text), self.lm))
        return self._made[cut_id]

    def problem(self, cut_id: str, text: str | None) -> str | None:
        """Why a cut cannot be trained on, or None; for counting and listing what is left out."""
        try:
            self.of(cut_id, text)
        except ValueError as error:
            return str(error)
        return None

    def _graph(self, cut_id: str, text: str | None) -> Fsa:
        if text:
            words = text.split()
            return transcript_graph([self.lang.pronunciation_ids(word, cut_id) for word in words], self.lang.silence)
        if cut_id not in self.stored:
            raise ValueError(f"cut {cut_id} has no text, and the teacher wrote no numerator for it")
        return self.stored[cut_id]


def usable(cuts: Iterable, problem: Callable[[str, str | None], str | None]) -> tuple[list, list[tuple[str, str]]]:
    """Split cuts into those that can be trained on and (id, reason) of the others."""
    good, skipped = [], []
    for cut in cuts:
        reason = problem(cut.id, text_of(cut))
        if reason is None:
            good.append(cut)
        else:
            skipped.append((cut.id, reason))
    return good, skipped


def text_of(cut) -> str | None:
    """The transcript of a cut, None if it is unlabelled."""
    return " ".join(s.text for s in cut.supervisions if s.text) or None
