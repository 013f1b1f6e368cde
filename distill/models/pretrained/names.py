"""One rename table per source of pre-trained models: their names of tensors and ours.

`{n}` stands for the number of a layer, a `*` at the end for "weight" or "bias".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

_POSITIONS = "encoder.positions.conv.parametrizations.weight.original"
_BLOCK = "encoder.blocks.{n}."
HEAD = ("head.output.weight", "head.output.bias")
"""The prediction layer, by our names."""
CONTRASTIVE, CODE_HEAD = "contrastive.", "hubert.head."
"""Beginnings of our names of what only pre-training uses: parameters of terms of the objective."""
_OF_FAIRSEQ = {
    "encoder.layers.{n}.self_attn.q_proj.*": _BLOCK + "attention.query.*",
    "encoder.layers.{n}.self_attn.v_proj.*": _BLOCK + "attention.value.*",
    "encoder.layers.{n}.self_attn.out_proj.*": _BLOCK + "attention.out.*",
    "encoder.layers.{n}.self_attn_layer_norm.*": _BLOCK + "attention_norm.*",
    "encoder.layers.{n}.fc1.*": _BLOCK + "ffn_up.*",
    "encoder.layers.{n}.fc2.*": _BLOCK + "ffn_down.*",
    "encoder.layers.{n}.final_layer_norm.*": _BLOCK + "ffn_norm.*",
}
"""Names in a block, all but the keys', of fairseq and of Whisper in transformers, which took them over."""


@dataclass(frozen=True)
class Table:
    """prefixes: of a model inside another one. names: theirs -> ours. left: beginnings of what is no part of ours."""

    prefixes: tuple[str, ...]
    names: Mapping[str, str]
    left: tuple[str, ...]
    families: str = "wav2vec 2.0, HuBERT or WavLM"

    def ours(self, name: str) -> str | None:
        """Our name of a tensor of theirs without prefix; None if there is none."""
        return next((ours for pair in self.names.items() if (ours := translated(name, *pair)) is not None), None)

    def bare(self, name: str) -> str:
        """A name without its prefixes."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return name


def translated(name: str, pattern: str, target: str) -> str | None:
    """`target` with the layer's number and the ending of a name that fits `pattern`; None if it does not."""
    text = re.escape(pattern).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\*", r"(?P<rest>weight|bias)")
    match = re.fullmatch(text, name)
    parts = match.groupdict() if match else {}
    return target.replace("{n}", parts.get("n", "")).replace("*", parts.get("rest", "")) if match else None


HUGGING_FACE = Table(
    prefixes=("wav2vec2.", "hubert.", "wavlm."),
    names={
        "feature_extractor.conv_layers.{n}.conv.*": "front_end.layers.{n}.conv.*",
        "feature_extractor.conv_layers.{n}.layer_norm.*": "front_end.layers.{n}.norm.*",
        "feature_projection.layer_norm.*": "encoder.feature_norm.*",
        "feature_projection.projection.*": "encoder.projection.*",
        "masked_spec_embed": "encoder.mask_embedding",
        "encoder.pos_conv_embed.conv.bias": "encoder.positions.conv.bias",
        "encoder.pos_conv_embed.conv.weight_g": _POSITIONS + "0",
        "encoder.pos_conv_embed.conv.weight_v": _POSITIONS + "1",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0": _POSITIONS + "0",
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1": _POSITIONS + "1",
        "encoder.layer_norm.*": "encoder.norm.*",
        "encoder.layers.{n}.attention.q_proj.*": _BLOCK + "attention.query.*",
        "encoder.layers.{n}.attention.k_proj.*": _BLOCK + "attention.key.*",
        "encoder.layers.{n}.attention.v_proj.*": _BLOCK + "attention.value.*",
        "encoder.layers.{n}.attention.out_proj.*": _BLOCK + "attention.out.*",
        "encoder.layers.{n}.layer_norm.*": _BLOCK + "attention_norm.*",
        "encoder.layers.{n}.feed_forward.intermediate_dense.*": _BLOCK + "ffn_up.*",
        "encoder.layers.{n}.feed_forward.output_dense.*": _BLOCK + "ffn_down.*",
        "encoder.layers.{n}.final_layer_norm.*": _BLOCK + "ffn_norm.*",
        "encoder.layers.0.attention.rel_attn_embed.weight": "encoder.relative.bias.weight",
        "encoder.layers.{n}.attention.gru_rel_pos_linear.*": _BLOCK + "attention.gate.*",
        "encoder.layers.{n}.attention.gru_rel_pos_const": _BLOCK + "attention.gate_scale",
        "lm_head.*": "head.output.*",
        "quantizer.codevectors": CONTRASTIVE + "quantiser.codewords",
        "quantizer.weight_proj.*": CONTRASTIVE + "quantiser.scores.*",
        "project_q.*": CONTRASTIVE + "project_codes.*",
        "project_hid.*": CONTRASTIVE + "project_hidden.*",
    },
    left=(),
)

