"""Numerator graphs of cuts: from transcripts, or from the lattices that a teacher wrote (stage 7)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

import numpy as np
import torch
from torch.utils.data import get_worker_info

from distill.config.training import Data as Settings
from distill.data.lattices import Lattices
from distill.fsa.graph import Fsa, Hmm, Numerator
from distill.graphs.lexicon import Lang
from distill.graphs.numerator import UnitLm, lattice_graph, nbest_graph, transcript_graph
from distill.graphs.numerator_weights import with_lm_all

KEPT_ARCS = 20_000_000  # of the numerators kept in memory; beyond them the oldest are made again
TOGETHER = 256  # cuts whose graphs are weighted at once


class Numerators:
    """The numerator of each cut as the engine runs it, many made at a time and kept.

    A cut with text gets its transcript's graph (all pronunciations, optional silence), one without what
    `settings.numerator` says: the teacher's best sequence, its best ones, or its lattice. All carry the
    denominator LM's weights (`distill.graphs.numerator_weights`). stored: the teacher's lattices. frame_ratio: frames
    of the trained model per frame of the lattices.
    """

    def __init__(
        self,
        lang: Lang,
        lm: UnitLm,
        stored: Lattices | None = None,
        settings: Settings | None = None,
        frame_ratio: float = 1.0,
    ) -> None:
        self.lang, self.lm, self.stored = lang, lm, stored or Lattices(())
        self.settings, self.frame_ratio = settings or Settings(), frame_ratio
        self._made: OrderedDict[str, Hmm | str] = OrderedDict()  # a graph, or why there is none
        self._arcs = 0

    def of(self, cut_id: str, text: str | None) -> Hmm:
        """`batch` of one cut."""
        return self.batch([(cut_id, text)])[0]

    def batch(self, cuts: Sequence[tuple[str, str | None]]) -> list[Hmm]:
        """Graphs of (cut id, text or None).

        Raises ValueError for a word outside the lexicon, a cut with neither text nor lattice, or one of whose
        sequences the denominator's LM allows none.
        """
        graphs = []
        for graph in self._get(cuts):
            if isinstance(graph, str):
                raise ValueError(graph)
            graphs.append(graph)
        return graphs

    def problems(self, cuts: Sequence[tuple[str, str | None]]) -> list[str | None]:
        """Why a cut cannot be trained on, None where it can; for counting and listing what is left out."""
        return [graph if isinstance(graph, str) else None for graph in self._get(cuts)]

    def _get(self, cuts: Sequence[tuple[str, str | None]]) -> list[Hmm | str]:
        found = []
        for start in range(0, len(cuts), TOGETHER):
            some = cuts[start : start + TOGETHER]
            fresh = self._make([cut for cut in some if cut[0] not in self._made])
            found += [fresh[cut_id] if cut_id in fresh else self._made[cut_id] for cut_id, _ in some]
            if get_worker_info() is None:  # what a loading process keeps ends with its epoch: it would only grow
                self._keep(fresh)
        return found

    def _keep(self, fresh: Mapping[str, Hmm | str]) -> None:
        self._made.update(fresh)
        self._arcs += sum(len(graph.src) for graph in fresh.values() if isinstance(graph, Hmm))
        while self._arcs > KEPT_ARCS:
            _, oldest = self._made.popitem(last=False)
            self._arcs -= len(oldest.src) if isinstance(oldest, Hmm) else 0

    def _make(self, cuts: Sequence[tuple[str, str | None]]) -> dict[str, Hmm | str]:
        made: dict[str, Hmm | str] = {}
        graphs: dict[bool, dict[str, Fsa]] = {True: {}, False: {}}  # by whether the teacher heard them
        for cut_id, text in cuts:
            try:
                graphs[not text][cut_id] = self._transcript(text, cut_id) if text else self._heard(cut_id)
            except ValueError as error:
                made[cut_id] = str(error)
        for heard, some in graphs.items():
            own_scores = heard and self.settings.numerator == "lattice"
            scale = self.settings.lattice.lm_scale if own_scores else 0.0
            for cut_id, graph in zip(some, with_lm_all(list(some.values()), self.lm, scale)):
                allowed = np.isfinite(graph.final).any()
                made[cut_id] = self._composed(cut_id, graph, heard) if allowed else NOT_ALLOWED.format(cut_id)
        return made

    def _composed(self, cut_id: str, graph: Fsa, heard: bool) -> Hmm:
        hmm = self.lang.topology.compose(graph)
        confidence = self.stored.confidence(cut_id) if heard and self.settings.lattice.confidence else None
        if confidence is None:
            return hmm
        frame = np.arange(round(len(confidence) * self.frame_ratio)) / self.frame_ratio
        values = {field.name: getattr(hmm, field.name) for field in fields(hmm)}
        return Numerator(**values | {"confidence": torch.from_numpy(confidence[frame.astype(np.int64)])})

    def _transcript(self, text: str, cut_id: str) -> Fsa:
        return transcript_graph([self.lang.pronunciation_ids(w, cut_id) for w in text.split()], self.lang.silence)

    def _heard(self, cut_id: str) -> Fsa:
        kind, options = self.settings.numerator, self.settings.lattice
        if kind == "transcript":
            raise ValueError(f"cut {cut_id} has no text, and data.numerator is transcript")
        if cut_id not in self.stored:
            raise ValueError(f"cut {cut_id} has no text, and the teacher wrote no lattice for it")
        sequences = self.stored[cut_id]
        if kind == "one_best":
            return nbest_graph(sequences, 1, 0.0)
        if kind == "nbest":
            return nbest_graph(sequences, options.nbest, options.nbest_beam)
        tolerance = options.tolerance if options.tolerance >= 0 else None
        scales = options.lm_scale, options.acoustic_scale
        return lattice_graph(sequences, options.beam, *scales, tolerance, self.frame_ratio)


NOT_ALLOWED = "cut {}: the denominator's LM allows none of its unit sequences"


def usable(cuts: Iterable, numerators: Numerators) -> tuple[list, list[tuple[str, str]]]:
    """Split cuts into those that can be trained on and (id, reason) of the others."""
    every = list(cuts)
    good, skipped = [], []
    for cut, reason in zip(every, numerators.problems([(cut.id, text_of(cut)) for cut in every])):
        if reason is None:
            good.append(cut)
        else:
            skipped.append((cut.id, reason))
    return good, skipped


def text_of(cut) -> str | None:
    """The transcript of a cut, None if it is unlabelled."""
    return " ".join(s.text for s in cut.supervisions if s.text) or None
