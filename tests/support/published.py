"""Random twins of published models, made by transformers, in folders of the layout that is published."""

from __future__ import annotations

import json
from pathlib import Path

import torch

LETTERS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ")
"""The rows of Wav2Vec2ForCTC and HubertForCTC as facebook has published them."""
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 48,
    "conv_dim": (16, 16, 24), "conv_kernel": (10, 8, 8), "conv_stride": (5, 8, 8), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip
FULL = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096,
}  # fmt: skip


def write_twin(folder: Path, name: str = "Wav2Vec2ForCTC", kind: dict | None = None, binary: bool = False, **shape):
    """The model, and its files: weights as safetensors or (binary) pytorch_model.bin; with a head, its letters."""
    import transformers

    family = name.removesuffix("ForCTC").removesuffix("ForPreTraining")
    config = getattr(transformers, f"{family}Config")(
        **{**SMALL, **(LARGE if kind is None else kind), **shape}, vocab_size=len(LETTERS), layerdrop=0.0,
        attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(1)
    model = getattr(transformers, name)(config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if binary:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=kind is not BASE)
    extractor.save_pretrained(folder)
    if name.endswith("ForCTC"):
        (folder / "vocab.json").write_text(json.dumps({letter: row for row, letter in enumerate(LETTERS)}))
        transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    return model