FAIRSEQ = Table(
    prefixes=("w2v_encoder.", "w2v_model."),
    names={
        "feature_extractor.conv_layers.{n}.0.*": "front_end.layers.{n}.conv.*",
        "feature_extractor.conv_layers.{n}.2.*": "front_end.layers.{n}.norm.*",  # group norm
        "feature_extractor.conv_layers.{n}.2.1.*": "front_end.layers.{n}.norm.*",  # layer norm, between two transposes
        "layer_norm.*": "encoder.feature_norm.*",
        "post_extract_proj.*": "encoder.projection.*",
        "mask_emb": "encoder.mask_embedding",
        "encoder.pos_conv.0.bias": "encoder.positions.conv.bias",
        "encoder.pos_conv.0.weight_g": _POSITIONS + "0",
        "encoder.pos_conv.0.weight_v": _POSITIONS + "1",
        "encoder.pos_conv.0.parametrizations.weight.original0": _POSITIONS + "0",
        "encoder.pos_conv.0.parametrizations.weight.original1": _POSITIONS + "1",
        "encoder.layer_norm.*": "encoder.norm.*",
        **_OF_FAIRSEQ,
        "encoder.layers.{n}.self_attn.k_proj.*": _BLOCK + "attention.key.*",
        "encoder.layers.0.self_attn.relative_attention_bias.weight": "encoder.relative.bias.weight",
        "encoder.layers.{n}.self_attn.grep_linear.*": _BLOCK + "attention.gate.*",
        "encoder.layers.{n}.self_attn.grep_a": _BLOCK + "attention.gate_scale",
        "proj.*": "head.output.*",
        "quantizer.vars": CONTRASTIVE + "quantiser.codewords",
        "quantizer.weight_proj.*": CONTRASTIVE + "quantiser.scores.*",
        "project_q.*": CONTRASTIVE + "project_codes.*",
        "final_proj.*": CONTRASTIVE + "project_hidden.*",
    },
    left=("quantizer.", "target_glu."),
)
FAIRSEQ_HUBERT = replace(
    FAIRSEQ,
    names={**FAIRSEQ.names, "final_proj.*": CODE_HEAD + "projection.*", "label_embs_concat": CODE_HEAD + "codewords"},
)

TORCHAUDIO = Table(
    prefixes=("wav2vec2.",),
    names={
        **{
            theirs.replace("feature_projection.", "encoder.feature_projection.", 1)
            if theirs.startswith("feature_projection.")
            else theirs.replace("encoder.", "encoder.transformer.", 1): ours
            for theirs, ours in HUGGING_FACE.names.items()
            if theirs not in ("masked_spec_embed", "lm_head.*") and not ours.startswith(CONTRASTIVE)
        },
        "encoder.transformer.layers.{n}.attention.attention.out_proj.*": _BLOCK + "attention.out.*",  # WavLM
        "mask_generator.mask_embedding": "encoder.mask_embedding",
        "aux.*": "head.output.*",
        "logit_generator.final_proj.*": CODE_HEAD + "projection.*",
        "logit_generator.label_embeddings": CODE_HEAD + "codewords",
    },
    left=(),
)


