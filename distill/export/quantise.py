"""Dynamic quantisation of an exported graph to 8 bits."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import GraphProto, NodeProto

from distill.files import replacing


def quantise(source: Path, target: Path, keep: Sequence[str] = ("layers.0/", "/head/")) -> None:
    """Weights of matrix products to int8 per output channel, activations at run time (dynamic quantisation).

    keep: parts of node names that stay fp32: the first convolution, whose input has the range of the
    whole waveform, and the head; both are small. Weights take 7 bits, so that processors without VNNI,
    which add pairs of products in 16 bits, cannot overflow.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    content = onnx.load(str(source))
    kept = [node.name for node in content.graph.node if any(part in node.name for part in keep)]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # a line for every node that the quantiser leaves alone
    try:
        with replacing(target) as temporary:
            quantize_dynamic(
                str(source), str(temporary), op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
                reduce_range=True, weight_type=QuantType.QInt8, nodes_to_exclude=kept,
                extra_options={"MatMulConstBOnly": True},
            )  # fmt: skip
            quantised = onnx.load(str(temporary))
            quantise_before_windows(quantised.graph)
            onnx.helper.set_model_props(quantised, {item.key: item.value for item in content.metadata_props})
            onnx.save(quantised, str(temporary))
    finally:
        logging.disable(disabled)


def quantise_before_windows(graph: GraphProto) -> None:
    """Quantise a tensor before overlapping windows are cut from it, instead of the larger concatenated windows.

    The range is then that of the whole tensor, which its windows cover except for frames at the end.
    """
    producers = {output: node for node in graph.node for output in node.output}
    for node in [node for node in graph.node if node.op_type == "DynamicQuantizeLinear"]:
        windows, quantised = node.input[0], node.output[0]
        steps, sources = _cutting(windows, producers)
        if len(sources) != 1 or not any(step.op_type == "Concat" for step in steps):
            continue
        names = {name: f"{name}_8bit" for step in steps for name in step.output} | {windows: quantised}
        names[sources[0]] = node.output[0] = f"{sources[0]}_8bit"
        node.input[0] = sources[0]
        place = list(graph.node).index(node) + 1
        for step in reversed(steps):
            copy = NodeProto()
            copy.CopyFrom(step)
            copy.name = f"{step.name}_8bit"
            copy.input[0:] = [names.get(name, name) for name in step.input]
            copy.output[0:] = [names[name] for name in step.output]
            graph.node.insert(place, copy)
        _drop_unused(graph, windows, producers)


def _cutting(name: str, producers: Mapping[str, NodeProto]) -> tuple[list[NodeProto], list[str]]:
    """The nodes that only rearrange values to make a tensor, in order, and the tensors that the values are from."""
    node = producers.get(name)
    if node is None or node.op_type not in ("Concat", "Slice", "Reshape"):
        return [], [name]
    steps: list[NodeProto] = []
    sources: list[str] = []
    for tensor in node.input if node.op_type == "Concat" else node.input[:1]:
        before, origins = _cutting(tensor, producers)
        steps += [step for step in before if step not in steps]
        sources += [origin for origin in origins if origin not in sources]
    return [*steps, node], sources


def _drop_unused(graph: GraphProto, name: str, producers: Mapping[str, NodeProto]) -> None:
    """Remove the node of a tensor that nothing uses, then those that only it used."""
    used = {tensor for node in graph.node for tensor in node.input} | {output.name for output in graph.output}
    if name not in used and name in producers:
        graph.node.remove(producers[name])
        for tensor in producers[name].input:
            _drop_unused(graph, tensor, producers)
