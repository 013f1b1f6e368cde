"""Settings of a Transformer language model and of the rescoring with it: conf/lm.yaml, --set lm.KEY=VALUE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from distill.config.loading import Settings, load_settings
from distill.config.training import Optim, Saving


class Model(Settings):
    """Shape of the decoder: pre-LN blocks, input and output embeddings tied."""

    dim: int = Field(default=512, ge=2)
    ffn_dim: int = Field(default=2048, ge=1)
    layers: int = Field(default=6, ge=1)
    heads: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Model:
        if self.dim % self.heads or self.dim % 2:
            raise ValueError(f"dim {self.dim} must be even and a multiple of heads {self.heads}")
        return self


class Text(Settings):
    """What is learnt: the text corpus of stage 0, in units of its own, whatever units the recognisers have."""

    units: Literal["bpe", "chars", "words"] = "bpe"
    most_units: int = Field(default=5000, ge=4)  # of bpe and words; rarer words are then <unk>
    context: int = Field(default=256, ge=2)  # units of a training row; longer sentences go on in the next
    batch_units: int = Field(default=8000, ge=1)  # of a batch, over all ranks together, padding included
    valid: str = "dev"  # cut set whose transcripts validate, and on which the weights are tuned


class Rescoring(Settings):
    """Distinct word sequences of a lattice, ranked by acoustic + graph + lm scores + a score for each word.

    The weights are those with the fewest errors on the validation cuts; the acoustic weight is 1.
    """

    nbest: int = Field(default=50, ge=1)
    beam: float = Field(default=12.0, gt=0)  # sequences this much worse than the best are left out
    graph_weights: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    lm_weights: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    word_scores: tuple[float, ...] = (-1.0, 0.0, 1.0)

    @model_validator(mode="after")
    def _check(self) -> Rescoring:
        if 1.0 not in self.graph_weights or 0.0 not in self.lm_weights or 0.0 not in self.word_scores:
            raise ValueError(
                "the grid must hold what is done without a language model: 1 in graph_weights, 0 in lm_weights"
                " and in word_scores"
            )
        return self


class LanguageModel(Settings):
    """One Transformer language model, how it is trained and what it is used for."""

    name: str = ""
    stage: Literal[11] = 11
    description: str = ""
    seed: int = 0
    model: Model = Model()
    text: Text = Text()
    optim: Optim
    saving: Saving = Saving()
    avg: int = Field(default=1, ge=1)  # checkpoints averaged
    rescoring: Rescoring = Rescoring()

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> LanguageModel:
        """Read a YAML file, apply "a.b=value" overrides; raises ValueError naming file and key, FileNotFoundError."""
        if not path.is_file():
            raise FileNotFoundError(
                f"no settings of a Transformer language model at {path}; copy those of another recipe"
                " (egs/librispeech/conf/lm.yaml), or leave stage 11 out"
            )
        return load_settings(cls, path, overrides)

    def resolved(self) -> dict[str, Any]:
        """All settings as plain values, for checkpoints and hashes."""
        return self.model_dump(mode="json")