WHISPER = Table(
    prefixes=("model.",),
    names={
        "encoder.conv1.*": "front_end.layers.0.conv.*",
        "encoder.conv2.*": "front_end.layers.1.conv.*",
        "encoder.layer_norm.*": "encoder.norm.*",
        **_OF_FAIRSEQ,
        "encoder.layers.{n}.self_attn.k_proj.weight": _BLOCK + "attention.key.weight",
        "encoder.layers.{n}.self_attn.k_proj.zeros": _BLOCK + "attention.key.bias",  # in no file: `with_zeros`
    },
    left=("decoder.", "proj_out.", "encoder.embed_positions."),
    families="Whisper",
)

CTRANSLATE2 = Table(
    prefixes=(),
    names={
        "encoder/conv1/*": "front_end.layers.0.conv.*",
        "encoder/conv2/*": "front_end.layers.1.conv.*",
        "encoder/layer_norm/gamma": "encoder.norm.weight",
        "encoder/layer_norm/beta": "encoder.norm.bias",
        "encoder/layer_{n}/self_attention/linear_0/q_proj.*": _BLOCK + "attention.query.*",
        "encoder/layer_{n}/self_attention/linear_0/k_proj.*": _BLOCK + "attention.key.*",
        "encoder/layer_{n}/self_attention/linear_0/v_proj.*": _BLOCK + "attention.value.*",
        "encoder/layer_{n}/self_attention/linear_1/*": _BLOCK + "attention.out.*",
        "encoder/layer_{n}/self_attention/layer_norm/gamma": _BLOCK + "attention_norm.weight",
        "encoder/layer_{n}/self_attention/layer_norm/beta": _BLOCK + "attention_norm.bias",
        "encoder/layer_{n}/ffn/linear_0/*": _BLOCK + "ffn_up.*",
        "encoder/layer_{n}/ffn/linear_1/*": _BLOCK + "ffn_down.*",
        "encoder/layer_{n}/ffn/layer_norm/gamma": _BLOCK + "ffn_norm.weight",
        "encoder/layer_{n}/ffn/layer_norm/beta": _BLOCK + "ffn_norm.bias",
    },
    left=("decoder/", "encoder/num_heads", "encoder/position_encodings/"),
    families="Whisper",
)


def split_joined(tensors: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """Split joined projections (3 C, …) into query, key and value; the pattern's groups: what precedes, the ending."""
    split = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(pattern, name)
        if match is None:
            split[name] = tensor
        else:
            split |= {f"{match[1]}{letter}_proj.{match[2]}": part for letter, part in zip("qkv", tensor.chunk(3))}
    return split


def with_zeros(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Biases of zeros for Whisper's keys, which have none; they change no attention weight, whatever their value."""
    keys = {
        name: x for name, x in tensors.items() if re.search(r"\bencoder\.layers\.\d+\.self_attn\.k_proj\.weight$", name)
    }
    return {**tensors, **{f"{name.removesuffix('weight')}zeros": x.new_zeros(x.shape[:1]) for name, x in keys.items()}}


def rename(
    tensors: Mapping[str, Tensor], table: Table, where: str
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Tensors by our names, {ours: theirs}, and the names of tensors that are left behind.

    Raises ValueError naming every tensor that is unknown to the table, and those that are no weights.
    """
    origin: dict[str, str] = {}
    left: list[str] = []
    unknown: list[str] = []
    for name in tensors:
        bare = table.bare(name)
        if (ours := table.ours(bare)) is not None:
            if ours in origin:
                raise ValueError(f"{where}: {origin[ours]} and {name} are two tensors for one place ({ours})")
            origin[ours] = name
        else:
            (left if bare.startswith(table.left) else unknown).append(name)
    families = table.families
    if not origin:
        raise ValueError(f"{where}: none of its tensors ({listed(unknown)}) is of {families}: another family of model?")
    if unknown:
        raise ValueError(
            f"{where}: {len(unknown)} tensors that no {families} model has: {listed(unknown)};"
            " an unsupported variant cannot be imported in part"
        )
    if wrong := [name for name in origin.values() if not tensors[name].is_floating_point()]:
        raise ValueError(f"{where}: {listed(wrong)} hold no floating-point weights (quantised?)")
    if broken := [name for name in origin.values() if not bool(tensors[name].isfinite().all())]:
        raise ValueError(f"{where}: NaN or infinite weights in {listed(broken)}: a broken training or file")
    return {ours: tensors[name].float() for ours, name in origin.items()}, origin, tuple(left)


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message, cut where there are very many."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
