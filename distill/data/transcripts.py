"""Unit sequences of cuts, for terms that need one for each: transducers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from distill.data.lattices import Lattices
from distill.data.numerators import Wanted
from distill.graphs.lexicon import Lang


class Transcripts:
    """Of a text the first pronunciation of each word; of a cut without text the teacher's best sequence.

    Neither has silence. stored: the teacher's lattices, None where texts alone are wanted.
    """

    def __init__(self, lang: Lang, stored: Lattices | None = None) -> None:
        self.lang, self.stored = lang, stored or Lattices(())

    def of(self, cut: Any) -> list[int] | str:
        """Unit ids of a lhotse cut, or why it has none: a word outside the lexicon, or neither text nor lattice.

        A lattice whose best sequence is empty has no units: all its frames are blank.
        """
        name, text, shard_name = Wanted.of(cut)
        if text:
            try:
                units = [unit for word in text.split() for unit in self.lang.pronunciation_ids(word, name)[0]]
            except ValueError as error:
                return str(error)
        elif shard := self.stored.find(name, shard_name):
            units = list(next(shard[name].ranked())[0])
        else:
            return f"cut {name} has no text, and no lattice of the teacher's in its place"
        return [unit for unit in units if unit != self.lang.silence]


def padded_tokens(rows: Sequence[Sequence[int]]) -> Tensor:
    """Units of a batch, (B, U) int64, 0 behind each row's own; a stand-in without any for an empty batch."""
    tokens = torch.zeros(max(1, len(rows)), max(map(len, rows), default=0), dtype=torch.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return tokens
