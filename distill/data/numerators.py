"""Numerator graphs of cuts: from transcripts, or from the lattices that a teacher wrote (stage 7)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import cast

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
    """Numerator graphs by cut, for the engine; made many at a time, and cached.

    A cut with text gets its transcript's graph (all pronunciations, optional silence), one without what
    `settings.numerator` names: the teacher's best sequence, its best ones, or its lattice. All carry the
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

    def batch(self, cuts: Sequence[tuple[str, str | None]]) -> list[Hmm]:
        """Graphs of (cut id, text or None).

        Raises ValueError for a word outside the lexicon, a cut with neither text nor lattice, or one of whose
        sequences the denominator's LM allows none.
        """
        graphs = self._get(cuts)
        for reason in graphs:
            if isinstance(reason, str):
                raise ValueError(reason)
        return cast("list[Hmm]", graphs)

    def problems(self, cuts: Sequence[tuple[str, str | None]]) -> list[str | None]:
        """Why a cut cannot be trained on, None where it can; for counting and listing what is left out."""
        return [graph if isinstance(graph, str) else None for graph in self._get(cuts)]

    def _get(self, cuts: Sequence[tuple[str, str | None]]) -> list[Hmm | str]:
        result = []
        for start in range(0, len(cuts), TOGETHER):
            block = cuts[start : start + TOGETHER]
            fresh = self._make([cut for cut in block if cut[0] not in self._made])
            result += [fresh[cut_id] if cut_id in fresh else self._made[cut_id] for cut_id, _ in block]
            if get_worker_info() is None:  # the cache of a loading process ends with its epoch: it would only grow
                self._keep(fresh)
        return result

    def _keep(self, fresh: Mapping[str, Hmm | str]) -> None:
        self._made.update(fresh)
        self._arcs += sum(len(graph.src) for graph in fresh.values() if isinstance(graph, Hmm))
        while self._arcs > KEPT_ARCS:
            _, oldest = self._made.popitem(last=False)
            self._arcs -= len(oldest.src) if isinstance(oldest, Hmm) else 0

    def _make(self, cuts: Sequence[tuple[str, str | None]]) -> dict[str, Hmm | str]:
        made: dict[str, Hmm | str] = {}
        graphs: dict[bool, dict[str, Fsa]] = {True: {}, False: {}}  # True: from the teacher's lattices
        for cut_id, text in cuts:
            try:
                graphs[not text][cut_id] = (
                    transcript_graph([self.lang.pronunciation_ids(w, cut_id) for w in text.split()], self.lang.silence)
                    if text
                    else self._from_lattice(cut_id)
                )
            except ValueError as error:
                made[cut_id] = str(error)
        for of_teacher, group in graphs.items():
            own_scores = of_teacher and self.settings.numerator == "lattice"
            scale = self.settings.lattice.lm_scale if own_scores else 0.0
            for cut_id, graph in zip(group, with_lm_all(list(group.values()), self.lm, scale)):
                allowed = np.isfinite(graph.final).any()
                made[cut_id] = self._composed(cut_id, graph, of_teacher) if allowed else NOT_ALLOWED.format(cut_id)
        return made

    def _composed(self, cut_id: str, graph: Fsa, of_teacher: bool) -> Hmm:
        hmm = self.lang.topology.compose(graph)
        confidence = self.stored.confidence(cut_id) if of_teacher and self.settings.lattice.confidence else None
        if confidence is None:
            return hmm
        frame = np.arange(round(len(confidence) * self.frame_ratio)) / self.frame_ratio
        values = {field.name: getattr(hmm, field.name) for field in fields(hmm)}
        return Numerator(**values | {"confidence": torch.from_numpy(confidence[frame.astype(np.int64)])})

    def _from_lattice(self, cut_id: str) -> Fsa:
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
    listed = list(cuts)
    reasons = numerators.problems([(cut.id, text_of(cut)) for cut in listed])
    return (
        [cut for cut, reason in zip(listed, reasons) if reason is None],
        [(cut.id, reason) for cut, reason in zip(listed, reasons) if reason is not None],
    )


def text_of(cut) -> str | None:
    """The transcript of a cut, None if it is unlabelled."""
    return " ".join(s.text for s in cut.supervisions if s.text) or None
