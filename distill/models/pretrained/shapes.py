"""Model settings that fit the tensors of a checkpoint: from their shapes, from its own settings, or assumed."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from distill.config.model import Model

STRIDES = (5, 2, 2, 2, 2, 2, 2)
"""Of the seven layers of wav2vec 2.0, HuBERT and WavLM."""


@dataclass(frozen=True)
class Stated:
    """Settings of a source that its tensors do not show; None where it does not state them."""

    heads: int | None = None
    strides: tuple[int, ...] | None = None
    norm_first: bool | None = None
    normalises: bool | None = None  # the waveform, per utterance
    eps: float = 1e-7  # added to its variance there
    layer_norms: bool | None = None  # in the feature extractor, on all layers (False: group norm on the first)
    sizes: Mapping[str, tuple[str, Any]] = field(default_factory=dict)  # by our names: (their key, its value)
    furthest: int | None = None  # distance of WavLM's last bucket
    units: tuple[str, ...] | None = None  # of its prediction layer, blank and word boundary by our names
    labels: tuple[str, ...] = ()  # names of the sets of labels that it is pre-trained with


@dataclass(frozen=True)
class Shape:
    """Settings of a model, and those among them that are assumed: {dotted key: value}."""

    settings: Model
    assumed: Mapping[str, Any] = field(default_factory=dict)


def shape_of(tensors: Mapping[str, Tensor], stated: Stated, where: str) -> Shape:
    """Settings of the model with these tensors (our names); raises ValueError where they are no whole model."""
    front, encoder = _front_end(tensors, where), _encoder(tensors, where)
    single = len(front["layers"]) == 1  # its norm may be of either kind: the tensors are the same
    if single and stated.layer_norms:
        front |= {"norm": "frame", "norm_layers": "all"}
    compare(stated, tensors, front, encoder, where)
    layer_norms = front["norm"] == "frame"  # fairseq normalises waveforms for its Large models only
    normalises = layer_norms if stated.normalises is None else stated.normalises
    known: dict[str, tuple[Any, Any]] = {  # key: (stated value or None, the assumed one)
        "front_end.strides": (stated.strides, STRIDES[: len(front["layers"])]),
        "front_end.waveform": (stated.normalises, layer_norms),
        "encoder.heads": (encoder.get("heads", stated.heads), max(1, encoder["dim"] // 64)),
        "encoder.norm_first": (stated.norm_first, layer_norms),
    }
    if "relative_buckets" in encoder:
        known["encoder.relative_distance"] = (stated.furthest, 800)
    values = {key: assumed if value is None else value for key, (value, assumed) in known.items()}
    values["front_end.waveform"] = "utterance" if normalises else "none"
    if encoder["dim"] % max(1, values["encoder.heads"]):
        raise ValueError(f"{where}: {values['encoder.heads']} attention heads do not divide width {encoder['dim']}")
    strides = values["front_end.strides"]
    if len(strides) != len(front["layers"]):
        raise ValueError(f"{where}: {len(front['layers'])} convolutions, but strides {list(strides)}")
    assumed = {key: values[key] for key, (value, _) in known.items() if value is None}
    if single and stated.layer_norms is None:
        assumed |= {"front_end.norm": front["norm"], "front_end.norm_layers": front["norm_layers"]}
    front["layers"] = [(*shape, stride) for shape, stride in zip(front["layers"], strides)]
    front |= {"waveform": values["front_end.waveform"], "waveform_eps": stated.eps}
    encoder |= {key.removeprefix("encoder."): value for key, value in values.items() if key.startswith("encoder.")}
    return Shape(Model.model_validate({"front_end": front, "encoder": encoder}), assumed)


def compare(
    stated: Stated, tensors: Mapping[str, Tensor], front: Mapping[str, Any], encoder: Mapping[str, Any], where: str
) -> None:
    """ValueError naming every setting of the source that its tensors contradict."""
    shown = {
        "channels": [channels for channels, _ in front["layers"]], "kernels": [kernel for _, kernel in front["layers"]],
        "convolutions": len(front["layers"]), "bias": front["bias"], "layer_norms": front["norm"] == "frame",
        "relative_buckets": 0, **encoder, "mels": front.get("mels"),
    }  # fmt: skip
    if "head.output.weight" in tensors:
        shown["outputs"] = len(tensors["head.output.weight"])
    wrong = [
        f"{key} {value} where the tensors have {shown[name]}"
        for name, (key, value) in stated.sizes.items()
        if name in shown and value is not None and value != shown[name]
    ]
    if wrong:
        raise ValueError(f"{where}: its settings are not those of its tensors: {'; '.join(wrong)}")


def convolutions_of(tensors: Mapping[str, Tensor], where: str) -> list[Tensor]:
    """Weights (C, C_in, K) of the front-end's convolutions; ValueError for tensors that are none."""
    convolutions = _numbered(tensors, r"front_end\.layers\.(\d+)\.conv\.weight", where, "feature extractor")
    for n, weight in enumerate(convolutions):
        _check_dimensions(weight, 3, f"convolution {n} of the feature extractor", where)
    return convolutions


