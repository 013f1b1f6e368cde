"""Write an offline model as a folder that transformers loads without our code.

It is a Wav2Vec2ForCTC or HubertForCTC, and with a quantiser a Wav2Vec2ForPreTraining. transformers itself is not needed
to write one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from distill.config.model import SAMPLE_RATE, Model
from distill.files import replacing, write_text
from distill.models.pretrained.names import CONTRASTIVE, HUGGING_FACE, translated
from distill.models.pretrained.vocabulary import BOUNDARY, DELIMITER
from distill.models.recogniser import Recogniser

KINDS = {"wav2vec2": "Wav2Vec2ForCTC", "hubert": "HubertForCTC"}
PRETRAINING, PUBLISHED_MASK = "Wav2Vec2ForPreTraining", 0.65
EPS = 1e-5


def write_folder(
    model: Recogniser, outputs: Sequence[str], folder: Path, kind: str = "wav2vec2", heads: Mapping[str, Tensor] = {}
) -> None:
    """config.json, model.safetensors, vocab.json, preprocessor_config.json and tokenizer_config.json.

    heads: parameters of the objective's terms; a quantiser among them takes the place of the prediction layer. A stored
    gain is multiplied into the first convolution, and a shared head into the last layer, so that outputs stay the same.
    Raises ValueError naming every part that transformers' classes do not have.
    """
    from safetensors.torch import save_file

    if kind not in KINDS:
        raise ValueError(f"kind '{kind}' is not known; expected {' or '.join(KINDS)}")
    wrong = obstacles(model.settings)
    if wrong:
        raise ValueError(f"transformers' {KINDS[kind]} has no counterpart for: {', '.join(wrong)}")
    folder.mkdir(parents=True, exist_ok=True)
    delimiter = DELIMITER if BOUNDARY in outputs and DELIMITER not in outputs else None
    vocabulary = {delimiter if delimiter and u == BOUNDARY else u: number for number, u in enumerate(outputs)}
    normalise = model.settings.front_end.waveform == "utterance"
    quantiser = {name: x for name, x in heads.items() if name.startswith(CONTRASTIVE) and kind == "wav2vec2"}
    files = {
        "config.json": config(model.settings, outputs, kind, quantiser),
        "vocab.json": vocabulary,
        "preprocessor_config.json": {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": normalise, "feature_size": 1,
            "padding_side": "right", "padding_value": 0.0, "return_attention_mask": True, "sampling_rate": SAMPLE_RATE,
        },
        "tokenizer_config.json": {
            "tokenizer_class": "Wav2Vec2CTCTokenizer", "pad_token": outputs[0], "unk_token": outputs[0],
            "word_delimiter_token": delimiter, "bos_token": None, "eos_token": None,
        },
    }  # fmt: skip
    for name, content in files.items():
        write_text(folder / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    trunk = their_tensors(model)
    top = {name: trunk.pop(name) for name in list(trunk) if name.startswith("lm_head")}
    if quantiser:
        top = {_theirs(name): x for name, x in quantiser.items()}
    tensors = {**{f"{kind}.{name}": x for name, x in trunk.items()}, **top}
    with replacing(folder / "model.safetensors") as temporary:
        save_file({name: x.contiguous() for name, x in tensors.items()}, str(temporary), metadata={"format": "pt"})


def obstacles(model: Model) -> list[str]:
    """Settings that transformers' wav2vec 2.0 and HuBERT do not have."""
    front, encoder = model.front_end, model.encoder
    many = len(front.layers) > 1
    wrong = {
        f"front_end.input: {front.input}": front.input != "waveform",
        "front_end.first: gabor": front.first != "random",
        "front_end.causal: true": front.causal,
        "norm: frame on the first layer alone": (front.norm, front.norm_layers) == ("frame", "first") and many,
        "norm: group on all layers": (front.norm, front.norm_layers) == ("group", "all") and many,
        f"front_end.norm_eps: {front.norm_eps}": front.norm == "frame" and front.norm_eps != EPS,
        f"front_end.waveform_eps: {front.waveform_eps}": front.waveform == "utterance" and front.waveform_eps != 1e-7,
        f"encoder.block: {encoder.block}": encoder.block != "transformer",
        "encoder.position_causal: true": encoder.position_causal,
        "encoder.positions: sinusoid": encoder.positions == "sinusoid",
        "encoder.feature_norm: false": not encoder.feature_norm,
        "encoder.attention_of": any(encoder.attention_of),
        "encoder.time_reduction": encoder.time_reduction > 1,
        "encoder.rank": encoder.rank is not None,
        "model.pruning": model.pruning is not None,
        "streaming.chunk_frames": model.streaming.chunk_frames > 0,
        "relative positions": encoder.relative_buckets > 0,
        "widths of each block (ffn_dim, heads, head_dim)": (
            isinstance(encoder.ffn_dim, tuple) or isinstance(encoder.heads, tuple) or encoder.head_dim is not None
        ),
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def config(model: Model, outputs: Sequence[str], kind: str, quantiser: Mapping[str, Tensor]) -> dict:
    """config.json; quantiser: its tensors and those of its projections, by our names."""
    front, encoder = model.front_end, model.encoder
    channels, kernels, strides = (list(column) for column in zip(*front.layers))
    shared = {
        "architectures": [KINDS[kind]], "model_type": kind, "vocab_size": len(outputs), "pad_token_id": 0,
        "conv_dim": channels, "conv_kernel": kernels, "conv_stride": strides, "conv_bias": front.bias,
        "num_feat_extract_layers": len(front.layers),
        "feat_extract_norm": "group" if front.norm == "group" else "layer",
        "hidden_size": encoder.dim, "intermediate_size": encoder.ffn_dim, "num_hidden_layers": encoder.layers,
        "num_attention_heads": encoder.heads, "do_stable_layer_norm": encoder.norm_first, "layer_norm_eps": EPS,
        "num_conv_pos_embeddings": encoder.position_kernel, "num_conv_pos_embedding_groups": encoder.position_groups,
        "hidden_act": "gelu", "feat_extract_activation": "gelu", "apply_spec_augment": False,
        "hidden_dropout": encoder.dropout, "attention_dropout": encoder.attention_dropout,
        "activation_dropout": encoder.activation_dropout, "layerdrop": encoder.layer_drop, "final_dropout": 0.0,
        "feat_proj_dropout": 0.0, "torch_dtype": "float32",
    }  # fmt: skip
    if kind == "hubert":
        return {**shared, "feat_proj_layer_norm": True}
    if not quantiser:
        return shared
    (_, codewords, part), (compared, joined) = (
        quantiser[f"{CONTRASTIVE}{name}"].shape for name in ("quantiser.codewords", "project_codes.weight")
    )
    return {
        **shared, "architectures": [PRETRAINING], "num_codevector_groups": joined // part,
        "num_codevectors_per_group": codewords * part // joined, "codevector_dim": joined,
        "proj_codevector_dim": compared, "apply_spec_augment": True, "mask_time_length": model.mask.time_length,
        "mask_time_prob": model.mask.time_probability or PUBLISHED_MASK,
    }  # fmt: skip


def their_tensors(model: Recogniser) -> dict[str, Tensor]:
    """All tensors under transformers' names, without the prefix of the model inside the one with a head."""
    own = {name: x.detach().clone() for name, x in model.state_dict().items()}
    gain = own.pop("front_end.gain")
    if model.settings.front_end.waveform == "gain":
        own["front_end.layers.0.conv.weight"] *= gain
    projection = own.pop("head.shared_projection.weight", None)
    if projection is not None:
        own["head.output.weight"] = (own["head.output.weight"].double() @ projection.double()).float()
    if "encoder.projection.weight" not in own:  # transformers always projects
        own["encoder.projection.weight"] = torch.eye(model.settings.encoder.dim)
        own["encoder.projection.bias"] = torch.zeros(model.settings.encoder.dim)
    return {_theirs(name): x for name, x in own.items() if not name.startswith(("ctc.", "transducer."))}


def _theirs(ours: str) -> str:
    """Their name of one of our tensors; raises ValueError where there is none."""
    pairs = [(theirs, own) for theirs, own in HUGGING_FACE.names.items() if not theirs.endswith(("_g", "_v"))]
    name = next((name for theirs, own in pairs if (name := translated(ours, own, theirs)) is not None), None)
    if name is None:
        raise ValueError(f"no name in transformers for {ours}")
    return name
