"""One rename table per source of pre-trained models: their names of tensors and ours.

`{n}` stands for the number of a layer, a `*` at the end for what follows (weight or bias).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

_POSITIONS = "encoder.positions.conv.parametrizations.weight.original"
_BLOCK = "encoder.blocks.{n}."


@dataclass(frozen=True)
class Table:
    """prefixes: of a model inside another one. names: theirs -> ours. left: what only their pre-training needs."""

    prefixes: tuple[str, ...]
    names: Mapping[str, str]
    left: tuple[str, ...]

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(theirs), ours) for theirs, ours in self.names.items()]

    def ours(self, name: str) -> str | None:
        """Our name of a tensor of theirs, prefix included; None if there is none."""
        bare = self._bare(name)
        for pattern, ours in self._patterns:
            match = pattern.fullmatch(bare)
            if match:
                found = match.groupdict()
                return ours.replace("{n}", found.get("n") or "").replace("*", found.get("rest") or "")
        return None

    def leaves(self, name: str) -> bool:
        """Whether a tensor belongs to their pre-training alone."""
        return self._bare(name).startswith(self.left)

    def _bare(self, name: str) -> str:
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return name


def _pattern(theirs: str) -> re.Pattern[str]:
    text = re.escape(theirs).replace(r"\{n\}", r"(?P<n>\d+)").replace(r"\*", r"(?P<rest>weight|bias)")
    return re.compile(text)


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
    },
    left=("quantizer.", "project_q.", "project_hid."),
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
        "encoder.layers.{n}.self_attn.q_proj.*": _BLOCK + "attention.query.*",
        "encoder.layers.{n}.self_attn.k_proj.*": _BLOCK + "attention.key.*",
        "encoder.layers.{n}.self_attn.v_proj.*": _BLOCK + "attention.value.*",
        "encoder.layers.{n}.self_attn.out_proj.*": _BLOCK + "attention.out.*",
        "encoder.layers.{n}.self_attn_layer_norm.*": _BLOCK + "attention_norm.*",
        "encoder.layers.{n}.fc1.*": _BLOCK + "ffn_up.*",
        "encoder.layers.{n}.fc2.*": _BLOCK + "ffn_down.*",
        "encoder.layers.{n}.final_layer_norm.*": _BLOCK + "ffn_norm.*",
        "encoder.layers.0.self_attn.relative_attention_bias.weight": "encoder.relative.bias.weight",
        "encoder.layers.{n}.self_attn.grep_linear.*": _BLOCK + "attention.gate.*",
        "encoder.layers.{n}.self_attn.grep_a": _BLOCK + "attention.gate_scale",
        "proj.*": "head.output.*",
    },
    left=("quantizer.", "project_q.", "final_proj.", "label_embs_concat", "target_glu."),
)

TORCHAUDIO = Table(
    prefixes=("wav2vec2.",),
    names={
        **{
            theirs.replace("feature_projection.", "encoder.feature_projection.", 1)
            if theirs.startswith("feature_projection.")
            else theirs.replace("encoder.", "encoder.transformer.", 1): ours
            for theirs, ours in HUGGING_FACE.names.items()
            if theirs not in ("masked_spec_embed", "lm_head.*")
        },
        "encoder.transformer.layers.{n}.attention.attention.out_proj.*": _BLOCK + "attention.out.*",  # WavLM
        "mask_generator.mask_embedding": "encoder.mask_embedding",
        "aux.*": "head.output.*",
    },
    left=("logit_generator.",),
)


def split_joined(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """torchaudio's WavLM keeps query, key and value in one `in_proj_*` (3 C, …): three tensors instead."""
    split = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*\.attention\.)attention\.in_proj_(weight|bias)", name)
        if match is None:
            split[name] = tensor
        else:
            for part, letter in zip(tensor.chunk(3), "qkv"):
                split[f"{match[1]}{letter}_proj.{match[2]}"] = part
    return split


def rename(
    tensors: Mapping[str, Tensor], table: Table, where: str
) -> tuple[dict[str, Tensor], dict[str, str], tuple[str, ...]]:
    """Tensors by our names, {ours: theirs}, and the names left behind because only pre-training needs them.

    Raises ValueError naming every tensor that the table does not know, and those that are no weights.
    """
    ours: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    left, unknown = [], []
    for name, tensor in tensors.items():
        new = table.ours(name)
        if new is not None:
            if new in origin:
                raise ValueError(f"{where}: {origin[new]} and {name} are two tensors for one place ({new})")
            ours[new], origin[new] = tensor.float(), name
        elif table.leaves(name):
            left.append(name)
        else:
            unknown.append(name)
    if not ours:
        raise ValueError(
            f"{where}: none of its tensors ({listed(unknown)}) is of wav2vec 2.0, HuBERT or WavLM:"
            " another family of model?"
        )
    if unknown:
        raise ValueError(
            f"{where}: {len(unknown)} tensors that no wav2vec 2.0, HuBERT or WavLM model has: {listed(unknown)};"
            " a variant that is not built here cannot be imported in part"
        )
    wrong = [name for new, name in origin.items() if not tensors[name].is_floating_point()]
    if wrong:
        raise ValueError(f"{where}: {listed(wrong)} hold no floating-point weights (quantised?)")
    broken = [origin[new] for new, tensor in ours.items() if not bool(tensor.isfinite().all())]
    if broken:
        raise ValueError(f"{where}: NaN or infinite weights in {listed(broken)}: a broken training or file")
    return ours, origin, tuple(left)


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message, cut where there are very many."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
