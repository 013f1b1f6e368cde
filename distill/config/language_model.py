"""Settings of a Transformer language model and of the rescoring with it: conf/lm.yaml, --set lm.KEY=VALUE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from distill.config.bounds import Beam, Name, Positive, Score, Seed, Share, Weight, Whole, Width
from distill.config.experiment import OF_LM
from distill.config.loading import Settings
from distill.config.training import Compute, Optim, Saving


class Model(Settings):
    """Shape of the decoder: pre-LN blocks, input and output embeddings tied."""

    dim: Annotated[Width, Field(ge=2)] = 512
    ffn_dim: Width = 2048
    layers: Annotated[Whole, Field(ge=1, le=1000)] = 6
    heads: Width = 8
    dropout: Share = 0.1

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.dim % self.heads or self.dim % 2:
            raise ValueError(f"dim {self.dim} must be even and a multiple of heads {self.heads}")
        return self


class Text(Settings):
    """The text corpus of stage 0 in units of its own, independent of the recognisers'."""

    units: Literal["bpe", "chars", "words"] = "bpe"
    most_units: Annotated[Whole, Field(ge=4, le=10**7)] = 5000  # of bpe and words; rarer words are then <unk>
    context: Annotated[Whole, Field(ge=2, le=65536)] = (
        256  # units of a training row; longer sentences go on in the next
    )
    batch_units: Positive = 8000  # of a batch, over all ranks together, padding included
    valid: Name = "dev"  # cut set whose transcripts validate, and on which the weights are tuned


class Rescoring(Settings):
    """Distinct word sequences of a lattice, ranked by acoustic + graph + lm scores + a score per word.

    The weights are those with the fewest errors on the validation cuts; the acoustic weight is 1.
    """

    nbest: Annotated[Whole, Field(ge=1, le=100_000)] = 50
    beam: Beam = 12.0  # sequences this much worse than the best are left out
    graph_weights: tuple[Weight, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    lm_weights: tuple[Weight, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    word_scores: tuple[Score, ...] = (-1.0, 0.0, 1.0)

    @model_validator(mode="after")
    def _check(self) -> Rescoring:
        if 1.0 not in self.graph_weights or 0.0 not in self.lm_weights or 0.0 not in self.word_scores:
            got = [list(axis) for axis in (self.graph_weights, self.lm_weights, self.word_scores)]
            raise ValueError(
                "the grid must contain the decoding without a language model: 1 in graph_weights, 0 in lm_weights"
                f" and in word_scores (got {got})"
            )
        return self


class LanguageModel(Settings):
    """One Transformer language model, its training and its use in rescoring."""

    SCOPE: ClassVar[str] = "lm."
    name: Name = ""
    stage: Literal[11] = 11
    description: str = ""
    seed: Seed = 0
    model: Model = Model()
    text: Text = Text()
    optim: Optim = Optim()
    compute: Compute = Compute()
    saving: Saving = Saving()
    avg: Positive = 1  # checkpoints averaged
    rescoring: Rescoring = Rescoring()

    @model_validator(mode="after")
    def _check(self) -> LanguageModel:
        self.optim.check_length()
        if self.avg > self.saving.keep:
            raise ValueError(f"avg {self.avg} must be at most saving.keep {self.saving.keep}")
        return self

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> LanguageModel:
        """Read a YAML file, apply "a.b=value" overrides; raises ValueError naming file and key, FileNotFoundError."""
        if not path.is_file():
            raise FileNotFoundError(
                f"no settings of a Transformer language model at {path}; copy those of another recipe"
                " (egs/librispeech/conf/lm.yaml), or leave stage 11 out"
            )
        settings = cls.read(path, overrides)
        if not OF_LM.fullmatch(settings.name):
            raise ValueError(
                f"{path}: name: must be lm, or lm and one of . _ - and more, which no experiment is called"
                f" (got {settings.name!r})"
            )
        return settings
