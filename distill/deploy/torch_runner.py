"""torch behind a session: `Recogniser.step`, or the whole-utterance forward."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from distill.deploy.session import Facts
from distill.models.checkpoint import load_recogniser
from distill.models.recogniser import Recogniser


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
        logits = output.logits if self.model.main_output else output.ctc
        return logits[0].log_softmax(-1).numpy()


def facts_of(model: Recogniser, outputs: Sequence[str], name: str) -> Facts:
    """What a session must know of a model."""
    front, encoder, streaming = model.settings.front_end, model.settings.encoder, model.settings.streaming
    gain = float(getattr(model.front_end, "gain", torch.ones(())))
    return Facts(
        name, front.input, front.mels, front.hop, front.context, front.ahead, front.stride, front.reach,
        front.waveform, gain, streaming.chunk_frames, streaming.history_frames, encoder.layers, encoder.heads,
        encoder.dim, encoder.position_kernel, tuple(outputs),
        ("main",) if model.ctc is None else ("main", "ctc"),
    )  # fmt: skip


def open_torch(folder: Path, mode: str, output: str, threads: int) -> TorchRunner:
    """The runner for an experiment's last checkpoint; raises FileNotFoundError or ValueError."""
    torch.set_num_threads(threads)
    model, experiment, outputs, _ = load_recogniser(folder)
    streams = bool(model.settings.streaming.chunk_frames) if not mode else mode == "streaming"
    return TorchRunner(model.read(output), facts_of(model, outputs, experiment.name), streams)
