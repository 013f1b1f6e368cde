"""A model's settings, units and gain as stage 12 stores them beside its graphs (export.json)."""

from __future__ import annotations

import json
from pathlib import Path

from distill.config.decoding import Decoding
from distill.config.loading import Settings
from distill.config.model import Model

LAYOUT = 6  # version of stage 12's output; increment when graphs or export.json change, so that exports are redone


class ModelInfo(Settings):
    """A trained model without its weights.

    name: the experiment. gain: factor of the waveform (1 without a stored one). outputs: names of units, blank first.
    selectable: outputs that were trained, of main (with LF-MMI, for a decoding graph), ctc (for greedy decoding) and
    transducer; the first is the one that is used unless another is asked for. transducer_beam,
    transducer_lm_scale, transducer_blank_penalty: as of `Decoding`.
    """

    name: str
    model: Model
    gain: float
    outputs: tuple[str, ...]
    selectable: tuple[str, ...] = ("main",)  # of exports that do not say
    transducer_beam: int = Decoding().transducer_beam
    transducer_lm_scale: float = Decoding().transducer_lm_scale
    transducer_blank_penalty: float = Decoding().transducer_blank_penalty

    @classmethod
    def of_export(cls, path: Path) -> ModelInfo:
        """Raises FileNotFoundError naming the stage that writes the file, ValueError for another version's file."""
        if not path.is_file():
            raise FileNotFoundError(f"no {path}; stage 12 writes it (run.sh --stage 12 --stop-stage 12)")
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8"))["model"])
        except (KeyError, ValueError):
            raise ValueError(f"{path} was written by another version; run stage 12 again") from None

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.model.front_end.hop

    @property
    def chunk_frames(self) -> int:
        """Frames of a chunk, 0 for a model with full context."""
        return self.model.streaming.chunk_frames

    def chosen(self, output: str) -> str:
        """The output of that name, the first one for none; raises ValueError for one that was not trained."""
        if not self.selectable:
            raise ValueError(f"{self.name} has no output that was trained; fine-tune it first (init: {self.name})")
        if output and output not in self.selectable:
            raise ValueError(f"{self.name} has no trained output '{output}'; it has {', '.join(self.selectable)}")
        return output or self.selectable[0]

    def columns(self, output: str) -> int:
        """Width of an output's frames: units, of a transducer that of its joiner."""
        if output == "transducer" and self.model.transducer is not None:
            return self.model.transducer.joiner_dim
        return len(self.outputs)

    def chunk_samples(self, first: bool) -> int:
        """Samples that complete a stream's next chunk; raises ValueError for a model with full context."""
        if not self.chunk_frames:
            raise ValueError(f"{self.name} has full context and cannot stream; use one with chunks, or mode offline")
        return self.chunk_frames * self.hop + (self.model.front_end.ahead if first else 0)
