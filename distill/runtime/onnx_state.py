"""The cache of one stream for the exported graph: waiting inputs, and ring buffers of keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from distill.runtime.fbank import Fbank
from distill.runtime.info import ModelInfo
from distill.runtime.runner import ChunkRequest


class StreamCache:
    """Inputs that wait for their chunk, and the graph's states.

    Keys and values lie in ring buffers (heads, R, C / heads), which grow to the model's history; then new frames
    overwrite the oldest. Each buffer is allocated at full size, since new pages of memory cost more than copies do,
    and grows by moving to a spare one. `start`: frames computed so far.
    """

    def __init__(self, info: ModelInfo, shapes: Mapping[str, Sequence[Any]]) -> None:
        """shapes: of each state without the axis of streams; a ring's number of frames has a name in its place."""
        self._front, self._streaming = info.model.front_end, info.model.streaming
        self._inputs = Fbank(self._front.mels) if self._front.input == "fbank" else ScaledWave(info)
        self._heads = {name: (shape[0], shape[2]) for name, shape in shapes.items() if isinstance(shape[1], str)}
        size = self._streaming.sink_frames + self._streaming.history_frames
        largest = size * max(heads * width for heads, width in self._heads.values())
        self._spare, *buffers = np.zeros((1 + len(self._heads), largest), np.float32)
        self._buffers = dict(zip(self._heads, buffers))
        self.states = {name: self._ring(name, buffer, 0) for name, buffer in self._buffers.items()}
        self._others = [name for name in shapes if name not in self._heads]
        self.states |= {name: np.zeros(shapes[name], np.float32) for name in self._others}
        self._grow(self._streaming.chunk_frames)
        self._ready = self._inputs.take(np.zeros(0, np.float32), False)
        self._taken: ChunkRequest | None = None
        self._samples = self.start = 0
        self._ended = False

    def take(self, request: ChunkRequest) -> None:
        """New samples; a request that is repeated after a failed forward adds nothing."""
        if request is not self._taken:
            self._taken, self._ended = request, request.final
            self._samples += len(request.wave)
            self._ready = np.concatenate([self._ready, self._inputs.take(request.wave, request.final)])

    @property
    def frames(self) -> int:
        """Valid frames of the next chunk, 0 while it is not complete."""
        chunk = self._streaming.chunk_frames
        if len(self._ready) >= self._front.window(chunk):
            return chunk
        return self._front.frames(self._samples) - self.start if self._ended else 0

    def inputs(self, frames: int) -> np.ndarray:
        """Inputs of so many frames, (T_in,) or (T_in, mels), zero-padded at the end."""
        size = self._front.window(frames)
        return padded(self._ready[:size], (size, *self._ready.shape[1:]))

    def advance(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Store the graph's new states of this stream, behind its chunk."""
        frames, sinks = self.frames, self._streaming.sink_frames
        for name in self._others:
            self.states[name][:] = outputs[f"new_{name}"]
        places = list(slots(self.start, frames, self._streaming.history_frames, sinks))
        if self.start < sinks:
            early = min(frames, sinks - self.start)
            places.append((slice(self.start, self.start + early), slice(0, early)))
        self._grow(self.start + frames)
        for place, new in places:
            for name in self._buffers:
                self.states[name][:, place] = outputs[f"new_{name}"][:, new]
        self._ready = self._ready[self._streaming.chunk_frames * self._front.stride :]
        self.start += frames

    def _grow(self, frames: int) -> None:
        """Make room in the rings for so many frames, up to the history; never less than for a chunk."""
        streaming = self._streaming
        size = streaming.sink_frames + min(max(frames, streaming.chunk_frames), streaming.history_frames)
        for name, buffer in self._buffers.items():
            before = self.states[name]
            if before.shape[1] != size:
                self.states[name] = self._ring(name, self._spare, size)
                self.states[name][:, : before.shape[1]] = before
                self.states[name][:, before.shape[1] :] = 0
                self._buffers[name], self._spare = self._spare, buffer

    def _ring(self, name: str, buffer: np.ndarray, size: int) -> np.ndarray:
        heads, width = self._heads[name]
        return buffer[: heads * size * width].reshape(heads, size, width)


def padded(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Zeros at the end of each axis, up to a shape; the array itself if it has that shape."""
    if array.shape == tuple(shape):
        return array
    return np.pad(array, [(0, size - own) for own, size in zip(array.shape, shape)])


def slots(first: int, count: int, size: int, offset: int) -> Iterator[tuple[slice, slice]]:
    """Ring slots, behind `offset` others, of `count` frames numbered from `first`, and the frames in each slice.

    If there are more frames than slots, the last ones.
    """
    done = max(0, count - size)
    while size and done < count:
        slot = (first + done) % size
        length = min(count - done, size - slot)
        yield slice(offset + slot, offset + slot + length), slice(done, done + length)
        done += length


def normalised(audio: np.ndarray, info: ModelInfo) -> np.ndarray:
    """Input of a model's first convolution for an utterance (N,): scaled by its gain, or normalised."""
    front = info.model.front_end
    if front.waveform != "utterance":
        return audio * np.float32(info.gain)
    centred = audio - audio.mean()
    return centred / np.sqrt(np.square(centred).mean() + np.float32(front.waveform_eps))


class ScaledWave:
    """Samples times the stored gain, behind the zeros with which a causal stack begins."""

    def __init__(self, info: ModelInfo) -> None:
        self._gain = np.float32(info.gain)
        self._before = np.zeros(info.model.front_end.context, np.float32)

    def take(self, wave: np.ndarray, final: bool) -> np.ndarray:
        """Samples (n,) -> (n,), the zeros before the first."""
        before, self._before = self._before, self._before[:0]
        return np.concatenate([before, wave * self._gain])
