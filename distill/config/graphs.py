"""Settings of what is made from text: lexica, language models, graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import model_validator

from distill.config.loading import Settings, overridden, parsed, read


class Graphs(Settings):
    """How language models and graphs are made from text (stages 2 to 4): conf/graphs.yaml, --set graphs.KEY=VALUE."""

    seed: int = 0  # draws pronunciations, silences and BPE's sample of sentences
    order: int = 2  # of the unit n-gram
    # interpolated: every unit can follow (Witten-Bell); chain: only what was seen, as Kaldi's chain-est-phone-lm
    style: Literal["interpolated", "chain"] = "interpolated"
    no_prune_order: int = 3  # chain: n-grams of this order keep all their histories
    num_extra_states: int = 2000  # chain: longer histories kept beyond those
    silence_edge: float = 0.8  # probability of silence before and after a sentence
    silence_inside: float = 0.1  # and between words
    bpe_pieces: int = 500
    min_biphone_count: int = 100  # in the labelled transcripts; a rarer pair shares its outputs
    min_monophone_count: int = 20
    independent_silence: bool = False  # biphones: silence has one class, and counts as no context

    @model_validator(mode="after")
    def _check(self) -> Graphs:
        if not 2 <= self.order <= 4:
            raise ValueError(f"order must be 2, 3 or 4, got {self.order}")
        if not self.no_prune_order >= 1:
            raise ValueError(f"no_prune_order must be at least 1, got {self.no_prune_order}")
        for name in ("silence_edge", "silence_inside"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability, got {getattr(self, name)}")
        return self

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Graphs:
        """Defaults, then those of a YAML file if it is there, then "key=value" overrides."""
        values = read(path) if path.is_file() else {}
        return parsed(cls, overridden(values, overrides), str(path))
