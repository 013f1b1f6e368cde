"""Settings of Whisper's encoder for its tensors, of either source (Radford et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distill.config.model import Model
from distill.models.encoder import sinusoids
from distill.models.pretrained.shapes import NUMBER, Shape, Stated, compare, convolutions_of, stated_value, widths_of

STRIDES = (1, 2)
TAIL = 50
"""Frames of silence behind an utterance: 1 s."""
HEAD_DIM = 64
"""Of all published models: assumed where the heads are not stated."""
POSITIONS = ("encoder.embed_positions.weight", "encoder/position_encodings/encodings")
"""Endings of the names of the encoder's positions, by source."""
ROUNDED = 4e-3  # of sines in bfloat16


def whisper_shape(tensors: Mapping[str, Tensor], stated: Stated, where: str) -> Shape:
    """As `shape_of`, of Whisper's encoder; the decoder is not looked at."""
    convolutions, encoder = convolutions_of(tensors, where), widths_of(tensors, where)
    if len(convolutions) != len(STRIDES):
        raise ValueError(f"{where}: {len(convolutions)} convolutions; Whisper has {len(STRIDES)}")
    front: dict[str, Any] = {
        "input": "log_mel", "mels": convolutions[0].shape[1], "bias": True, "norm": "frame", "norm_layers": "none",
        "waveform": "none", "tail": TAIL, "layers": [(weight.shape[0], weight.shape[2]) for weight in convolutions],
    }  # fmt: skip
    compare(stated, tensors, front, encoder, where)
    heads = stated.heads or max(1, encoder["dim"] // HEAD_DIM)
    if encoder["dim"] % heads:
        raise ValueError(f"{where}: {heads} attention heads do not divide width {encoder['dim']}")
    front["layers"] = [(*layer, stride) for layer, stride in zip(front["layers"], STRIDES)]
    encoder |= {"heads": heads, "norm_first": True, "positions": "sinusoid", "feature_norm": False}
    settings = Model.model_validate({"front_end": front, "encoder": encoder})
    return Shape(settings, {} if stated.heads else {"encoder.heads": heads})


def check_positions(tensors: Mapping[str, Tensor], where: str) -> None:
    """ValueError where the encoder's positions are not the sinusoids that ours computes."""
    for name, table in tensors.items():
        if name.endswith(POSITIONS) and not (
            table.ndim == 2 and table.shape[1] % 2 == 0 and table.shape[1] > 2
            and bool(((table.float() - sinusoids(*table.shape)).abs() < ROUNDED).all())
        ):  # fmt: skip
            raise ValueError(f"{where}: {name} are no sinusoids, as Whisper has; trained positions are not supported")


def stated_by_whisper(config: Mapping[str, Any], where: str) -> Stated:
    """From config.json; ValueError for a variant that is not supported."""
    expected = {"activation_function": "gelu", "scale_embedding": False}
    other = {key: config[key] for key, value in expected.items() if config.get(key, value) != value}
    if other:
        raise ValueError(
            f"{where}: {other} in its config.json; only { ({key: expected[key] for key in other}) } is supported"
        )
    keys = {"dim": "d_model", "ffn_dim": "encoder_ffn_dim", "layers": "encoder_layers", "mels": "num_mel_bins"}
    return Stated(
        heads=stated_value(config, "encoder_attention_heads", NUMBER, where),
        sizes={name: (key, config.get(key)) for name, key in keys.items()},
    )
