"""ONNX files of a recogniser: for our own sessions, and for sherpa-onnx without changes there; fp32 and int8.

Layouts and metadata follow what sherpa-onnx reads for its CTC models (zipformer2 streaming, zipformer
and omnilingual whole utterances) and its transducers; no runtime needs anything of this project.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.config.model import BLANK, BlockWidths
from distill.export.network import ConformerPast, Past, StreamGraph, WholeGraph
from distill.files import replacing
from distill.models.recogniser import Recogniser
from distill.models.transducer import Transducer

log = logging.getLogger(__name__)

OPSET = 17  # what the oldest runtimes in use read, LayerNormalization included
DIM = 4  # width of the zipformer's states of feed-forwards and convolutions: as small as it takes
EMBED_STATE = (128, 3, 19)
SHERPA_EPS = 1e-5  # what sherpa-onnx adds to the variance of a waveform that it normalises


class StreamOnnx(nn.Module):
    """`StreamGraph` with flat arguments: x, valid, processed, positions, then the states of each block.

    Of a waveform model x is (N, samples), without channels.
    """

    def __init__(self, graph: StreamGraph) -> None:
        super().__init__()
        self.graph = graph
        self.wave = graph.settings.front_end.input == "waveform"
        self.pasts = graph.initial_past()

    def forward(self, x: Tensor, valid: Tensor, processed: Tensor, positions: Tensor, *past: Tensor) -> tuple:
        x = x[..., None] if self.wave else x
        states = iter(past)
        given = ([None if state is None else next(states) for state in old] for old in self.pasts)
        blocks = [type(old)(*block) for old, block in zip(self.pasts, given)]  # type: ignore[arg-type]
        log_probs, positions, new = self.graph(x, valid, processed, positions, blocks)
        return (log_probs, positions, *(tensor for block in new for tensor in block if tensor is not None))


class WaveOnnx(nn.Module):
    """`WholeGraph` as sherpa-onnx's omnilingual models are: waveform (N, samples) -> (N, T, V).

    That runtime hands over (wave - mean) / sqrt(variance + SHERPA_EPS). With the default `undo` of 1 the level is found
    again, since the epsilon leaves the variance below 1, and the model's own gain or normalisation takes its place; of
    the wave, only its mean is lost. With 0, x is the input of the first convolution (`onnx_state.normalised`).
    """

    def __init__(self, graph: WholeGraph, gain: float) -> None:
        super().__init__()
        self.graph, self.gain, self.front = graph, gain, graph.settings.front_end

    def forward(self, x: Tensor, undo: Tensor) -> Tensor:
        wide = x.double()  # 1 minus the variance is as small as 1e-4 for loud speech
        variance = (wide - wide.mean(1, keepdim=True)).square().mean(1, keepdim=True)
        rest = (1 - variance).clamp_min(SHERPA_EPS)  # samples of -1..1 have a variance of at most 1
        if self.front.waveform == "utterance":
            factor = (SHERPA_EPS / (SHERPA_EPS * variance + self.front.waveform_eps * rest)).sqrt()
        else:
            factor = (SHERPA_EPS / rest).sqrt() * self.gain
        return self.graph(torch.where(undo > 0, (wide * factor).float(), x)[..., None])


class FbankOnnx(nn.Module):
    """`WholeGraph` as sherpa-onnx's zipformer CTC models are: x (N, J, mels), x_lens (N,) -> log-probs, lengths."""

    def __init__(self, graph: WholeGraph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        lengths = self.graph.settings.front_end.frames_of_inputs(x_lens)
        return self.graph(x, lengths), lengths


class DecoderOnnx(nn.Module):
    """A stateless predictor as sherpa-onnx's transducers are: the last units (N, context) -> (N, J).

    Before the first unit that runtime gives -1 and blanks, older ones blanks alone; both are zeros here.
    """

    def __init__(self, transducer: Transducer) -> None:
        super().__init__()
        self.transducer = transducer

    def forward(self, y: Tensor) -> Tensor:
        return self.transducer.predictor_projection(self.transducer.predictor.read(y.clamp_min(BLANK)))


class LstmDecoderOnnx(nn.Module):
    """An LSTM predictor: the next unit (N,) and its state (N, 2, dim) -> (N, J), the new state."""

    def __init__(self, transducer: Transducer) -> None:
        super().__init__()
        self.predictor, self.projection = transducer.predictor, transducer.predictor_projection

    def forward(self, y: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        state = self.predictor.advance(state, y)
        return self.projection(self.predictor.read(state)), state


class JoinerOnnx(nn.Module):
    """Frames and the predictor's outputs, (N, J) each -> logits (N, V)."""

    def __init__(self, transducer: Transducer) -> None:
        super().__init__()
        self.transducer = transducer

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        return self.transducer.logits(encoder_out, decoder_out)


class ZipformerOnnx(nn.Module):
    """`StreamGraph` behind the states of sherpa-onnx's streaming zipformer2 models.

    Each block is a stack of one layer there, with its keys in `key` (L, N, heads * head_dim) and its values in `val1`,
    newest last; how many of them are real follows from processed_lens. The last inputs of convolutions lie in (N, DIM,
    kernel // 2) without order: a conformer's in each layer's `conv1`, those of the positions in the first one's
    `conv2`. All other states pass through. Chunks are always whole.
    """

    def __init__(self, graph: StreamGraph) -> None:
        super().__init__()
        self.graph, self.left = graph, max(graph.history, 1)
        self.blocks = [graph.settings.encoder.widths(i) for i in range(len(graph.blocks))]
        self.positions = (graph.positions.kernel - 1, graph.dim)
        self.convs = [past.conv.shape[1:] if isinstance(past, ConformerPast) else None for past in graph.initial_past()]
        sizes = [math.prod(conv or (0,)) for conv in self.convs]
        sizes[0] = max(sizes[0], math.prod(self.positions))
        self.sizes = [max(1, math.ceil(size / DIM)) for size in sizes]

    def forward(self, x: Tensor, *states: Tensor) -> tuple:
        layers = [states[6 * i : 6 * i + 6] for i in range(len(self.blocks))]
        embed, processed = states[6 * len(self.blocks) :]
        frames = processed[:, None] - self.left + torch.arange(self.left, device=x.device)
        valid = torch.full_like(processed, self.graph.chunk_frames)
        past = [self._past(*each) for each in zip(layers, self.blocks, self.convs)]
        positions = taken(layers[0][5], self.positions)
        log_probs, positions, new = self.graph.run(x, valid, processed, frames, positions, past)
        outputs = [log_probs]
        for i, (layer, block) in enumerate(zip(layers, new)):
            keys, values = (
                before + 0 if after is None else torch.cat([before, self._flat(after)])[self.graph.chunk_frames :]
                for before, after in zip((layer[0], layer[2]), block)
            )
            conv = placed(block.conv, layer[4]) if isinstance(block, ConformerPast) else layer[4] + 0
            second = layer[5] + 0 if i else placed(positions, layer[5])
            outputs += [keys, layer[1] + 0, values, layer[3] + 0, conv, second]
        return (*outputs, embed + 0, processed + self.graph.chunk_frames)

    def _past(self, layer: Sequence[Tensor], widths: BlockWidths, conv: torch.Size | None) -> Past | ConformerPast:
        """States of a layer as a block takes them: keys and values (L, N, C) as (N, heads, L, C / heads)."""
        shape, keys, values = (self.left, -1, widths.heads, widths.head_dim), None, None
        if widths.heads:
            keys, values = (state.reshape(shape).permute(1, 2, 0, 3) for state in (layer[0], layer[2]))
        return Past(keys, values) if conv is None else ConformerPast(keys, values, taken(layer[4], conv))

    def _flat(self, new: Tensor) -> Tensor:
        """(N, heads, chunk, C / heads) -> (chunk, N, C)."""
        return new.permute(2, 0, 1, 3).reshape(self.graph.chunk_frames, new.shape[0], -1)

    def states(self) -> dict[str, tuple[Tensor, int]]:
        """Name -> zeros for one stream, and the axis of streams, in sherpa-onnx's order."""
        states = {}
        for i, (widths, size) in enumerate(zip(self.blocks, self.sizes)):
            width = max(1, widths.heads) * widths.head_dim  # of a block without heads too: these states pass through
            memory, conv = torch.zeros(self.left, 1, width), torch.zeros(1, DIM, size)
            states[f"cached_key_{i}"] = (memory, 1)
            states[f"cached_nonlin_attn_{i}"] = (torch.zeros(1, 1, self.left, 3 * DIM // 4), 1)
            states[f"cached_val1_{i}"] = (memory, 1)
            states[f"cached_val2_{i}"] = (memory, 1)
            states[f"cached_conv1_{i}"] = (conv, 0)
            states[f"cached_conv2_{i}"] = (conv, 0)
        states["embed_states"] = (torch.zeros(1, *EMBED_STATE), 0)
        states["processed_lens"] = (torch.zeros(1, dtype=torch.int64), 0)
        return states

    def metadata(self) -> dict[str, Any]:
        """All entries that sherpa-onnx reads, lists of one number a stack; it aborts the process if one is missing."""
        head_dims, count = [widths.head_dim for widths in self.blocks], len(self.blocks)
        lists = {
            "num_encoder_layers": [1] * count, "encoder_dims": [DIM] * count, "left_context_len": [self.left] * count,
            "cnn_module_kernels": [2 * size + 1 for size in self.sizes], "query_head_dims": head_dims,
            "value_head_dims": head_dims, "num_heads": [max(1, widths.heads) for widths in self.blocks],
        }  # fmt: skip
        return {
            "model_type": "zipformer2", "version": 1, "model_author": "distill-asr", "comment": "streaming",
            "T": self.graph.input_size, "decode_chunk_len": self.graph.input_shift,
            **{name: ",".join(map(str, values)) for name, values in lists.items()},
        }  # fmt: skip


def taken(state: Tensor, shape: Sequence[int]) -> Tensor:
    """What `placed` has put into a state: (N, DIM, S) -> (N, *shape)."""
    return state.flatten(1)[:, : math.prod(shape)].reshape(state.shape[0], *shape)


def placed(x: Tensor, state: Tensor) -> Tensor:
    """The numbers of x (N, …) in the shape (N, DIM, S) of a state, zeros behind them."""
    size = math.prod(x.shape[1:])
    return F.pad(x.flatten(1), (0, DIM * state.shape[2] - size)).reshape(-1, DIM, state.shape[2])


def export_stream(model: Recogniser, path: Path, output: str = "main") -> None:
    """One chunk of a stream, for `distill.runtime.session`; raises ValueError for a model that does not stream."""
    graph = StreamGraph(model, output)
    wave = model.settings.front_end.input == "waveform"
    x = torch.zeros(1, graph.input_size) if wave else torch.zeros(1, graph.input_size, model.settings.front_end.mels)
    blocks = graph.initial_past()
    full, none = torch.tensor([graph.chunk_frames]), torch.tensor([0])
    every = ((f"{name}_{i}", x) for i, block in enumerate(blocks) for name, x in block._asdict().items())
    past = {name: state for name, state in every if state is not None}
    states = ["positions", *past]
    inputs = ["x", "valid", "processed", *states]
    outputs = [name_of(output), *(f"new_{name}" for name in states)]
    axes = {name: {0: "N"} for name in (*inputs, *outputs)}
    axes["x"], axes[outputs[0]] = {0: "N", 1: "T_in"}, {0: "N", 1: "T"}
    for name in past:
        if name.startswith(Past._fields):  # in rings
            axes[name], axes[f"new_{name}"] = {0: "N", 2: "R"}, {0: "N", 2: "T"}
    args = (x, full, none, torch.zeros(1, graph.positions.kernel - 1, graph.dim), *past.values())
    write(StreamOnnx(graph), args, path, inputs, outputs, axes, {"model_type": "distill_stream"})


def export_zipformer(model: Recogniser, path: Path, output: str = "main") -> None:
    """For sherpa-onnx's `OnlineRecognizer.from_zipformer2_ctc`, of a transducer the encoder of its `from_transducer`.

    Raises ValueError naming what does not fit in there.
    """
    front = model.settings.front_end
    if problem := zipformer_obstacle(model):
        raise ValueError(f"{problem}; stream it with distill.runtime.session, or take it there offline")
    if front.stride != 4:
        log.warning("frames of %d ms: sherpa-onnx takes all frames for 40 ms, its times will be wrong", front.hop // 16)
    write_zipformer(StreamGraph(model, output), path, name_of(output))


def name_of(output: str) -> str:
    """The first output of an encoder's graph."""
    return "encoder_out" if output == "transducer" else "log_probs"


def export_joiner(model: Recogniser, decoder: Path, joiner: Path) -> None:
    """The decoder (predictor) and the joiner, of streams and whole utterances alike, as `from_transducer` takes them.

    An LSTM's decoder has its state as further input and output (`LstmDecoderOnnx`).
    """
    model.select_output("transducer")  # refuses models without one
    assert model.transducer is not None and model.settings.transducer is not None
    context, width = model.transducer.predictor.context, model.transducer.output.in_features
    facts = {"model_type": "transducer", "context_size": context, "vocab_size": model.outputs}
    rows, inputs, outputs = {0: "N"}, ["y"], ["decoder_out"]
    if model.settings.transducer.predictor == "stateless":
        network: nn.Module = DecoderOnnx(model.transducer)
        args: tuple[Tensor, ...] = (torch.zeros(1, context, dtype=torch.int64),)
    else:
        inputs, outputs = [*inputs, "state"], [*outputs, "new_state"]
        network = LstmDecoderOnnx(model.transducer)
        args = (torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2, model.settings.transducer.dim))
    write(network, args, decoder, inputs, outputs, dict.fromkeys([*inputs, *outputs], rows), facts)
    frames, names = torch.zeros(1, width), ["encoder_out", "decoder_out"]
    axes = dict.fromkeys([*names, "logit"], rows)
    write(JoinerOnnx(model.transducer), (frames, frames), joiner, names, ["logit"], axes, {"joiner_dim": width})


def transducer_obstacle(model: Recogniser) -> str:
    """Why sherpa-onnx cannot decode a model's transducer; empty where it can."""
    front, settings = model.settings.front_end, model.settings.transducer
    if settings is None:
        return "this model has no transducer; train one with model.transducer: {}"
    if settings.predictor != "stateless":
        return f"sherpa-onnx's predictors see the last units alone (predictor: stateless), not {settings.predictor}"
    if front.input != "fbank" or front.mels != 80:
        return "sherpa-onnx's transducers are on 80-dimensional Fbank (front_end.input: fbank)"
    return ""


def write_zipformer(graph: StreamGraph, path: Path, output: str) -> None:
    """A graph with the states and metadata that sherpa-onnx expects of a zipformer2; output: the name of its first."""
    whole = ZipformerOnnx(graph)
    states = whole.states()
    inputs, outputs = ["x", *states], [output, *(f"new_{name}" for name in states)]
    axes = {"x": {0: "N"}, output: {0: "N"}}
    axes |= {prefix + name: {axis: "N"} for name, (_, axis) in states.items() for prefix in ("", "new_")}
    x = torch.zeros(1, graph.input_size, graph.settings.front_end.mels)
    write(whole, (x, *(zeros for zeros, _ in states.values())), path, inputs, outputs, axes, whole.metadata())


def zipformer_obstacle(model: Recogniser) -> str:
    """Why sherpa-onnx cannot stream a model; empty where it can."""
    front, sinks = model.settings.front_end, model.settings.streaming.sink_frames
    if front.input != "fbank" or front.mels != 80:
        reads = "the waveform" if front.input == "waveform" else f"{front.mels} mels"
        return (
            f"sherpa-onnx streams models on 80-dimensional Fbank (front_end.input: fbank), and this one reads {reads}"
        )
    if sinks:
        return f"sherpa-onnx's states have no place for attention sinks (streaming.sink_frames: {sinks})"
    return ""


def export_whole(model: Recogniser, path: Path, output: str = "main") -> None:
    """Whole utterances: `from_zipformer_ctc` for Fbank, `from_omnilingual_asr_ctc` for waveform models (`WaveOnnx`).

    Of a transducer on Fbank: the encoder of `OfflineRecognizer.from_transducer`.
    """
    graph, front = WholeGraph(model, output), model.settings.front_end
    vocabulary = {"vocab_size": model.outputs, "version": 1}
    if front.input == "waveform":
        first = "encoder_out" if output == "transducer" else "logits"
        axes = {"x": {0: "N", 1: "samples"}, first: {0: "N", 1: "T"}}
        x = torch.randn(1, 4 * front.receptive + 1600)
        whole = WaveOnnx(graph, float(model.front_end.gain))  # type: ignore[arg-type]
        facts = {"model_type": "distill_whole" if output == "transducer" else "omnilingual-asr", **vocabulary}
        write(whole, (x, torch.tensor(1.0)), path, ["x", "undo"], [first], axes, facts, ["undo"])
        return
    names = ["encoder_out", "encoder_out_lens"] if output == "transducer" else ["log_probs", "log_probs_len"]
    axes = {"x": {0: "N", 1: "J"}, "x_lens": {0: "N"}, names[0]: {0: "N", 1: "T"}, names[1]: {0: "N"}}
    x, lens = torch.randn(2, 120, front.mels), torch.tensor([120, 97])
    facts = {"model_type": "zipformer2_ctc", "subsampling_factor": front.stride, **vocabulary}
    write(FbankOnnx(graph), (x, lens), path, ["x", "x_lens"], names, axes, facts)


def write(
    module: nn.Module, args: tuple, path: Path, inputs: Sequence[str], outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]], metadata: Mapping[str, Any], optional: Sequence[str] = (),
) -> None:  # fmt: skip
    """Trace, check and write one file with its metadata, under a temporary name first.

    optional: inputs that a runtime may leave out, as sherpa-onnx does: they are then as in `args`.
    """
    with replacing(path) as temporary, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing notes every size that is fixed, as it is meant to be
        torch.onnx.export(
            module.eval(), args, str(temporary), input_names=list(inputs), output_names=list(outputs),
            dynamic_axes=axes, opset_version=OPSET, dynamo=False,
        )  # fmt: skip
        content = onnx.load(str(temporary))
        for name in optional:
            value = args[inputs.index(name)].numpy()
            content.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
        onnx.checker.check_model(content)
        onnx.helper.set_model_props(content, {key: str(value) for key, value in metadata.items()})
        onnx.save(content, str(temporary))
