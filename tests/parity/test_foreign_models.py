"""Imported models against transformers and torchaudio: small random twins, layer by layer, in padded batches."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import torchaudio
from torch import Tensor

from distill.batch import Batch, Targets
from distill.config.losses import Attention
from distill.losses.attention import AttentionKl
from distill.losses.term import TermContext
from distill.models.pretrained import build_imported, read_checkpoint
from distill.models.recogniser import Recogniser

transformers = pytest.importorskip("transformers")

SAMPLES = (4000, 2531)
UNITS = ("<blk>", "A", "B", "C", "D", "E", "F")
VOCABULARY = {"<pad>": 0, "<s>": 1, "A": 2, "C": 3, "B": 4, "D": 5, "F": 6, "E": 7, "|": 8}
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 40,
    "conv_dim": (16, 16, 24), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": len(VOCABULARY),
    "codevector_dim": 16, "proj_codevector_dim": 16, "num_codevectors_per_group": 8,
}  # fmt: skip
BASE = {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
CLASSES = (
    "Wav2Vec2Model", "Wav2Vec2ForCTC", "Wav2Vec2ForPreTraining", "HubertModel", "HubertForCTC", "WavLMModel",
    "WavLMForCTC",
)  # fmt: skip


LEVELS = (0.3, 0.001)  # of quiet audio, what is added to its variance decides
"""Root mean squares."""


def waves(level: float = 0.3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [level * (torch.randn(n, generator=generator) + 0.3) for n in SAMPLES]


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """All parameters random, norms and biases too, so that no two of them can be exchanged unseen."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def twin(name: str, kind: dict, folder: Path, binary: bool = False) -> torch.nn.Module:
    """A random model of transformers, saved as its users save it."""
    family = name.replace("ForCTC", "").replace("ForPreTraining", "").replace("Model", "")
    config = getattr(transformers, f"{family}Config")(**SMALL, **kind, attn_implementation="eager", layerdrop=0.0)
    model = shaken(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    if binary:
        (folder / "model.safetensors").unlink()
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    return model


def ours(model: Recogniser, level: float = 0.3) -> dict:
    """Our features, encoder input, blocks and logits of the padded batch; the last block before the final norm too."""
    wave, samples = torch.nn.utils.rnn.pad_sequence(waves(level), batch_first=True), torch.tensor(SAMPLES)
    seen: dict = {}
    model.encoder.blocks[-1].register_forward_hook(lambda _, __, out: seen.update(last=out[0]))
    model.encoder.blocks[0].register_forward_pre_hook(lambda _, args: seen.update(first=args[0]))
    with torch.no_grad():
        features, lengths = model.front_end(wave, samples)
        output = model(wave, samples)
    assert output.lengths.tolist() == lengths.tolist()
    return {**seen, "features": features, "hidden": output.hidden[1:], "logits": output.logits, "lengths": lengths}


def theirs(model: torch.nn.Module, batched: bool, level: float = 0.3) -> list[dict]:
    """transformers' values per utterance: computed in a padded batch with a mask, or one by one."""
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    trunk = getattr(model, model.base_model_prefix, model)
    results = []
    for group in [waves(level)] if batched else [[wave] for wave in waves(level)]:
        inputs = extractor([w.numpy() for w in group], sampling_rate=16000, padding=True, return_tensors="pt")
        mask = inputs.attention_mask if len(group) > 1 else None
        with torch.no_grad():
            out = trunk(inputs.input_values, mask, output_hidden_states=True)
            logits = model.lm_head(out.last_hidden_state) if hasattr(model, "lm_head") else None
            features = trunk.feature_extractor(inputs.input_values).transpose(1, 2)
        for b, wave in enumerate(group):
            count = int(trunk._get_feat_extract_output_lengths(torch.tensor(len(wave))))
            tensors = {
                "hidden": out.hidden_states,
                "last": out.last_hidden_state,
                "features": features,
                "logits": logits,
            }
            results.append({"count": count, **{k: cut(v, b, count) for k, v in tensors.items()}})
    return results


def cut(value, b: int, count: int):
    if isinstance(value, tuple):
        return [cut(item, b, count) for item in value]
    return None if value is None else value[b, :count]


def close(mine: Tensor, their: Tensor) -> None:
    torch.testing.assert_close(mine, their, rtol=0, atol=1e-5)


def test_a_broken_safetensors_file_is_named(tmp_path: Path) -> None:
    twin("HubertModel", BASE, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        read_checkpoint(f"hf:{tmp_path}")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [BASE, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("name", CLASSES)
def test_every_layer_equals_transformers(name: str, kind: dict, level: float, tmp_path: Path) -> None:
    reference = twin(name, kind, tmp_path, binary="Hubert" in name)
    checkpoint = read_checkpoint(f"hf:{tmp_path}")
    imported = build_imported(checkpoint, None, UNITS)
    mine = ours(imported.model.eval(), level)
    assert (not imported.new_head) == name.endswith("CTC")
    assert not checkpoint.left and bool(checkpoint.heads) == name.endswith("PreTraining")
    # with group norm transformers counts the padding in: what it computes alone is right
    for b, expected in enumerate(theirs(reference, kind is LARGE, level)):
        count = expected["count"]
        assert int(mine["lengths"][b]) == count
        if kind is BASE or b == 0:
            close(mine["features"][b, :count], expected["features"])
        first, *blocks = expected["hidden"]
        close(mine["first"][b, :count], first)
        for block, hidden in zip(mine["hidden"][:-1], blocks[:-1]):
            close(block[b, :count], hidden)
        close(mine["last"][b, :count], blocks[-1])
        close(mine["hidden"][-1][b, :count], expected["last"])
        if expected["logits"] is not None:
            rows = [VOCABULARY.get(unit, 0) for unit in UNITS]
            close(mine["logits"][b, :count], expected["logits"][:, rows])


FAIRSEQ_NAMES = (  # written by hand from a published checkpoint's list, not from our tables
    ("feature_projection.layer_norm.", "layer_norm."),
    ("feature_projection.projection.", "post_extract_proj."),
    ("masked_spec_embed", "mask_emb"),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original0", "encoder.pos_conv.0.weight_g"),
    ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", "encoder.pos_conv.0.weight_v"),
    ("encoder.pos_conv_embed.conv.bias", "encoder.pos_conv.0.bias"),
    ("attention.gru_rel_pos_linear", "self_attn.grep_linear"),
    ("attention.gru_rel_pos_const", "self_attn.grep_a"),
    ("attention.rel_attn_embed", "self_attn.relative_attention_bias"),
    ("feed_forward.intermediate_dense", "fc1"),
    ("feed_forward.output_dense", "fc2"),
    (".attention.", ".self_attn."),
)


def fairseq_name(name: str, large: bool) -> str:
    """A name of transformers as fairseq (for WavLM: its authors' code in fairseq's manner) has it."""
    bare = name.split(".", 1)[1] if name.split(".")[0] in ("wav2vec2", "hubert", "wavlm") else name
    for theirs, fairseq in FAIRSEQ_NAMES:
        bare = bare.replace(theirs, fairseq)
    if "conv_layers" in bare:
        norm = "2.1" if large else "2"
        return bare.replace(".layer_norm.", f".{norm}.").replace(".conv.", ".0.")
    if bare.startswith("encoder.layers."):
        return re.sub(r"(layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm.", bare)
    return bare.replace("lm_head.", "proj.")


@pytest.mark.parametrize("kind", [BASE, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("name", ["Wav2Vec2Model", "HubertForCTC", "WavLMModel"])
def test_fairseq_files_give_the_same_model_as_hugging_face(name: str, kind: dict, tmp_path: Path) -> None:
    state = twin(name, kind, tmp_path).state_dict()
    tuned = name.endswith("CTC")
    renamed = {}
    for key, tensor in state.items():
        new = fairseq_name(key, kind is LARGE)
        prefix = ("w2v_encoder." if new.startswith("proj.") else "w2v_encoder.w2v_model.") if tuned else ""
        renamed[prefix + new] = tensor.half() if tuned else tensor
    settings = {
        "conv_feature_layers": "[(16, 10, 5), (16, 3, 2)] + [(24, 2, 2)]", "encoder_attention_heads": 4,
        "layer_norm_first": kind is LARGE, "normalize": True, "activation_fn": "gelu", "max_distance": 800,
        "extractor_mode": "layer_norm" if kind is LARGE else "default", "encoder_layers": 3, "conv_pos": 16,
    }  # fmt: skip
    content = {"cfg": {"model": {"w2v_args": {"model": settings}} if tuned else settings}, "model": renamed}
    torch.save(content, tmp_path / "model.pt")
    (tmp_path / "dict.ltr.txt").write_text("".join(f"{unit} 1\n" for unit in "ACBDFE|"))
    expected, found = read_checkpoint(f"hf:{tmp_path}"), read_checkpoint(f"fairseq:{tmp_path / 'model.pt'}")
    front = expected.shape.settings.front_end.model_copy(update={"waveform_eps": 1e-5})
    assert found.shape.settings == expected.shape.settings.model_copy(update={"front_end": front})
    assert not found.shape.assumed
    assert set(found.tensors) == set(expected.tensors)
    for key, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[key], tensor.half().float() if tuned else tensor), key
    assert found.units is not None and found.units[0] == "<blk>" and found.units[4:] == (*"ACBDFE", "▁")


def torchaudio_twin(kind: str, large: bool) -> torch.nn.Module:
    convolutions = [(16, 10, 5), (16, 3, 2), (24, 3, 2)]
    front = ("layer_norm" if large else "group_norm", convolutions, large)
    shape = (128, 0.0, 16, 4, 3, 2)
    rest = (0.0, 40, 0.0, 0.0, large, 0.0)
    build = torchaudio.models.wavlm_model if kind == "wavlm" else torchaudio.models.wav2vec2_model
    buckets = (32, 80) if kind == "wavlm" else ()
    if kind == "hubert_pretrain":
        model = torchaudio.models.HuBERTPretrainModel(
            build(*front, *shape, *rest, None),
            torchaudio.models.wav2vec2.components.MaskGenerator(
                128, 0.5, "static", 0.0, 10, False, 1, 0.0, "static", 0.0, 10, False, 1
            ),
            torchaudio.models.wav2vec2.components.LogitGenerator(128, 9, 16, True, True),
            None,
        )  # fmt: skip
        return shaken(model)
    return shaken(build(*front, *shape, *buckets, *rest, len(VOCABULARY)))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
@pytest.mark.parametrize("kind", ["wav2vec2", "wavlm", "hubert_pretrain"])
def test_every_layer_equals_torchaudio(kind: str, large: bool, level: float, tmp_path: Path) -> None:
    reference = torchaudio_twin(kind, large)
    torch.save(reference.state_dict(), tmp_path / "model.pt")
    (tmp_path / "labels.txt").write_text("\n".join(["-", "<s>", "A", "C", "B", "D", "F", "E", "|"]))
    checkpoint = read_checkpoint(f"torchaudio:{tmp_path / 'model.pt'}")
    assert ("encoder.heads" in checkpoint.shape.assumed) == (kind != "wavlm")  # WavLM's tensors show them
    assert checkpoint.shape.settings.encoder.heads == 2
    settings = checkpoint.shape.settings
    if kind == "wavlm":  # the file does not say at which distance the last bucket begins
        encoder = settings.encoder.model_copy(update={"relative_distance": 80})
        settings = settings.model_copy(update={"encoder": encoder})
    imported = build_imported(checkpoint, settings, UNITS)
    mine = ours(imported.model.eval(), level)
    trunk = getattr(reference, "wav2vec2", reference)
    for b, wave in enumerate(waves(level)):
        if large:  # as fairseq and torchaudio's bundles do
            wave = torch.nn.functional.layer_norm(wave, wave.shape)
        with torch.no_grad():
            blocks, _ = trunk.extract_features(wave[None])
            final, _ = trunk(wave[None])
        count = blocks[0].shape[1]
        assert int(mine["lengths"][b]) == count
        for block, hidden in zip([*mine["hidden"][:-1], mine["last"]], blocks):
            close(block[b, :count], hidden[0])
        if kind == "hubert_pretrain":
            close(mine["hidden"][-1][b, :count], final[0])
        else:
            close(mine["logits"][b, :count], final[0][:, [VOCABULARY.get(unit, 0) for unit in UNITS]])


@pytest.mark.parametrize("kind", [BASE, LARGE], ids=["base", "large"])
@pytest.mark.parametrize("source", ["hf", "fairseq", "torchaudio"])
def test_the_norm_of_a_single_convolution_is_of_the_right_kind(source: str, kind: dict, tmp_path: Path) -> None:
    """Its tensors are the same for both kinds: the source's settings or names tell, or the experiment's do."""
    one = {"conv_dim": (24,), "conv_kernel": (40,), "conv_stride": (20,), "num_feat_extract_layers": 1}
    config = transformers.Wav2Vec2Config(**SMALL | one, **kind, attn_implementation="eager")
    reference = shaken(transformers.Wav2Vec2Model(config))
    reference.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
    state = reference.state_dict()
    large, settings = kind is LARGE, read_checkpoint(f"hf:{tmp_path}").shape.settings
    if source == "fairseq":
        said = {"conv_feature_layers": "[(24, 40, 20)]", "encoder_attention_heads": 4, "normalize": True,
                "layer_norm_first": large}  # fmt: skip
        state = {fairseq_name(name, large): tensor for name, tensor in state.items()}
        torch.save({"cfg": {"model": said}, "model": state}, tmp_path / "model.pt")
        checkpoint = read_checkpoint(f"fairseq:{tmp_path / 'model.pt'}")
    elif source == "torchaudio":
        imported = torchaudio.models.wav2vec2.utils.import_huggingface_model(reference)
        torch.save(imported.state_dict(), tmp_path / "model.pt")
        checkpoint = read_checkpoint(f"torchaudio:{tmp_path / 'model.pt'}")
        assert "front_end.norm" in checkpoint.shape.assumed
        front = settings.front_end.model_copy(update={"waveform_eps": 1e-5})
        settings = settings.model_copy(update={"front_end": front})
    else:
        checkpoint = read_checkpoint(f"hf:{tmp_path}")
    model = build_imported(checkpoint, settings if source == "torchaudio" else None, UNITS).model.eval()
    (wave,) = waves()[:1]
    with torch.no_grad():
        hidden = model(wave[None], torch.tensor([len(wave)])).hidden[-1][0]
        normal = torch.nn.functional.layer_norm(wave, wave.shape, eps=model.settings.front_end.waveform_eps)
        close(hidden, reference(normal[None]).last_hidden_state[0])


@pytest.mark.parametrize("kind", [BASE, LARGE], ids=["base", "large"])
def test_the_attention_loss_is_that_of_the_maps_that_transformers_returns(kind: dict, tmp_path: Path) -> None:
    """KL of papers/004, Eq. 1, of two random models, from their maps of each utterance alone."""
    pairs, maps = [], []
    for seed, heads in ((1, 4), (2, 2)):
        config = transformers.HubertConfig(
            **SMALL | {"num_attention_heads": heads}, **kind, attn_implementation="eager", layerdrop=0.0
        )
        torch.manual_seed(seed)
        reference = transformers.HubertModel(config).eval()
        with torch.no_grad():
            for layer in reference.encoder.layers:  # sharp maps, which differ
                layer.attention.q_proj.weight.mul_(30)
        folder = tmp_path / str(seed)
        reference.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True}))
        checkpoint = read_checkpoint(f"hf:{folder}")
        wave, samples = torch.nn.utils.rnn.pad_sequence(waves(), batch_first=True), torch.tensor(SAMPLES)
        with torch.no_grad():
            pairs.append(build_imported(checkpoint, None, UNITS).model.eval()(wave, samples, attention=(1, 2, 3)))
            normed = [(wave - wave.mean()) / (wave.var(correction=0) + 1e-7).sqrt() for wave in waves()]
            maps.append([reference(wave[None], output_attentions=True).attentions for wave in normed])
    theirs, ours = pairs
    settings = checkpoint.shape.settings
    teacher = settings.model_copy(update={"encoder": settings.encoder.model_copy(update={"heads": 4})})
    term = AttentionKl.build(Attention(), TermContext(settings, teacher))
    targets = Targets(theirs.logits, {}, theirs.lengths, attention=theirs.attention)
    found = term(ours, targets, Batch(("a", "b"), wave, samples)).terms
    for block in range(3):
        total = 0.0
        for t, s in zip(*maps):
            t, s = (x[block][0].mean(0) for x in (t, s))
            total += float((t * (t / s).log()).sum())
        value = found[f"attention{block + 1}"]
        assert float(value.total) == pytest.approx(total, rel=1e-4) and total > 1
        assert int(value.count) == int(ours.lengths.sum())
