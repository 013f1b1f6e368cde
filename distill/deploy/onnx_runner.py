"""ONNX Runtime behind a session: the stream's memory in arrays that are written in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from distill.deploy.fbank import Fbank
from distill.deploy.session import Facts


def open_onnx(folder: Path, mode: str, output: str, int8: bool, threads: int) -> StreamRunner | WholeRunner:
    """The runner for an export folder; raises FileNotFoundError or ValueError."""
    folder = folder if (folder / "export.json").is_file() else folder / "export"
    facts = Facts.read(folder / "export.json")
    streams = bool(facts.chunk) if not mode else mode == "streaming"
    if streams and not facts.chunk:
        raise ValueError(f"{facts.name} has full context and cannot stream; choose the mode offline")
    if output not in facts.predicts:
        raise ValueError(f"{facts.name} has no output '{output}'; it has {', '.join(facts.predicts)}")
    name = file_name("stream" if streams else "whole", output, int8)
    return (StreamRunner if streams else WholeRunner)(folder / name, facts, threads)


def file_name(kind: str, output: str, int8: bool) -> str:
    """stream.onnx, whole.ctc.int8.onnx, …: kind is stream, whole or sherpa."""
    return f"{kind}{'.ctc' if output == 'ctc' else ''}{'.int8' if int8 else ''}.onnx"


def load_graph(path: Path, threads: int = 1):
    """An InferenceSession on the CPU; raises FileNotFoundError or ValueError."""
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("ONNX Runtime is missing; install the extra 'deploy' (pip install -e .[deploy])") from None
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; stage 12 writes it (run.sh --stage 12 --stop-stage 12)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class StreamRunner:
    """Chunk by chunk; keys and values lie in rings, and new ones are written over the oldest."""

    def __init__(self, path: Path, facts: Facts, threads: int = 1) -> None:
        self.facts = facts
        self._graph = load_graph(path, threads)
        shapes = {item.name: item.shape for item in self._graph.get_inputs()}
        self._size, self._shift = shapes["x"][1], facts.chunk * facts.stride
        self._feed = {
            name: np.zeros([1, *shape[1:]], np.int64 if name in ("valid", "processed") else np.float32)
            for name, shape in shapes.items()
        }
        self._outputs = [item.name for item in self._graph.get_outputs()]
        self._sinks = self._feed["value_0"].shape[2] - facts.history
        self._inputs = Fbank(facts.mels) if facts.input == "fbank" else Waveform(facts)
        self.reset()

    def reset(self) -> None:
        for array in self._feed.values():
            array.fill(0)
        self._inputs.reset()
        self._ready = self._inputs.take(np.zeros(0, np.float32), False)
        self._samples = self._start = 0

    def step(self, wave: np.ndarray, final: bool) -> np.ndarray:
        facts, pieces = self.facts, []
        self._samples += len(wave)
        self._ready = np.concatenate([self._ready, self._inputs.take(wave, final)])
        while len(self._ready) >= self._size:
            pieces.append(self._chunk(self._ready[: self._size], facts.chunk))
            self._ready = self._ready[self._shift :]
        rest = facts.frames(self._samples) - self._start if final else 0
        if rest > 0:
            padding = np.zeros((self._size, *self._ready.shape[1:]), np.float32)
            pieces.append(self._chunk(np.concatenate([self._ready, padding])[: self._size], rest))
        return np.concatenate(pieces) if pieces else np.zeros((0, len(facts.outputs)), np.float32)

    def _chunk(self, x: np.ndarray, frames: int) -> np.ndarray:
        """x (input_size,) or (input_size, mels), how many of its frames are real -> (frames, V)."""
        feed = self._feed
        feed["x"][0], feed["valid"][0], feed["processed"][0] = x, frames, self._start
        found = dict(zip(self._outputs, self._graph.run(None, feed)))
        feed["positions"] = found["new_positions"]
        self._remember(found, self._start, frames)
        self._start += frames
        return found["log_probs"][0, :frames]

    def _remember(self, found: Mapping[str, np.ndarray], first: int, count: int) -> None:
        """Write keys and values of the new frames over the oldest, and those of sinks into their places."""
        taken = list(slots(first, count, self.facts.history, self._sinks))
        if first < self._sinks:
            early = min(count, self._sinks - first)
            taken.append((slice(first, first + early), slice(0, early)))
        for place, new in taken:
            for i in range(self.facts.layers):
                self._feed[f"key_{i}"][..., place] = found[f"new_key_{i}"][..., new]
                self._feed[f"value_{i}"][:, :, place] = found[f"new_value_{i}"][:, :, new]


def slots(first: int, count: int, size: int, offset: int) -> Iterator[tuple[slice, slice]]:
    """Where `count` frames, numbered from `first` on, lie in a ring behind `offset` others; and which they are.

    Of more frames than the ring has, the last.
    """
    done = max(0, count - size)
    while size and done < count:
        slot = (first + done) % size
        length = min(count - done, size - slot)
        yield slice(offset + slot, offset + slot + length), slice(done, done + length)
        done += length


class WholeRunner:
    """Keeps the audio, and runs the model over all of it at the end."""

    def __init__(self, path: Path, facts: Facts, threads: int = 1) -> None:
        self.facts, self._graph = facts, load_graph(path, threads)
        self.reset()

    def reset(self) -> None:
        self._pieces: list[np.ndarray] = []

    def step(self, wave: np.ndarray, final: bool) -> np.ndarray:
        self._pieces.append(wave)
        if not final:
            return np.zeros((0, len(self.facts.outputs)), np.float32)
        audio = np.concatenate(self._pieces)
        if not self.facts.frames(len(audio)):
            return np.zeros((0, len(self.facts.outputs)), np.float32)
        if self.facts.input == "fbank":
            fbank = Fbank(self.facts.mels)
            x = fbank.take(audio, True)
            return self._graph.run(None, {"x": x[None], "x_lens": np.array([len(x)])})[0][0]
        return self._graph.run(None, {"x": normalised(audio, self.facts)[None]})[0][0]


def normalised(audio: np.ndarray, facts: Facts) -> np.ndarray:
    """What the model's first convolution reads of an utterance (N,)."""
    if facts.waveform != "utterance":
        return audio * np.float32(facts.gain)
    centred = audio - audio.mean()
    return centred / np.sqrt(np.square(centred).mean() + np.float32(1e-7))


class Waveform:
    """Samples times the stored gain, behind the zeros that a causal stack starts with."""

    def __init__(self, facts: Facts) -> None:
        self._gain, self._context = np.float32(facts.gain), facts.context
        self.reset()

    def reset(self) -> None:
        self._begun = False

    def take(self, wave: np.ndarray, final: bool) -> np.ndarray:
        """Samples (n,) -> (n,), the zeros before the first."""
        scaled = wave * self._gain
        if self._begun:
            return scaled
        self._begun = True
        return np.concatenate([np.zeros(self._context, np.float32), scaled])
