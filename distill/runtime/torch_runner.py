"""torch behind a session: `Recogniser.step`, or the whole-utterance forward; and behind a server's many streams."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.models import streams
from distill.models.checkpoint import load_recogniser
from distill.models.recogniser import Recogniser
from distill.runtime.batching import Piece
from distill.runtime.session import Facts


class TorchRunner:
    """A model for one stream, chunk by chunk or whole."""

    def __init__(self, model: Recogniser, facts: Facts, streams: bool) -> None:
        self.model, self.facts, self._streams = model.eval(), facts, streams
        self.reset()

    def reset(self) -> None:
        self._state = self.model.initial_state(1) if self._streams else None
        self._pieces: list[torch.Tensor] = []

    @torch.no_grad()
    def step(self, wave: np.ndarray, final: bool) -> np.ndarray:
        new = torch.from_numpy(wave)[None]
        if self._state is not None:
            logits, _, self._state = self.model.step(new, self._state, final=final)
            return logits[0].log_softmax(-1).numpy()
        self._pieces.append(new)
        if not final:
            return np.zeros((0, self.model.outputs), np.float32)
        audio = torch.cat(self._pieces, 1)
        if not self.facts.frames(audio.shape[1]):
            return np.zeros((0, self.model.outputs), np.float32)
        output = self.model(audio, torch.tensor([audio.shape[1]]))
        logits = output.logits if self.model.main_output else output.ctc_logits
        return logits[0].log_softmax(-1).numpy()


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


def facts_of(model: Recogniser, outputs: Sequence[str], name: str) -> Facts:
    """What a session must know of a model."""
    front, encoder, streaming = model.settings.front_end, model.settings.encoder, model.settings.streaming
    gain = float(getattr(model.front_end, "gain", torch.ones(())))
    return Facts(
        name, front.input, front.mels, front.hop, front.context, front.ahead, front.stride, front.reach,
        front.waveform, gain, streaming.chunk_frames, streaming.history_frames, streaming.sink_frames,
        encoder.layers, encoder.heads, encoder.dim, encoder.position_kernel, tuple(outputs),
        ("main",) if model.ctc is None else ("main", "ctc"), front.waveform_eps,
    )  # fmt: skip


def open_torch(folder: Path, mode: str, output: str, threads: int) -> TorchRunner:
    """The runner for an experiment's last checkpoint; raises FileNotFoundError or ValueError."""
    torch.set_num_threads(threads)
    model, experiment, outputs, _ = load_recogniser(folder)
    streams = bool(model.settings.streaming.chunk_frames) if not mode else mode == "streaming"
    return TorchRunner(model.read(output), facts_of(model, outputs, experiment.name), streams)


def open_torch_batches(folder: Path, output: str, threads: int) -> TorchBatches:
    """Many streams of an experiment's last checkpoint; raises FileNotFoundError or ValueError."""
    torch.set_num_threads(threads)
    model, experiment, outputs, _ = load_recogniser(folder)
    return TorchBatches(model.read(output), facts_of(model, outputs, experiment.name))
