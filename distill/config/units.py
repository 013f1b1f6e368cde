"""Settings of the units that pre-training predicts: k-means labels of frames."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import Field, model_validator

from distill.config.bounds import Name, Number, Seed, Whole
from distill.config.loading import Settings
from distill.config.training import Data

FEATURES = ("mfcc", "fbank")
HOP = 320  # samples per frame of these
MOST_CLUSTERS = 2**15 - 1  # labels are stored as int16
CODEWORDS = 500  # of a teacher without any of its own, as HuBERT's second iteration has them


class Units(Settings):
    """How k-means finds units of frames, all of which decides the labels (HuBERT: Hsu et al. 2021, §II-B)."""

    of: Name = "mfcc"  # mfcc, fbank, or the experiment whose hidden states are clustered
    layer: Annotated[Whole, Field(ge=0, le=65536)] | None = None  # of an experiment: its block; 0: block 1's input
    clusters: Annotated[Whole, Field(ge=2, le=MOST_CLUSTERS)] = 100
    hours: Annotated[Number, Field(gt=0, le=10**6)] = 10.0  # of audio to find them in, spread over the training parts
    seed: Seed = 0

    @property
    def experiment(self) -> str | None:
        """The experiment whose hidden states are clustered; None for features of the audio."""
        return None if self.of in FEATURES else self.of

    def folder(self, data: Data) -> str:
        """Name of their folder; that of another experiment with the same settings and parts is the same."""
        decisive = json.dumps([self.resolved(), data.train, data.valid], sort_keys=True)
        layer = () if self.layer is None else (str(self.layer),)
        return "-".join((self.of, *layer, str(self.clusters), hashlib.sha256(decisive.encode()).hexdigest()[:8]))

    @model_validator(mode="after")
    def _check(self) -> Units:
        if self.experiment is not None and self.layer is None:
            raise ValueError(
                f"layer: the block of {self.of} whose output is clustered is not given (0: block 1's input);"
                f" without blocks are {' and '.join(FEATURES)}"
            )
        if self.experiment is None and self.layer is not None:
            raise ValueError(f"layer: {self.of} has no blocks; leave it out, or give an experiment in `of`")
        return self
