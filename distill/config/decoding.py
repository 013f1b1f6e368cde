"""Settings of decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from distill.config.bounds import (
    Beam,
    EachOnce,
    Flag,
    Name,
    Positive,
    Probability,
    Scale,
    Score,
    Weight,
    Whole,
    WithoutNulls,
)
from distill.config.distortions import CLEAN, Distort
from distill.config.loading import Settings

Method = Literal[
    "1best", "greedy", "nbest", "nbest-rescoring", "whole-lattice-rescoring", "nbest-oracle",
    "transducer_greedy", "transducer_beam",
]  # fmt: skip
OF_UNITS = ("greedy", "transducer_greedy")
"""Methods whose results are units, not words."""
OF_TRANSDUCER = ("transducer_greedy", "transducer_beam")
"""Methods of the transducer; the others are of the main output."""


class Decoding(Settings):
    """The decodings whose word error rates are reported."""

    avg: Positive = 1  # checkpoints averaged
    epoch: Literal["last", "best"] = "last"  # the one that is decoded; best: the lowest validation loss
    beam: Beam = 15.0
    max_active: Annotated[Whole, Field(ge=1, lt=2**31)] = 2000
    acoustic_scale: Scale = 1.0
    lattice_beam: Beam = 6.0  # of a teacher's stored lattices: sequences this much worse than the best are left out
    # further chunk sizes, in frames, that a streaming model is decoded with
    chunks: Annotated[tuple[Annotated[Whole, Field(ge=1, le=10**6)], ...], EachOnce] = ()
    offline: Flag = True  # streaming models are decoded with full context as well
    # further: nbest, whole-lattice-rescoring, nbest-oracle; none: of a teacher as it is pre-trained, without outputs
    methods: Annotated[tuple[Method, ...], EachOnce] = ("1best", "greedy", "nbest-rescoring")
    # distortions of the test sets, each decoded by 1best as well, in the main mode
    conditions: Annotated[Mapping[Name, Distort], WithoutNulls] = {}  # null takes one of a base away
    condition_sets: Annotated[tuple[Name, ...], EachOnce] = ()  # test sets that conditions are of; none: all
    nbest: Annotated[Whole, Field(ge=1, le=100_000)] = 100  # sentences of a list
    rescoring_lm: Name = "4gram"  # words.<this>.arpa of stage 3 takes the place of words.3gram.arpa
    rescoring_scales: tuple[Weight, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)  # of the LM difference; tuned on dev
    # blank-frame skipping of 1best: a run of frames with at least this blank posterior counts as one; 0: off
    blank_skip: Probability = 0.0
    transducer_beam: Annotated[Whole, Field(ge=1, le=1000)] = 8  # hypotheses
    transducer_lm_scale: Weight = 0.3  # of words.3gram.arpa in the transducer's beam
    # taken from the blank's logit: a transducer of little training leaves many units out
    transducer_blank_penalty: Weight = 0.0
    unscored_words: tuple[str, ...] = ()  # taken out of references and hypotheses before words are scored: fillers
    rescoring_word_scores: tuple[Score, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0)  # per word; tuned on dev

    @model_validator(mode="after")
    def _check(self) -> Decoding:
        for name in ("rescoring_scales", "rescoring_word_scores"):
            if 0.0 not in getattr(self, name):
                raise ValueError(f"{name} {list(getattr(self, name))} must contain 0, the decoding without rescoring")
        if CLEAN in self.conditions:
            raise ValueError(f"conditions: {CLEAN} is the test set as it is; give this distortion another name")
        if self.epoch == "best" and self.avg > 1:
            raise ValueError(
                f"epoch: best is one checkpoint, as those before it may be gone: avg must be 1 (got {self.avg})"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """All settings but later ones with their defaults, which earlier results do not name: they stay valid."""
        later = {
            "epoch": "last", "conditions": {}, "condition_sets": [], "transducer_beam": 8, "transducer_lm_scale": 0.3,
            "transducer_blank_penalty": 0.0,
        }  # fmt: skip
        return {k: v for k, v in self.resolved().items() if k not in later or v != later[k]}
