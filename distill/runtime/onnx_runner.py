"""ONNX Runtime behind a session and a server: each stream's memory in arrays that are written in place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.extras import needed
from distill.runtime.batching import Piece
from distill.runtime.fbank import Fbank
from distill.runtime.session import Facts


def open_onnx(folder: Path, mode: str, output: str, int8: bool, threads: int) -> StreamRunner | WholeRunner:
    """The runner for an export folder; raises FileNotFoundError or ValueError."""
    folder, facts = read_export(folder, output)
    streams = bool(facts.chunk) if not mode else mode == "streaming"
    if streams and not facts.chunk:
        raise ValueError(f"{facts.name} has full context and cannot stream; choose the mode offline")
    name = file_name("stream" if streams else "whole", output, int8)
    return (StreamRunner if streams else WholeRunner)(folder / name, facts, threads)


def open_onnx_batches(folder: Path, output: str, int8: bool, threads: int) -> OnnxBatches:
    """Many streams of an export folder's graph; raises FileNotFoundError or ValueError."""
    folder, facts = read_export(folder, output)
    if not facts.chunk:
        raise ValueError(f"{facts.name} has full context and cannot stream; serve a model with chunks")
    return OnnxBatches(folder / file_name("stream", output, int8), facts, threads)


def read_export(folder: Path, output: str) -> tuple[Path, Facts]:
    """The export folder of an experiment, or itself; raises FileNotFoundError, ValueError for an unknown output."""
    folder = folder if (folder / "export.json").is_file() else folder / "export"
    facts = Facts.read(folder / "export.json")
    if output not in facts.predicts:
        raise ValueError(f"{facts.name} has no output '{output}'; it has {', '.join(facts.predicts)}")
    return folder, facts


def file_name(kind: str, output: str, int8: bool) -> str:
    """stream.onnx, whole.ctc.int8.onnx, …: kind is stream, whole or sherpa."""
    return f"{kind}{'.ctc' if output == 'ctc' else ''}{'.int8' if int8 else ''}.onnx"


def load_graph(path: Path, threads: int = 1):
    """An InferenceSession on the CPU; raises FileNotFoundError or ValueError.

    In 8-bit files GELU is computed by tanh, in 0.6 of the time: it differs by at most 5e-4, far less than the steps
    of the values that are made of it.
    """
    with needed("a session of ONNX Runtime"):
        import onnxruntime
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; stage 12 writes it (run.sh --stage 12 --stop-stage 12)")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # threads that wait in a loop take the processor from the search and from sockets
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("optimization.enable_gelu_approximation", str(int(".int8." in path.name)))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base class of their own
        raise ValueError(f"{path} is no graph that ONNX Runtime can load ({error}); run stage 12 again") from None


