"""Interfaces between sessions, the server and the runtimes that compute a model's log-probabilities.

Of a transducer, frames (T, J) that its joiner takes stand in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from distill.decode.transducer import Network
from distill.runtime.info import ModelInfo

RUNTIMES = ("torch", "onnx", "int8")


@dataclass
class ChunkRequest:
    """Input of one stream to a forward: its state, samples (n,), and whether these are its last."""

    state: Any
    wave: np.ndarray
    final: bool


class BatchRunner(Protocol):
    """Runs chunks of many streams in one forward. output: main, ctc or transducer, with its network."""

    info: ModelInfo
    output: str
    network: Network | None

    def open(self) -> Any:
        """State of a new stream."""

    def needs(self, begun: bool) -> int:
        """Samples that complete a stream's next chunk; begun: it is not the first."""

    def step(self, requests: Sequence[ChunkRequest]) -> list[tuple[np.ndarray, Any]]:
        """One chunk of each stream, `needs` samples or, in final requests, fewer -> log-probs (T, V), new states.

        After an exception the same requests can be repeated, all or some of them.
        """


class Runner(Protocol):
    """Runs one stream; output and network as of `BatchRunner`."""

    info: ModelInfo
    output: str
    network: Network | None

    def reset(self) -> None:
        """Begin a new utterance."""

    def step(self, wave: np.ndarray, final: bool) -> np.ndarray:
        """Samples (n,) -> log-probabilities (T, V) of the frames that are complete now."""


class StreamRunner:
    """One stream, chunk by chunk, as a batch of one."""

    def __init__(self, batches: BatchRunner) -> None:
        self.batches, self.info, self.output, self.network = batches, batches.info, batches.output, batches.network
        self.reset()

    def reset(self) -> None:
        self._state: Any = None  # allocated with the first samples

    def step(self, wave: np.ndarray, final: bool) -> np.ndarray:
        state = self.batches.open() if self._state is None else self._state
        ((log_probs, self._state),) = self.batches.step([ChunkRequest(state, wave, final)])
        return log_probs


class WholeRunner:
    """Collects the audio of an utterance, and runs `forward`, samples (N,) -> log-probs (T, V), once at its end."""

    def __init__(
        self, info: ModelInfo, forward: Callable[[np.ndarray], np.ndarray], output: str, network: Network | None
    ) -> None:
        self.info, self._forward, self.output, self.network = info, forward, output, network
        self.reset()

    def reset(self) -> None:
        self._waves: list[np.ndarray] = []

    def step(self, wave: np.ndarray, final: bool) -> np.ndarray:
        self._waves.append(wave)
        audio = np.concatenate(self._waves) if final else wave[:0]
        if not self.info.model.front_end.frames(len(audio)):
            return np.zeros((0, self.info.columns(self.output)), np.float32)
        return self._forward(audio)
