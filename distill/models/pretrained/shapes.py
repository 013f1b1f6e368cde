"""The settings of a model that some tensors fit: what tensors show, what the source says, what is assumed."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from distill.config.model import Model

STRIDES = (5, 2, 2, 2, 2, 2, 2)
"""Of the seven layers of wav2vec 2.0, HuBERT and WavLM."""


@dataclass(frozen=True)
class Said:
    """What a source says of a model and its tensors do not show; None where it does not say."""

    heads: int | None = None
    strides: tuple[int, ...] | None = None
    norm_first: bool | None = None
    normalises: bool | None = None  # the waveform, per utterance
    eps: float = 1e-7  # added to its variance there
    layer_norms: bool | None = None  # in the feature extractor, on all layers (False: group norm on the first)
    sizes: Mapping[str, tuple[str, Any]] = field(default_factory=dict)  # by our names: (their key, what it says)
    furthest: int | None = None  # distance of WavLM's last bucket
    units: tuple[str, ...] | None = None  # of its prediction layer, blank and word boundary by our names


@dataclass(frozen=True)
class Shape:
    """Settings of a model, and what of them is assumed rather than read: {dotted key: value}."""

    settings: Model
    assumed: Mapping[str, Any] = field(default_factory=dict)


def shape_of(tensors: Mapping[str, Tensor], said: Said, where: str) -> Shape:
    """Settings of the model with these tensors (our names); raises ValueError where they are no whole model."""
    front, encoder = _front_end(tensors, where), _encoder(tensors, where)
    single = len(front["layers"]) == 1  # whose norm may be of either kind: its tensors are the same
    if single and said.layer_norms:
        front |= {"norm": "frame", "norm_layers": "all"}
    _compare(said, _sizes(tensors, front, encoder), where)
    known = _known(said, len(front["layers"]), front["norm"] == "frame", encoder)
    if encoder["dim"] % max(1, known["encoder.heads"][0]):
        raise ValueError(f"{where}: {known['encoder.heads'][0]} attention heads do not divide width {encoder['dim']}")
    assumed = {key: value for key, (value, sure) in known.items() if not sure}
    values = {key: value for key, (value, _) in known.items()}
    strides = values["front_end.strides"]
    if len(strides) != len(front["layers"]):
        raise ValueError(f"{where}: {len(front['layers'])} convolutions, but strides {list(strides)}")
    front["layers"] = [(*shape, stride) for shape, stride in zip(front["layers"], strides)]
    if single and said.layer_norms is None:
        assumed |= {"front_end.norm": front["norm"], "front_end.norm_layers": front["norm_layers"]}
    front |= {"waveform": values["front_end.waveform"], "waveform_eps": said.eps}
    encoder["heads"] = values["encoder.heads"]
    encoder["norm_first"] = values["encoder.norm_first"]
    if "relative_buckets" in encoder:
        encoder["relative_distance"] = values["encoder.relative_distance"]
    return Shape(Model.model_validate({"front_end": front, "encoder": encoder}), assumed)


def _sizes(tensors: Mapping[str, Tensor], front: Mapping[str, Any], encoder: Mapping[str, Any]) -> dict[str, Any]:
    """What tensors show, by the keys of `Said.sizes`."""
    found = {
        "channels": [channels for channels, _ in front["layers"]], "kernels": [kernel for _, kernel in front["layers"]],
        "convolutions": len(front["layers"]), "bias": front["bias"], "layer_norms": front["norm"] == "frame",
        "relative_buckets": encoder.get("relative_buckets", 0),
        **{key: encoder[key] for key in ("dim", "ffn_dim", "layers", "position_kernel", "position_groups")},
    }  # fmt: skip
    if "heads" in encoder:
        found["heads"] = encoder["heads"]
    if "head.output.weight" in tensors:
        found["outputs"] = len(tensors["head.output.weight"])
    return found


def _compare(said: Said, found: Mapping[str, Any], where: str) -> None:
    """ValueError naming every setting of the source that its tensors contradict."""
    wrong = [
        f"{key} {value} where the tensors have {found[name]}"
        for name, (key, value) in said.sizes.items()
        if name in found and value is not None and value != found[name]
    ]
    if wrong:
        raise ValueError(f"{where}: its settings are not those of its tensors: {'; '.join(wrong)}")


def _known(said: Said, convolutions: int, layer_norms: bool, encoder: Mapping[str, Any]) -> dict[str, tuple[Any, bool]]:
    """{key: (value, whether the source says so)}."""

    def either(value: Any, otherwise: Any) -> tuple[Any, bool]:
        return (otherwise, False) if value is None else (value, True)

    normalises, sure = either(said.normalises, layer_norms)  # fairseq normalises for its Large models only
    known = {
        "front_end.strides": either(said.strides, STRIDES[:convolutions]),
        "front_end.waveform": ("utterance" if normalises else "none", sure),
        "encoder.heads": either(encoder.get("heads", said.heads), max(1, encoder["dim"] // 64)),
        "encoder.norm_first": either(said.norm_first, layer_norms),
    }
    if "relative_buckets" in encoder:
        known["encoder.relative_distance"] = either(said.furthest, 800)
    return known


def _front_end(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    convolutions = _numbered(tensors, r"front_end\.layers\.(\d+)\.conv\.weight", where, "feature extractor")
    for n, weight in enumerate(convolutions):
        _whole(weight, 3, f"convolution {n} of the feature extractor", where)
    normed = [n for n in range(len(convolutions)) if f"front_end.layers.{n}.norm.weight" in tensors]
    if normed not in ([0], list(range(len(convolutions)))):
        raise ValueError(f"{where}: convolutions {normed} have a norm; the first or all of them are expected to")
    every = len(normed) == len(convolutions) > 1
    return {
        "layers": [(weight.shape[0], weight.shape[2]) for weight in convolutions],
        "bias": "front_end.layers.0.conv.bias" in tensors,
        "norm": "frame" if every else "group",
        "norm_layers": "all" if every else "first",
    }


def _encoder(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    up = _numbered(tensors, r"encoder\.blocks\.(\d+)\.ffn_up\.weight", where, "transformer")
    positions = tensors.get("encoder.positions.conv.parametrizations.weight.original1")
    if positions is None:
        raise ValueError(f"{where}: no weight-normed positional convolution, which wav2vec 2.0 models have")
    _whole(up[0], 2, "the first feed-forward layer", where)
    _whole(positions, 3, "the positional convolution", where)
    (ffn_dim, dim), (width, per_group, kernel) = up[0].shape, positions.shape
    if width != dim or dim % per_group:
        raise ValueError(f"{where}: positional convolution {tuple(positions.shape)} does not fit a width of {dim}")
    projection = tensors.get("encoder.projection.weight")
    encoder = {
        "dim": dim, "ffn_dim": ffn_dim, "layers": len(up), "position_kernel": kernel,
        "position_groups": dim // per_group, "always_project": projection is not None and projection.shape[1] == dim,
    }  # fmt: skip
    relative = tensors.get("encoder.relative.bias.weight")
    if relative is not None:
        _whole(relative, 2, "the relative position bias", where)
        encoder["relative_buckets"], encoder["heads"] = relative.shape
    return encoder


def _whole(tensor: Tensor, dimensions: int, what: str, where: str) -> None:
    """ValueError for a tensor of another number of dimensions, or without numbers."""
    if tensor.ndim != dimensions or not tensor.numel():
        raise ValueError(f"{where}: {what} has shape {tuple(tensor.shape)}, expected {dimensions} dimensions")


def _numbered(tensors: Mapping[str, Tensor], pattern: str, where: str, what: str) -> list[Tensor]:
    found = {int(match[1]): tensor for name, tensor in tensors.items() if (match := re.fullmatch(pattern, name))}
    if not found or sorted(found) != list(range(len(found))):
        raise ValueError(f"{where}: layers {sorted(found)} of the {what}; expected all from 0 on")
    return [found[n] for n in range(len(found))]


def said_by_hugging_face(config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> Said:
    """From config.json and preprocessor_config.json; ValueError for a variant that is not built here."""
    expected = {
        "hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5, "feat_proj_layer_norm": True,
        "conv_pos_batch_norm": False, "add_adapter": False, "adapter_attn_dim": None,
    }  # fmt: skip
    other = {key: config[key] for key, value in expected.items() if config.get(key, value) != value}
    if other:
        raise ValueError(
            f"{where}: {other} in its config.json; only { ({key: expected[key] for key in other}) } is built"
        )
    norm = config.get("feat_extract_norm")
    if norm not in (None, "group", "layer"):
        raise ValueError(f"{where}: feat_extract_norm '{norm}' in its config.json; expected group or layer")
    layer_norms = None if norm is None else norm == "layer"
    sizes = {
        "channels": "conv_dim", "kernels": "conv_kernel", "convolutions": "num_feat_extract_layers",
        "bias": "conv_bias", "dim": "hidden_size", "ffn_dim": "intermediate_size", "layers": "num_hidden_layers",
        "outputs": "vocab_size",
        "heads": "num_attention_heads", "position_kernel": "num_conv_pos_embeddings",
        "position_groups": "num_conv_pos_embedding_groups",
    }  # fmt: skip
    said = {name: (key, config.get(key)) for name, key in sizes.items()}
    if config.get("model_type") == "wavlm":
        said["relative_buckets"] = ("num_buckets", config.get("num_buckets"))
    return Said(
        heads=number(config, "num_attention_heads", where),
        strides=numbers(config, "conv_stride", where),
        norm_first=flag(config, "do_stable_layer_norm", where) or False,
        normalises=preprocessor.get("do_normalize"),
        furthest=number(config, "max_bucket_distance", where),
        layer_norms=layer_norms,
        sizes={**said, "layer_norms": ("feat_extract_norm: layer =", layer_norms)},
    )


def number(settings: Mapping[str, Any], key: str, where: str) -> int | None:
    """A whole number from 1 on; None where it is not given; ValueError for anything else."""
    value = settings.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{where}: {key} is {value!r}, expected a whole number from 1 on")
    return value


def numbers(settings: Mapping[str, Any], key: str, where: str) -> tuple[int, ...] | None:
    """A list of whole numbers from 1 on; None where it is not given; ValueError for anything else."""
    values = settings.get(key)
    if values is None:
        return None
    if not isinstance(values, (list, tuple)) or not all(type(value) is int and value > 0 for value in values):
        raise ValueError(f"{where}: {key} is {values!r}, expected a list of whole numbers from 1 on")
    return tuple(values)


def flag(settings: Mapping[str, Any], key: str, where: str) -> bool | None:
    """True or false; None where it is not given; ValueError for anything else."""
    value = settings.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{where}: {key} is {value!r}, expected true or false")
    return value


def said_by_fairseq(settings: Mapping[str, Any], where: str) -> Said:
    """From the settings in a checkpoint, nested by hydra or flat; those of a fine-tuned model hold the first ones."""
    flat = _flat_fairseq(settings)
    activation = flat.get("activation_fn", "gelu")
    if activation != "gelu":
        raise ValueError(f"{where}: activation {activation}; only gelu is built")
    mode = flat.get("extractor_mode")
    mode = mode if isinstance(mode, str) else None
    if mode not in (None, "default", "layer_norm"):
        raise ValueError(f"{where}: extractor_mode '{mode}'; expected default or layer_norm")
    layers = None if flat.get("conv_feature_layers") is None else read_list(str(flat["conv_feature_layers"]))
    if layers is not None and not all(isinstance(layer, tuple) and len(layer) == 3 for layer in layers):
        raise ValueError(f"{where}: conv_feature_layers {layers}; expected (channels, kernel, stride) each")
    sizes = {
        "dim": "encoder_embed_dim", "ffn_dim": "encoder_ffn_embed_dim", "layers": "encoder_layers", "bias": "conv_bias",
        "heads": "encoder_attention_heads", "position_kernel": "conv_pos", "position_groups": "conv_pos_groups",
    }  # fmt: skip
    said = {name: (key, flat.get(key)) for name, key in sizes.items()}
    if layers is not None:
        said["channels"] = ("channels of conv_feature_layers", [layer[0] for layer in layers])
        said["kernels"] = ("kernels of conv_feature_layers", [layer[1] for layer in layers])
    layer_norms = None if mode is None else mode == "layer_norm"
    return Said(
        heads=number(flat, "encoder_attention_heads", where),
        strides=None if layers is None else tuple(stride for *_, stride in layers),
        norm_first=flag(flat, "layer_norm_first", where),
        normalises=flag(flat, "normalize", where),
        furthest=number(flat, "max_distance", where),
        layer_norms=layer_norms,
        sizes={**said, "layer_norms": ("extractor_mode: layer_norm =", layer_norms)},
    )


def _flat_fairseq(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One level of model settings over those of the task; inside of `w2v_args` wins."""
    flat: dict[str, Any] = {}
    for key in ("task", "model"):
        if isinstance(settings.get(key), Mapping):
            flat |= settings[key]
    flat |= {key: value for key, value in settings.items() if not isinstance(value, Mapping) and key not in flat}
    inner = flat.pop("w2v_args", settings.get("w2v_args"))
    if isinstance(inner, Mapping):
        flat |= {key: value for key, value in _flat_fairseq(inner).items() if value is not None}
    return flat


def read_list(text: str) -> list[tuple[int, ...]]:
    """fairseq's lists of layers, "[(512, 10, 5)] + [(512, 3, 2)] * 4", read without evaluating anything."""

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.List):
            return [value(item) for item in node.elts]
        if isinstance(node, ast.Tuple):
            return tuple(value(item) for item in node.elts)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return value(node.left) * value(node.right)
        raise ValueError(f"cannot read '{text}' as a list of layers")

    return value(ast.parse(text, mode="eval").body)