class Memory:
    """What one stream keeps: inputs that wait for their chunk, and the graph's states.

    Keys and values lie in rings (heads, R, C / heads), which grow to the model's history; then new ones are
    written over the oldest. Each has room for all of it from the start, since new pages of memory cost more than
    copies do, and grows by moving to a spare room.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._inputs = Fbank(facts.mels) if facts.input == "fbank" else Waveform(facts)
        names = [f"{kind}_{i}" for i in range(facts.layers) for kind in ("key", "value")]
        self._spare, *rooms = np.zeros((1 + len(names), facts.dim * (facts.sinks + facts.history)), np.float32)
        self._rooms = dict(zip(names, rooms))
        self.reset()

    def reset(self) -> None:
        """Forget the stream, and keep the room for the next one."""
        self.states = {name: self._ring(room, 0) for name, room in self._rooms.items()}
        self.states["positions"] = np.zeros((self._facts.kernel - 1, self._facts.dim), np.float32)
        self._grow(self._facts.chunk)
        self._inputs.reset()
        self._ready = self._inputs.take(np.zeros(0, np.float32), False)
        self._taken: Piece | None = None
        self._samples = self.start = 0
        self._ended = False

    def take(self, piece: Piece) -> None:
        """New samples; a piece that comes again, as the forward after it failed, is known already."""
        if piece is not self._taken:
            self._taken, self._ended = piece, piece.final
            self._samples += len(piece.wave)
            self._ready = np.concatenate([self._ready, self._inputs.take(piece.wave, piece.final)])

    @property
    def frames(self) -> int:
        """Real frames of the next chunk, 0 where it is not complete yet."""
        if len(self._ready) >= self._facts.window(self._facts.chunk):
            return self._facts.chunk
        return self._facts.frames(self._samples) - self.start if self._ended else 0

    def inputs(self, frames: int) -> np.ndarray:
        """What so many frames see, (T_in,) or (T_in, mels); zeros where a stream has fewer."""
        size = self._facts.window(frames)
        return longer(self._ready[:size], (size, *self._ready.shape[1:]))

    def keep(self, found: dict[str, np.ndarray], row: int) -> np.ndarray:
        """What the graph found of the chunk, in a row of its outputs -> log-probabilities (T, V)."""
        facts, frames = self._facts, self.frames
        self.states["positions"][:] = found["new_positions"][row]
        self._remember({name: array[row] for name, array in found.items() if name.startswith("new_")}, frames)
        self._ready = self._ready[facts.chunk * facts.stride :]
        self.start += frames
        return found["log_probs"][row, :frames]

    def _remember(self, found: Mapping[str, np.ndarray], count: int) -> None:
        """Write keys and values of the new frames over the oldest, and those of sinks into their places."""
        sinks, history = self._facts.sinks, self._facts.history
        taken = list(slots(self.start, count, history, sinks))
        if self.start < sinks:
            early = min(count, sinks - self.start)
            taken.append((slice(self.start, self.start + early), slice(0, early)))
        self._grow(self.start + count)
        for place, new in taken:
            for name in self._rooms:
                self.states[name][:, place] = found[f"new_{name}"][:, new]

    def _grow(self, frames: int) -> None:
        """Give the rings room for so many frames, as far as the history goes; never less than for a chunk."""
        facts = self._facts
        size = facts.sinks + min(max(frames, facts.chunk), facts.history)
        for name, room in self._rooms.items():
            held = self.states[name]
            if held.size == facts.dim * size:
                continue
            self.states[name] = self._ring(self._spare, size)
            self.states[name][:, : held.shape[1]] = held
            self.states[name][:, held.shape[1] :] = 0
            self._rooms[name], self._spare = self._spare, room

    def _ring(self, room: np.ndarray, size: int) -> np.ndarray:
        facts = self._facts
        return room[: facts.dim * size].reshape(facts.heads, size, facts.dim // facts.heads)


class OnnxBatches:
    """Chunks of many streams, of whatever age, through one run of the graph (a `batching.BatchRunner`)."""

    def __init__(self, path: Path, facts: Facts, threads: int = 1) -> None:
        self.facts, self._graph = facts, load_graph(path, threads)
        self._outputs = [item.name for item in self._graph.get_outputs()]

    def open(self) -> Memory:
        return Memory(self.facts)

    def needs(self, begun: bool) -> int:
        return self.facts.chunk * self.facts.hop + (0 if begun else self.facts.ahead)

    def step(self, pieces: Sequence[Piece]) -> list[tuple[np.ndarray, Memory]]:
        heard = [[np.zeros((0, len(self.facts.outputs)), np.float32)] for _ in pieces]
        for piece in pieces:
            piece.state.take(piece)
        while due := [i for i, piece in enumerate(pieces) if piece.state.frames > 0]:
            for i, log_probs in zip(due, self._together([pieces[i].state for i in due])):
                heard[i].append(log_probs)
        return [(np.concatenate(each), piece.state) for piece, each in zip(pieces, heard)]

    def _together(self, streams: Sequence[Memory]) -> list[np.ndarray]:
        feed = {name: _batch([stream.states[name] for stream in streams]) for name in streams[0].states}
        frames = [stream.frames for stream in streams]
        feed["x"] = _batch([stream.inputs(max(frames)) for stream in streams])
        feed["valid"] = np.array(frames, np.int64)
        feed["processed"] = np.array([stream.start for stream in streams], np.int64)
        found = dict(zip(self._outputs, self._graph.run(None, feed)))
        return [stream.keep(found, row) for row, stream in enumerate(streams)]


def _batch(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of one shape, or of one but for their length, as a batch; zeros where one is shorter."""
    if len(arrays) == 1:
        return arrays[0][None]  # one stream's memory is not copied
    shape = np.maximum.reduce([array.shape for array in arrays])
    return np.stack([longer(array, shape) for array in arrays])


def longer(array: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Zeros behind what an array holds, up to a shape."""
    if array.shape == tuple(shape):
        return array
    padded = np.zeros(shape, array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded


class StreamRunner:
    """One stream, chunk by chunk."""

    def __init__(self, path: Path, facts: Facts, threads: int = 1) -> None:
        self.facts, self._graph = facts, OnnxBatches(path, facts, threads)
        self._memory = self._graph.open()

    def reset(self) -> None:
        self._memory.reset()

    def step(self, wave: np.ndarray, final: bool) -> np.ndarray:
        return self._graph.step([Piece(self._memory, wave, final)])[0][0]


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
        return self._graph.run(None, {"x": normalised(audio, self.facts)[None], "undo": np.array(0, np.float32)})[0][0]


def normalised(audio: np.ndarray, facts: Facts) -> np.ndarray:
    """What the model's first convolution reads of an utterance (N,)."""
    if facts.waveform != "utterance":
        return audio * np.float32(facts.gain)
    centred = audio - audio.mean()
    return centred / np.sqrt(np.square(centred).mean() + np.float32(facts.waveform_eps))


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
