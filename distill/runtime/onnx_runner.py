"""ONNX Runtime over the exported graphs: chunks of many streams, or whole utterances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.config.model import BLANK
from distill.decode.transducer import Network
from distill.extras import needed
from distill.runtime.fbank import Fbank
from distill.runtime.info import ModelInfo
from distill.runtime.onnx_state import StreamCache, normalised, padded
from distill.runtime.runner import ChunkRequest, StreamRunner, WholeRunner


def read_export(folder: Path) -> tuple[Path, ModelInfo]:
    """The export folder of an experiment, or itself; raises FileNotFoundError, ValueError for another version's."""
    folder = folder if (folder / "export.json").is_file() else folder / "export"
    return folder, ModelInfo.of_export(folder / "export.json")


def file_name(kind: str, output: str, int8: bool) -> str:
    """stream.onnx, whole.ctc.int8.onnx, …: kind is stream, whole or sherpa, of a transducer also decoder or joiner."""
    return f"{kind}{'' if output == 'main' else f'.{output}'}{'.int8' if int8 else ''}.onnx"


def load_graph(path: Path, threads: int = 1):
    """An InferenceSession on the CPU; raises FileNotFoundError or ValueError.

    In 8-bit files GELU is approximated by tanh, in 0.6 of the time: the error of at most 5e-4 is far below the
    quantisation steps of its outputs.
    """
    with needed("a session of ONNX Runtime"):
        import onnxruntime
    if not path.is_file():
        int8 = path.with_name(path.name.replace(".onnx", ".int8.onnx"))
        way_out = "use the runtime int8" if int8.is_file() else "stage 12 writes it (run.sh --stage 12 --stop-stage 12)"
        raise FileNotFoundError(f"no {path}; {way_out}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # spinning threads would take processor time from the search and from sockets
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("optimization.enable_gelu_approximation", str(int(".int8." in path.name)))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base class of their own
        raise ValueError(f"{path} is no graph that ONNX Runtime can load ({error}); run stage 12 again") from None


class OnnxNetwork:
    """Predictor and joiner of an export folder (a `Network` of searches).

    A stateless predictor's state is its last units (N, context), an LSTM's its output and cell (N, 2, dim).
    """

    def __init__(self, folder: Path, info: ModelInfo, int8: bool, threads: int = 1) -> None:
        """int8: the 8-bit graphs. Raises FileNotFoundError or ValueError."""
        settings = info.model.transducer
        assert settings is not None
        self._stateless, self._shape = settings.predictor == "stateless", (1, 2, settings.dim)
        self._context = settings.context
        self._decoder, self._joiner = (
            load_graph(folder / file_name(kind, "transducer", int8), threads) for kind in ("decoder", "joiner")
        )

    def start(self) -> tuple[np.ndarray, np.ndarray]:
        if self._stateless:
            return self._read(np.full((1, self._context), BLANK, np.int64))
        return self.advance(np.zeros(self._shape, np.float32), np.full(1, BLANK, np.int64))

    def advance(self, states: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self._stateless:
            return self._read(np.concatenate([states[:, 1:], units[:, None]], 1))
        predicted, states = self._decoder.run(None, {"y": units, "state": states})
        return states, predicted

    def log_probs(self, frame: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        frames = np.repeat(frame[None], len(predicted), 0)
        (logits,) = self._joiner.run(None, {"encoder_out": frames, "decoder_out": predicted})
        shifted = logits - logits.max(1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    def _read(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return units, self._decoder.run(None, {"y": units})[0]


def network_beside(path: Path, info: ModelInfo, output: str, threads: int) -> Network | None:
    """Predictor and joiner of an encoder's graph where the output is the transducer."""
    return OnnxNetwork(path.parent, info, ".int8." in path.name, threads) if output == "transducer" else None


class OnnxBatches:
    """Chunks of many streams, of any age, through one run of the graph (a `BatchRunner`)."""

    def __init__(self, path: Path, info: ModelInfo, threads: int = 1, output: str = "main") -> None:
        """output: the one that the graph has."""
        self.info, self._graph = info, load_graph(path, threads)
        self.output, self.network = output, network_beside(path, info, output, threads)
        self._outputs = [item.name for item in self._graph.get_outputs()]
        given = ("x", "valid", "processed")
        self._states = {item.name: item.shape[1:] for item in self._graph.get_inputs() if item.name not in given}

    def open(self) -> StreamCache:
        return StreamCache(self.info, self._states)

    def needs(self, begun: bool) -> int:
        return self.info.chunk_samples(not begun)

    def step(self, requests: Sequence[ChunkRequest]) -> list[tuple[np.ndarray, StreamCache]]:
        log_probs = [[np.zeros((0, self.info.columns(self.output)), np.float32)] for _ in requests]
        for request in requests:
            request.state.take(request)
        while due := [i for i, request in enumerate(requests) if request.state.frames > 0]:
            for i, new in zip(due, self._forward([requests[i].state for i in due])):
                log_probs[i].append(new)
        return [(np.concatenate(rows), request.state) for request, rows in zip(requests, log_probs)]

    def _forward(self, streams: Sequence[StreamCache]) -> list[np.ndarray]:
        feed = {name: _batch([stream.states[name] for stream in streams]) for name in streams[0].states}
        frames = [stream.frames for stream in streams]
        feed["x"] = _batch([stream.inputs(max(frames)) for stream in streams])
        feed["valid"] = np.array(frames, np.int64)
        feed["processed"] = np.array([stream.start for stream in streams], np.int64)
        log_probs, *new = self._graph.run(None, feed)
        for row, stream in enumerate(streams):
            stream.advance({name: x[row] for name, x in zip(self._outputs[1:], new)})
        return [rows[:count] for rows, count in zip(log_probs, frames)]


def _batch(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays that differ in length only, as a batch, zero-padded at the end."""
    if len(arrays) == 1:
        return arrays[0][None]  # one stream's cache is not copied
    shape = np.maximum.reduce([array.shape for array in arrays])
    return np.stack([padded(array, shape) for array in arrays])


def onnx_runner(
    path: Path, info: ModelInfo, streams: bool, threads: int = 1, output: str = "main"
) -> StreamRunner | WholeRunner:
    """One stream of an output's exported graph, in chunks or whole; raises FileNotFoundError or ValueError."""
    if streams:
        return StreamRunner(OnnxBatches(path, info, threads, output))
    graph, front = load_graph(path, threads), info.model.front_end

    def forward(audio: np.ndarray) -> np.ndarray:
        if front.input == "fbank":
            x = Fbank(front.mels).take(audio, True)
            return graph.run(None, {"x": x[None], "x_lens": np.array([len(x)])})[0][0]
        return graph.run(None, {"x": normalised(audio, info)[None], "undo": np.array(0, np.float32)})[0][0]

    return WholeRunner(info, forward, output, network_beside(path, info, output, threads))
