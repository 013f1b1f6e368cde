"""Many streams through one model: whatever chunks are ready go through one forward."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from distill.deploy.session import Facts
from distill.deploy.torch_runner import facts_of
from distill.models import streams
from distill.models.checkpoint import load_recogniser
from distill.models.recogniser import Recogniser


@dataclass
class Piece:
    """What one stream gives to a forward: its state, samples (n,), and whether they are its last."""

    state: Any
    wave: np.ndarray
    final: bool


class BatchRunner(Protocol):
    """Runs the model of many streams."""

    facts: Facts

    def open(self) -> Any:
        """State of a stream that has heard nothing."""

    def needs(self, begun: bool) -> int:
        """Samples of a stream's next chunk; begun: it is not the first."""

    def step(self, pieces: Sequence[Piece]) -> list[tuple[np.ndarray, Any]]:
        """Chunks of any streams, `needs` samples or, of final ones, fewer -> log-probabilities (T, V), new states."""


class TorchBatches:
    """`Recogniser.step` over the streams that can go together."""

    def __init__(self, model: Recogniser, facts: Facts) -> None:
        if not facts.chunk:
            raise ValueError(f"{facts.name} has full context and cannot stream; serve a model with chunks")
        self.model, self.facts = model.eval(), facts
        with torch.no_grad():
            self._new = streams.split(model, model.initial_state(1))[0]

    def open(self) -> Any:
        return self._new

    def needs(self, begun: bool) -> int:
        return self.facts.chunk * self.facts.hop + (0 if begun else self.facts.ahead)

    def step(self, pieces: Sequence[Piece]) -> list[tuple[np.ndarray, Any]]:
        groups: dict[Hashable, list[int]] = defaultdict(list)
        for i, piece in enumerate(pieces):
            groups[piece.final, streams.key(self.model, piece.state)].append(i)
        found: list[tuple[np.ndarray, Any] | None] = [None] * len(pieces)
        for members in groups.values():
            for i, result in zip(members, self._together([pieces[i] for i in members])):
                found[i] = result
        return [result for result in found if result is not None]

    @torch.inference_mode()
    def _together(self, pieces: Sequence[Piece]) -> list[tuple[np.ndarray, Any]]:
        waves = [torch.from_numpy(piece.wave) for piece in pieces]
        samples = torch.tensor([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        state = streams.join([piece.state for piece in pieces])
        final = pieces[0].final
        logits, lengths, state = self.model.step(padded, state, samples, final=final)
        log_probs = logits.log_softmax(-1).numpy()
        states = [self._new] * len(pieces) if final else streams.split(self.model, state)
        return [(row[:n], after) for row, n, after in zip(log_probs, lengths.tolist(), states)]


def open_batches(folder: Path, output: str = "main", threads: int = 1) -> TorchBatches:
    """The runner for an experiment's last checkpoint; raises FileNotFoundError or ValueError."""
    torch.set_num_threads(threads)
    model, experiment, outputs, _ = load_recogniser(folder)
    return TorchBatches(model.read(output), facts_of(model, outputs, experiment.name))