def widths_of(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """dim, ffn_dim and layers of the encoder; ValueError for tensors that have none."""
    up = _numbered(tensors, r"encoder\.blocks\.(\d+)\.ffn_up\.weight", where, "transformer")
    _check_dimensions(up[0], 2, "the first feed-forward layer", where)
    return {"dim": up[0].shape[1], "ffn_dim": up[0].shape[0], "layers": len(up)}


def _front_end(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    convolutions = convolutions_of(tensors, where)
    normed = [n for n in range(len(convolutions)) if f"front_end.layers.{n}.norm.weight" in tensors]
    if normed not in ([0], list(range(len(convolutions)))):
        raise ValueError(f"{where}: convolutions {normed} have a norm; expected the first or all of them to have one")
    every = len(normed) == len(convolutions) > 1
    return {
        "layers": [(weight.shape[0], weight.shape[2]) for weight in convolutions],
        "bias": "front_end.layers.0.conv.bias" in tensors,
        "norm": "frame" if every else "group",
        "norm_layers": "all" if every else "first",
    }


def _encoder(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    encoder = widths_of(tensors, where)
    positions = tensors.get("encoder.positions.conv.parametrizations.weight.original1")
    if positions is None:
        raise ValueError(f"{where}: no weight-normed positional convolution, which wav2vec 2.0 models have")
    _check_dimensions(positions, 3, "the positional convolution", where)
    dim, (width, per_group, kernel) = encoder["dim"], positions.shape
    if width != dim or dim % per_group:
        raise ValueError(f"{where}: positional convolution {tuple(positions.shape)} does not fit a width of {dim}")
    projection = tensors.get("encoder.projection.weight")
    encoder |= {
        "position_kernel": kernel, "position_groups": dim // per_group,
        "always_project": projection is not None and projection.shape[1] == dim,
    }  # fmt: skip
    relative = tensors.get("encoder.relative.bias.weight")
    if relative is not None:
        _check_dimensions(relative, 2, "the relative position bias", where)
        encoder["relative_buckets"], encoder["heads"] = relative.shape
    return encoder


def _check_dimensions(tensor: Tensor, dimensions: int, what: str, where: str) -> None:
    """ValueError for a tensor of another number of dimensions, or without elements."""
    if tensor.ndim != dimensions or not tensor.numel():
        raise ValueError(f"{where}: {what} has shape {tuple(tensor.shape)}, expected {dimensions} dimensions")


def _numbered(tensors: Mapping[str, Tensor], pattern: str, where: str, what: str) -> list[Tensor]:
    layers = {int(match[1]): tensor for name, tensor in tensors.items() if (match := re.fullmatch(pattern, name))}
    if not layers or sorted(layers) != list(range(len(layers))):
        raise ValueError(f"{where}: layers {sorted(layers)} of the {what}; expected all from 0 on")
    return [layers[n] for n in range(len(layers))]


KINDS: dict[str, Callable[[Any], bool]] = {
    "a whole number from 1 on": lambda value: type(value) is int and value > 0,
    "a list of whole numbers from 1 on": lambda value: (
        isinstance(value, (list, tuple)) and all(type(item) is int and item > 0 for item in value)
    ),
    "true or false": lambda value: isinstance(value, bool),
}
NUMBER, NUMBERS, FLAG = KINDS


def stated_value(settings: Mapping[str, Any], key: str, expected: str, where: str) -> Any:
    """The value of a key, None where there is none; ValueError if it is not of the expected kind (of `KINDS`)."""
    value = settings.get(key)
    if value is not None and not KINDS[expected](value):
        raise ValueError(f"{where}: {key} is {value!r}, expected {expected}")
    return value


def stated_by_hugging_face(config: Mapping[str, Any], preprocessor: Mapping[str, Any], where: str) -> Stated:
    """From config.json and preprocessor_config.json; ValueError for a variant that is not supported."""
    expected = {
        "hidden_act": "gelu", "feat_extract_activation": "gelu", "layer_norm_eps": 1e-5, "feat_proj_layer_norm": True,
        "conv_pos_batch_norm": False, "add_adapter": False, "adapter_attn_dim": None,
    }  # fmt: skip
    other = {key: config[key] for key, value in expected.items() if config.get(key, value) != value}
    if other:
        raise ValueError(
            f"{where}: {other} in its config.json; only { ({key: expected[key] for key in other}) } is supported"
        )
    norm = config.get("feat_extract_norm")
    if norm not in (None, "group", "layer"):
        raise ValueError(f"{where}: feat_extract_norm '{norm}' in its config.json; expected group or layer")
    layer_norms = None if norm is None else norm == "layer"
    keys = {
        "channels": "conv_dim", "kernels": "conv_kernel", "convolutions": "num_feat_extract_layers",
        "bias": "conv_bias", "dim": "hidden_size", "ffn_dim": "intermediate_size", "layers": "num_hidden_layers",
        "outputs": "vocab_size", "heads": "num_attention_heads", "position_kernel": "num_conv_pos_embeddings",
        "position_groups": "num_conv_pos_embedding_groups",
    }  # fmt: skip
    if config.get("model_type") == "wavlm":
        keys["relative_buckets"] = "num_buckets"
    strides = stated_value(config, "conv_stride", NUMBERS, where)
    return Stated(
        heads=stated_value(config, "num_attention_heads", NUMBER, where),
        strides=None if strides is None else tuple(strides),
        norm_first=stated_value(config, "do_stable_layer_norm", FLAG, where) or False,
        normalises=preprocessor.get("do_normalize"),
        furthest=stated_value(config, "max_bucket_distance", NUMBER, where),
        layer_norms=layer_norms,
        sizes={
            **{name: (key, config.get(key)) for name, key in keys.items()},
            "layer_norms": ("feat_extract_norm: layer =", layer_norms),
        },
    )


def stated_by_fairseq(settings: Mapping[str, Any], where: str) -> Stated:
    """From the settings in a checkpoint, nested by hydra or flat; a fine-tuned model's contain the first ones."""
    flat = _flat_fairseq(settings)
    activation = flat.get("activation_fn", "gelu")
    if activation != "gelu":
        raise ValueError(f"{where}: activation {activation}; only gelu is supported")
    mode = flat.get("extractor_mode")
    mode = mode if isinstance(mode, str) else None
    if mode not in (None, "default", "layer_norm"):
        raise ValueError(f"{where}: extractor_mode '{mode}'; expected default or layer_norm")
    layers = None if flat.get("conv_feature_layers") is None else read_list(str(flat["conv_feature_layers"]))
    if layers is not None and not all(isinstance(layer, tuple) and len(layer) == 3 for layer in layers):
        raise ValueError(f"{where}: conv_feature_layers {layers}; expected (channels, kernel, stride) each")
    keys = {
        "dim": "encoder_embed_dim", "ffn_dim": "encoder_ffn_embed_dim", "layers": "encoder_layers", "bias": "conv_bias",
        "heads": "encoder_attention_heads", "position_kernel": "conv_pos", "position_groups": "conv_pos_groups",
    }  # fmt: skip
    sizes = {name: (key, flat.get(key)) for name, key in keys.items()}
    if layers is not None:
        sizes["channels"] = ("channels of conv_feature_layers", [layer[0] for layer in layers])
        sizes["kernels"] = ("kernels of conv_feature_layers", [layer[1] for layer in layers])
    layer_norms = None if mode is None else mode == "layer_norm"
    return Stated(
        heads=stated_value(flat, "encoder_attention_heads", NUMBER, where),
        strides=None if layers is None else tuple(stride for *_, stride in layers),
        norm_first=stated_value(flat, "layer_norm_first", FLAG, where),
        normalises=stated_value(flat, "normalize", FLAG, where),
        furthest=stated_value(flat, "max_distance", NUMBER, where),
        layer_norms=layer_norms,
        labels=tuple(labels) if isinstance(labels := flat.get("labels"), list) else (),
        sizes={**sizes, "layer_norms": ("extractor_mode: layer_norm =", layer_norms)},
    )


def _flat_fairseq(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One level of model settings over those of the task; those inside `w2v_args` have precedence."""
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
    """fairseq's lists of layers, "[(512, 10, 5)] + [(512, 3, 2)] * 4", read without evaluating code."""

    def value(node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=int(number)):
                return number
            case ast.List(elts=items):
                return [value(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(value(item) for item in items)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return value(left) + value(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=right):
                return value(left) * value(right)
        raise ValueError(f"cannot read '{text}' as a list of layers")

    return value(ast.parse(text, mode="eval").body)
