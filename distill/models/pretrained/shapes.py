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
    known = _known(said, len(front["layers"]), front["norm"] == "frame", encoder)
    assumed = {key: value for key, (value, sure) in known.items() if not sure}
    values = {key: value for key, (value, _) in known.items()}
    strides = values["front_end.strides"]
    if len(strides) != len(front["layers"]):
        raise ValueError(f"{where}: {len(front['layers'])} convolutions, but strides {list(strides)}")
    front["layers"] = [(*shape, stride) for shape, stride in zip(front["layers"], strides)]
    front["waveform"] = values["front_end.waveform"]
    encoder["heads"] = values["encoder.heads"]
    encoder["norm_first"] = values["encoder.norm_first"]
    if "relative_buckets" in encoder:
        encoder["relative_distance"] = values["encoder.relative_distance"]
    return Shape(Model.model_validate({"front_end": front, "encoder": encoder}), assumed)


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
    (ffn_dim, dim), (_, per_group, kernel) = up[0].shape, positions.shape
    projection = tensors.get("encoder.projection.weight")
    encoder = {
        "dim": dim, "ffn_dim": ffn_dim, "layers": len(up), "position_kernel": kernel,
        "position_groups": dim // per_group, "always_project": projection is not None and projection.shape[1] == dim,
    }  # fmt: skip
    relative = tensors.get("encoder.relative.bias.weight")
    if relative is not None:
        encoder["relative_buckets"], encoder["heads"] = relative.shape
    return encoder


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
    return Said(
        heads=config.get("num_attention_heads"),
        strides=tuple(config["conv_stride"]) if "conv_stride" in config else None,
        norm_first=config.get("do_stable_layer_norm", False),
        normalises=preprocessor.get("do_normalize"),
        furthest=config.get("max_bucket_distance"),
    )


def said_by_fairseq(settings: Mapping[str, Any], where: str) -> Said:
    """From the settings in a checkpoint, nested by hydra or flat; those of a fine-tuned model hold the first ones."""
    flat = _flat_fairseq(settings)
    activation = flat.get("activation_fn", "gelu")
    if activation != "gelu":
        raise ValueError(f"{where}: activation {activation}; only gelu is built")
    layers = flat.get("conv_feature_layers")
    return Said(
        heads=flat.get("encoder_attention_heads"),
        strides=None if layers is None else tuple(int(stride) for *_, stride in read_list(layers)),
        norm_first=flat.get("layer_norm_first"),
        normalises=flat.get("normalize"),
        furthest=flat.get("max_distance"),
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
