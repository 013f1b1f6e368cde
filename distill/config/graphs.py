"""Settings of lexica, n-gram language models and graphs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from distill.config.bounds import Count, Flag, Positive, Probability, Seed, Whole
from distill.config.files import read
from distill.config.loading import Settings


class Graphs(Settings):
    """How language models and graphs are made from text (stages 2 to 4): conf/graphs.yaml, --set graphs.KEY=VALUE."""

    SCOPE: ClassVar[str] = "graphs."
    seed: Seed = 0  # draws pronunciations, silences and BPE's sample of sentences
    order: Annotated[Whole, Field(ge=2, le=4)] = 2  # of the unit n-gram
    # interpolated: every unit can follow (Witten-Bell); chain: seen n-grams only, as Kaldi's chain-est-phone-lm
    style: Literal["interpolated", "chain"] = "interpolated"
    # chain: n-grams of this order (or of `order`, if that is lower) keep all their histories
    no_prune_order: Annotated[Whole, Field(ge=1, le=4)] = 3
    num_extra_states: Count = 2000  # chain: longer histories kept beyond those
    silence_edge: Probability = 0.8  # of silence before and after a sentence
    silence_inside: Probability = 0.1  # the same between words
    bpe_pieces: Positive = 500
    min_biphone_count: Count = 100  # in the labelled transcripts; a rarer pair shares its outputs
    min_monophone_count: Count = 20
    independent_silence: Flag = False  # biphones: silence has one class, and counts as no context

    @property
    def of_units(self) -> dict[str, Any]:
        """The settings that unit n-grams depend on."""
        used = {"seed", "order", "style", "silence_edge", "silence_inside"}
        return self.model_dump(
            include=used | ({"no_prune_order", "num_extra_states"} if self.style == "chain" else set())
        )

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Graphs:
        """Defaults, then those of a YAML file if it is there, then "key=value" overrides."""
        return cls._from(read(path) if path.is_file() else {}, path, overrides)
