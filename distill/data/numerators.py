"""Numerator graphs of cuts: from transcripts, or from the lattices that a teacher wrote (stage 7)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from distill.config.training import Data as Settings
from distill.data.lattices import Lattices
from distill.fsa.graph import Fsa, Hmm, Numerator
from distill.graphs.lexicon import Lang
from distill.graphs.numerator import UnitLm, lattice_graph, nbest_graph, transcript_graph
from distill.graphs.numerator_weights import with_lm_all
from distill.search.determinise import SequenceGraph

NOT_ALLOWED = "cut {}: the denominator's LM allows none of its unit sequences"
KEPT_ARCS = 20_000_000  # of the numerators kept in memory; beyond them the oldest are made again
TOGETHER = 256  # cuts whose graphs are weighted at once


class Wanted(NamedTuple):
    """A cut to make a numerator of: its text, if it has one, and the name of the shard with its lattice, if known."""

    cut_id: str
    text: str | None = None
    shard: str | None = None

    @classmethod
    def of(cls, cut: Any) -> Wanted:
        """Of a lhotse cut; `distill.corpora.cut_sets` writes the shard's name into its custom field `block`."""
        return cls(cut.id, text_of(cut), (cut.custom or {}).get("block"))


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

    def graphs(self, cuts: Sequence[Wanted]) -> list[Hmm | str]:
        """The graph of each cut, or why it cannot be trained on.

        That is a word outside the lexicon, neither text nor lattice, or no sequence that the denominator's LM allows.
        Raises ValueError or FileNotFoundError for a damaged shard of lattices.
        """
        result = []
        for start in range(0, len(cuts), TOGETHER):
            some = cuts[start : start + TOGETHER]
            fresh = self._make([cut for cut in some if cut.cut_id not in self._made])
            result += [fresh[cut.cut_id] if cut.cut_id in fresh else self._made[cut.cut_id] for cut in some]
            if get_worker_info() is None:  # the cache of a loading process ends with its epoch: it would only grow
                self._keep(fresh)
        return result

    def any(self) -> Hmm:
        """A graph that some path fits, whatever the audio."""
        return self.lang.topology.compose(Fsa.from_arcs([(0, 1, 1, 0.0)], {1: 0.0}, 2))

    def _keep(self, fresh: Mapping[str, Hmm | str]) -> None:
        self._made.update(fresh)
        self._arcs += sum(len(graph.src) for graph in fresh.values() if isinstance(graph, Hmm))
        while self._arcs > KEPT_ARCS:
            _, oldest = self._made.popitem(last=False)
            self._arcs -= len(oldest.src) if isinstance(oldest, Hmm) else 0

    def _make(self, cuts: Sequence[Wanted]) -> dict[str, Hmm | str]:
        made: dict[str, Hmm | str] = {}
        of_texts: dict[str, Fsa] = {}
        of_lattices: dict[str, Fsa] = {}
        confidence: dict[str, np.ndarray] = {}
        for cut_id, text, shard_name in cuts:
            if text:
                try:
                    words = [self.lang.pronunciation_ids(word, cut_id) for word in text.split()]
                    of_texts[cut_id] = transcript_graph(words, self.lang.silence)
                except ValueError as error:
                    made[cut_id] = str(error)
            elif self.settings.numerator == "transcript":
                made[cut_id] = f"cut {cut_id} has no text, and data.numerator is transcript"
            elif shard := self.stored.find(cut_id, shard_name):
                of_lattices[cut_id] = self._from_lattice(shard[cut_id])
                if self.settings.lattice.confidence:
                    confidence[cut_id] = shard.confidence(cut_id)
            else:
                made[cut_id] = f"cut {cut_id} has no text, and the teacher wrote no lattice for it"
        own_scores = self.settings.lattice.lm_scale if self.settings.numerator == "lattice" else 0.0
        for scale, group in ((0.0, of_texts), (own_scores, of_lattices)):
            for cut_id, graph in zip(group, with_lm_all(list(group.values()), self.lm, scale)):
                allowed = np.isfinite(graph.final).any()
                made[cut_id] = self._composed(graph, confidence.get(cut_id)) if allowed else NOT_ALLOWED.format(cut_id)
        return made

    def _composed(self, graph: Fsa, confidence: np.ndarray | None) -> Hmm:
        hmm = self.lang.topology.compose(graph)
        if confidence is None:
            return hmm
        frame = np.arange(round(len(confidence) * self.frame_ratio)) / self.frame_ratio
        values = {field.name: getattr(hmm, field.name) for field in fields(hmm)}
        return Numerator(**values | {"confidence": torch.from_numpy(confidence[frame.astype(np.int64)])})

    def _from_lattice(self, sequences: SequenceGraph) -> Fsa:
        options = self.settings.lattice
        if self.settings.numerator == "one_best":
            return nbest_graph(sequences, 1, 0.0)
        if self.settings.numerator == "nbest":
            return nbest_graph(sequences, options.nbest, options.nbest_beam)
        tolerance = options.tolerance if options.tolerance >= 0 else None
        scales = options.lm_scale, options.acoustic_scale
        return lattice_graph(sequences, options.beam, *scales, tolerance, self.frame_ratio)


def usable(cuts: Iterable, numerators: Numerators) -> tuple[list, list[tuple[str, str]]]:
    """Split cuts into those that can be trained on and (id, reason) of the others."""
    listed = list(cuts)
    graphs = numerators.graphs([Wanted.of(cut) for cut in listed])
    return (
        [cut for cut, graph in zip(listed, graphs) if isinstance(graph, Hmm)],
        [(cut.id, graph) for cut, graph in zip(listed, graphs) if isinstance(graph, str)],
    )


def text_of(cut) -> str | None:
    """The transcript of a cut, None if it is unlabelled."""
    return " ".join(s.text for s in cut.supervisions if s.text) or None
