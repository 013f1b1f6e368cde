"""Reading others' checkpoints: nothing runs, nothing is ignored, and errors name what is wrong."""

from __future__ import annotations

import argparse
import collections
import json
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch

from distill.config.model import Encoder, FrontEnd, Model
from distill.models.pretrained import build_imported, read_checkpoint
from distill.models.pretrained.files import Stub, plain, read_pickle
from distill.models.pretrained.names import FAIRSEQ, HUGGING_FACE, TORCHAUDIO, Table
from distill.models.pretrained.shapes import read_list
from distill.models.recogniser import build_model

LAYERS = ((8, 10, 5), (8, 3, 2))
SMALL = Model(
    front_end=FrontEnd(layers=LAYERS, waveform="none"),
    encoder=Encoder(dim=128, ffn_dim=24, layers=2, heads=2, position_kernel=8, position_groups=4),
)
OUTPUTS = ("<blk>", "A", "B")


def state_of(table: Table, head: bool = True, model: Model = SMALL) -> dict[str, torch.Tensor]:
    """Random tensors by another library's names."""
    own = build_model(model, len(OUTPUTS), seed=4).state_dict()
    theirs = {}
    for name, tensor in own.items():
        found = [their for their in expanded(table, 2) if table.ours(their) == name]
        if found and (head or not name.startswith("head")):
            theirs[found[-1]] = tensor.clone()
    return theirs


def expanded(table: Table, layers: int) -> list[str]:
    """Every name of a table in a model of so many layers."""
    numbered = [name.replace("{n}", str(n)) for name in table.names for n in range(layers)]
    return [name.replace("*", rest) for name in dict.fromkeys(numbered) for rest in ("weight", "bias")]


def hugging_face(folder: Path, state: dict[str, torch.Tensor] | None = None, **config) -> str:
    folder.mkdir(exist_ok=True)
    known = {"model_type": "wav2vec2", "num_attention_heads": 2, "conv_stride": [5, 2], **config}
    (folder / "config.json").write_text(json.dumps(known))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    torch.save(state_of(HUGGING_FACE) if state is None else state, folder / "pytorch_model.bin")
    return f"hf:{folder}"


def omegaconf(values: dict):
    """A configuration as omegaconf pickles it, without omegaconf: nodes with `_content` and `_val`."""
    package, nodes = types.ModuleType("omegaconf.dictconfig"), types.ModuleType("omegaconf.nodes")
    for module, name in ((package, "DictConfig"), (nodes, "AnyNode")):
        setattr(module, name, type(name, (), {"__module__": module.__name__, "__qualname__": name}))
    modules = {"omegaconf": types.ModuleType("omegaconf"), package.__name__: package, nodes.__name__: nodes}

    def node(value):
        made = nodes.AnyNode() if not isinstance(value, dict) else package.DictConfig()
        key, content = (
            ("_val", value) if not isinstance(value, dict) else ("_content", {k: node(v) for k, v in value.items()})
        )
        made.__dict__.update({key: content, "_parent": None})
        return made

    return node(values), modules


FLAT = {
    "encoder_attention_heads": 2, "conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] * 1", "layer_norm_first": False,
    "normalize": False,
}  # fmt: skip


def fairseq(path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> str:
    """A file as fairseq writes it: with a namespace (old) or a configuration (new), pre-trained or fine-tuned."""
    state = state_of(FAIRSEQ, head="tuned" in kind)
    if "tuned" in kind:
        state = {f"w2v_encoder.{'' if k.startswith('proj.') else 'w2v_model.'}{k}": v for k, v in state.items()}
    else:
        state |= {"quantizer.vars": torch.ones(3), "final_proj.weight": torch.ones(2, 2)}
        state |= {"target_glu.0.weight": torch.ones(2, 2)}
    if kind == "old":
        torch.save({"args": argparse.Namespace(**FLAT), "model": state}, path, _use_new_zipfile_serialization=False)
    elif kind == "old tuned":
        inner = argparse.Namespace(**FLAT)
        torch.save({"args": argparse.Namespace(arch="wav2vec_ctc", w2v_args=inner), "model": state}, path)
    else:
        model = {"w2v_args": {"model": FLAT, "task": {"normalize": False}}} if "tuned" in kind else FLAT
        config, modules = omegaconf({"model": model, "task": {"normalize": False}})
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        torch.save({"cfg": config, "args": None, "model": state}, path)
        for name in modules:
            monkeypatch.delitem(sys.modules, name)
    return f"fairseq:{path}"


@pytest.mark.parametrize("kind", ["old", "old tuned", "new", "new tuned"])
def test_fairseq_files_are_read_without_fairseq(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dict.ltr.txt").write_text("B 94\nA 51\n")
    source = fairseq(tmp_path / "model.pt", monkeypatch, kind)
    checkpoint = read_checkpoint(source)
    front = SMALL.front_end.model_copy(update={"waveform_eps": 1e-5})
    assert not checkpoint.shape.assumed
    assert checkpoint.shape.settings == SMALL.model_copy(update={"front_end": front})
    assert checkpoint.units == ("<blk>", "<pad>", "</s>", "<unk>", "B", "A")
    assert set(checkpoint.left) == (set() if "tuned" in kind else {"target_glu.0.weight"})
    heads = {"contrastive.quantiser.codewords", "contrastive.project_hidden.weight"}
    assert set(checkpoint.heads) == (set() if "tuned" in kind else heads)
    own = build_model(SMALL, len(OUTPUTS), seed=4).state_dict()
    for name, value in build_imported(checkpoint, SMALL, OUTPUTS).model.state_dict().items():
        if not name.startswith("head"):
            assert torch.equal(value, own[name]), name


class Payload:
    """What a hostile file would hold: a call at reading."""

    def __init__(self, function, *args) -> None:
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("old_format", [False, True])
@pytest.mark.parametrize("place", ["hf", "fairseq", "torchaudio"])
def test_a_pickle_that_would_execute_code_is_refused(place: str, old_format: bool, tmp_path: Path) -> None:
    witness = tmp_path / "ran"
    hostile = {"model": state_of(FAIRSEQ), "cfg": Payload(Path.touch, witness), "extra": Payload(exec, "1")}
    source = hugging_face(tmp_path) if place == "hf" else f"{place}:{tmp_path / 'model.pt'}"
    path = tmp_path / ("pytorch_model.bin" if place == "hf" else "model.pt")
    torch.save(hostile, path, _use_new_zipfile_serialization=not old_format)
    with pytest.raises(ValueError, match=r"not read any further \(it names"):
        read_checkpoint(source)
    assert not witness.exists()


def test_classes_of_other_libraries_become_inert_stubs(tmp_path: Path) -> None:
    path = tmp_path / "stub.pt"
    meters = collections.defaultdict(list, loss=[1.5])
    torch.save({"args": argparse.Namespace(heads=2, nested=argparse.Namespace(a=[1])), "meters": meters}, path)
    with pytest.raises(ValueError, match="argparse"):
        read_pickle(path)
    content = read_pickle(path, stubs=True)
    assert isinstance(content["args"], Stub)
    assert plain(content["args"]) == {"heads": 2, "nested": {"a": [1]}}
    assert content["meters"] == {"loss": [1.5]} and type(content["meters"]) is dict
    path.write_bytes(pickle.dumps(Payload(print, "x")))
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        read_pickle(path, stubs=True)


def test_what_no_published_checkpoint_has_is_initialised_anew(tmp_path: Path) -> None:
    values = SMALL.model_dump() | {"transducer": {"dim": 6, "joiner_dim": 7}, "pruning": {"units": ["heads"]}}
    values["encoder"] |= {"input_dropout": 0.1, "feature_grad_mult": 0.1}  # of training alone
    found = build_imported(read_checkpoint(hugging_face(tmp_path)), Model.model_validate(values), OUTPUTS)
    new = [line.split("\t")[1] for line in found.lines if not line.startswith("copied")]
    assert {name.split(".")[0] for name in new} >= {"transducer", "gates"}


def test_missing_extra_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    whole = state_of(HUGGING_FACE)
    fewer = {name: t for name, t in whole.items() if name != "encoder.layers.1.attention.k_proj.bias"}
    with pytest.raises(ValueError, match=r"1 tensors are missing: encoder\.blocks\.1\.attention\.key\.bias"):
        build_imported(read_checkpoint(hugging_face(tmp_path, fewer)), SMALL, OUTPUTS)
    more = whole | {"adapter.layers.0.weight": torch.ones(1)}
    with pytest.raises(ValueError, match=r"no wav2vec 2\.0, HuBERT or WavLM model has: adapter\.layers\.0\.weight"):
        read_checkpoint(hugging_face(tmp_path, more))
    gated = whole | {"encoder.layers.0.attention.gru_rel_pos_linear.bias": torch.ones(8)}
    with pytest.raises(ValueError, match=r"1 tensors have no place: .*gru_rel_pos_linear\.bias"):
        build_imported(read_checkpoint(hugging_face(tmp_path, gated)), SMALL, OUTPUTS)
    wrong = whole | {"encoder.layers.1.layer_norm.bias": torch.ones(7)}
    with pytest.raises(ValueError, match=r"layers\.1\.layer_norm\.bias has \(7,\), expected \(128,\)"):
        build_imported(read_checkpoint(hugging_face(tmp_path, wrong)), SMALL, OUTPUTS)
    skipped = {name.replace("layers.1.", "layers.3."): tensor for name, tensor in whole.items()}
    with pytest.raises(ValueError, match=r"layers \[0, 3\] of the transformer"):
        read_checkpoint(hugging_face(tmp_path, {k: t for k, t in skipped.items() if "conv_layers" not in k} | {
            k: t for k, t in whole.items() if "conv_layers" in k}))  # fmt: skip


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "family 'bert'; there are: wav2vec2, hubert, wavlm, whisper"),
        ({"hidden_act": "relu"}, "'hidden_act': 'relu'.*only.*gelu"),
        ({"add_adapter": True}, "add_adapter"),
        ({"conv_stride": [5, 2, 2]}, "2 convolutions, but strides"),
        ({"conv_stride": "5, 2"}, "conv_stride is '5, 2', expected a list of whole numbers"),
        ({"conv_stride": [5, 0]}, r"conv_stride is \[5, 0\], expected a list of whole numbers from 1"),
        ({"conv_dim": [8, 9]}, r"conv_dim \[8, 9\] where the tensors have \[8, 8\]"),
        ({"conv_kernel": [10, 3, 3]}, "conv_kernel .* where the tensors have"),
        ({"conv_bias": True}, "conv_bias True where the tensors have False"),
        ({"feat_extract_norm": "layer"}, "feat_extract_norm: layer = True where the tensors have False"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm 'batch'"),
        ({"hidden_size": 64}, "hidden_size 64 where the tensors have 128"),
        ({"intermediate_size": 25}, "intermediate_size 25 where the tensors have 24"),
        ({"num_hidden_layers": 3, "hidden_size": 1}, "hidden_size 1 where .*; num_hidden_layers 3 where .* have 2"),
        ({"num_feat_extract_layers": 7}, "num_feat_extract_layers 7 where the tensors have 2"),
        ({"num_conv_pos_embeddings": 128}, "num_conv_pos_embeddings 128 where the tensors have 8"),
        ({"num_conv_pos_embedding_groups": 16}, "num_conv_pos_embedding_groups 16 where the tensors have 4"),
        ({"vocab_size": 32}, "vocab_size 32 where the tensors have 3"),
        ({"num_attention_heads": 3}, "3 attention heads do not divide width 128"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, expected a whole number from 1"),
        ({"num_attention_heads": "two"}, "num_attention_heads is 'two'"),
        ({"do_stable_layer_norm": "no"}, "do_stable_layer_norm is 'no', expected true or false"),
        ({"model_type": "wavlm", "num_buckets": 320}, "num_buckets 320 where the tensors have 0"),
    ],
)
def test_other_families_and_variants_are_refused(tmp_path: Path, config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_checkpoint(hugging_face(tmp_path, **config))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"encoder_embed_dim": 768}, "encoder_embed_dim 768 where the tensors have 128"),
        ({"encoder_layers": 12}, "encoder_layers 12 where the tensors have 2"),
        ({"extractor_mode": "layer_norm"}, "extractor_mode: layer_norm = True where"),
        ({"conv_feature_layers": "[(8, 10, 5), (9, 3, 2)]"}, r"channels .* \[8, 9\] where"),
        ({"conv_feature_layers": "[(8, 10, 5), 4]"}, "expected .channels, kernel, stride. each"),
        ({"normalize": "yes"}, "normalize is 'yes', expected true or false"),
        ({"encoder_attention_heads": 5}, "5 attention heads do not divide"),
    ],
)
def test_fairseq_settings_that_contradict_the_tensors_are_named(
    tmp_path: Path, setting: dict, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in setting.items():
        monkeypatch.setitem(FLAT, key, value)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(fairseq(tmp_path / "model.pt", monkeypatch, "old"))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("lm_head.bias", lambda t: t * float("nan"), r"NaN or infinite weights in lm_head\.bias"),
        ("lm_head.weight", lambda t: t / 0, r"NaN or infinite weights in lm_head\.weight"),
        ("lm_head.weight", lambda t: t.to(torch.int8), r"lm_head\.weight hold no floating-point weights"),
        ("feature_extractor.conv_layers.1.conv.weight", lambda t: t[0], "convolution 1 .* shape .*expected 3"),
        ("feature_extractor.conv_layers.0.conv.weight", lambda t: t[:0], "convolution 0 .* has shape"),
        ("encoder.pos_conv_embed.conv.parametrizations.weight.original1", lambda t: t[0], "positional .* expected 3"),
        (
            "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
            lambda t: t[:7],
            "does not fit a width of 128",
        ),
        ("encoder.layers.0.feed_forward.intermediate_dense.weight", lambda t: t[0], "feed-forward .* expected 2"),
    ],
)
def test_tensors_that_are_no_weights_are_named(tmp_path: Path, name: str, change, message: str) -> None:
    state = state_of(HUGGING_FACE)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(hugging_face(tmp_path, state | {name: change(state[name])}))


def test_two_tensors_for_one_place_are_named(tmp_path: Path) -> None:
    state = state_of(HUGGING_FACE)
    with pytest.raises(ValueError, match=r"wav2vec2\.masked_spec_embed are two tensors for one place"):
        read_checkpoint(hugging_face(tmp_path, state | {"wav2vec2.masked_spec_embed": state["masked_spec_embed"]}))


def beside(folder: Path, **files) -> str:
    """A folder with a prediction layer of three rows, and these JSON files (`__` for a dot and `json`)."""
    source = hugging_face(folder)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return source


@pytest.mark.parametrize(
    ("files", "units"),
    [
        ({"vocab": {"B": 2, "|": 1, "<pad>": 0}}, ("<blk>", "▁", "B")),
        ({"vocab": {"B": 1}, "added_tokens": {"<pad>": 0, "</s>": 2}}, ("<blk>", "B", "</s>")),
        (
            {"vocab": {"B": 1}, "tokenizer_config": {"added_tokens_decoder": {"0": {"content": "<pad>"}}}},
            ("<blk>", "B", "<row_2>"),
        ),
        (
            {"vocab": {"B": 1, "_": 2, "|": 0}, "tokenizer_config": {"word_delimiter_token": {"content": "_"}}},
            ("<blk>", "B", "▁"),
        ),
        ({"vocab": {"|": 1, "P": 0}, "tokenizer_config": {"word_delimiter_token": None}}, ("<blk>", "|", "<row_2>")),
        (
            {"vocab": {"eng": {"A": 1}, "deu": {"Ä": 1}}, "tokenizer_config": {"target_lang": "deu"}},
            ("<blk>", "Ä", "<row_2>"),
        ),
        (
            {"tokenizer": {"model": {"vocab": {"A": 1}}, "added_tokens": [{"content": "x", "id": 2}]}},
            ("<blk>", "A", "x"),
        ),
    ],
)
def test_units_are_read_from_every_file_that_lists_some(tmp_path: Path, files: dict, units: tuple) -> None:
    assert read_checkpoint(beside(tmp_path, **files)).units == units


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vocab": {"A": 3}}, r"tokens \{'A': 3\} of its vocabulary are not among the 3 rows"),
        ({"vocab": {"A": "1"}}, "not among the 3 rows"),
        ({"vocab": {"A": 1, "B": 1}}, "row 1 is both 'A' and 'B'"),
        ({"vocab": {"A": 1}, "added_tokens": {"A": 2}}, "'A' is row 1 in vocab.json, but 2 in another"),
        ({"vocab": {"A": 1}, "added_tokens": {"B": 3}}, "not among the 3 rows"),
        ({"vocab": {"A": 1, "P": 2}, "tokenizer_config": {"pad_token": "P"}}, "blank is row 0 .*, but row 2"),
        ({"vocab": {"a": {"A": 1}, "b": {"A": 1}}}, "several vocabularies .a, b., but target_lang"),
        ({"vocab": {"A": 1}, "tokenizer_config": []}, r"tokenizer_config\.json: expected an object"),
        ({"config": []}, r"config\.json: expected an object"),
        ({"processor_config": {"feature_extractor": {"do_normalize": True}}}, "do_normalize is False in its preproc"),
        ({"preprocessor_config": {"sampling_rate": 8000}}, "sampling_rate 8000 of its preprocessor"),
        ({"preprocessor_config": {"feature_extractor_type": "WhisperFeatureExtractor"}}, "feature_extractor_type Whi"),
        ({"preprocessor_config": {"do_normalize": "yes"}}, "do_normalize 'yes'"),
    ],
)
def test_files_beside_a_model_that_contradict_are_named(tmp_path: Path, files: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_checkpoint(beside(tmp_path, **files))


def test_a_processors_settings_count_as_a_preprocessors(tmp_path: Path) -> None:
    source = hugging_face(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert "front_end.waveform" in read_checkpoint(source).shape.assumed
    for inner, waveform in (
        ({"do_normalize": False}, "none"),
        ({"do_normalize": True}, "utterance"),
        ({}, "utterance"),
    ):
        (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": inner}))
        shape = read_checkpoint(source).shape
        assert (shape.settings.front_end.waveform, dict(shape.assumed)) == (waveform, {})


@pytest.mark.parametrize(
    ("places", "kind", "message"),
    [
        (None, ValueError, "no weight_map"),
        ({"lm_head.bias": "../a.bin"}, ValueError, r"not beside it: \.\./a\.bin"),
        ({"lm_head.bias": "none.bin"}, FileNotFoundError, r"names none\.bin, which is not there"),
        (
            {"lm_head.bias": "a.bin", "lm_head.weight": "a.bin"},
            ValueError,
            r"not in their files: lm_head\.bias in a\.bin",
        ),
    ],
)
def test_an_index_that_is_wrong_is_named(tmp_path: Path, places: dict | None, kind: type, message: str) -> None:
    source = hugging_face(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    torch.save({"lm_head.weight": torch.ones(2, 2)}, tmp_path / "a.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(kind, match=message):
        read_checkpoint(source)


def test_the_epsilon_of_the_source_must_be_the_experiments(tmp_path: Path) -> None:
    torch.save(state_of(TORCHAUDIO), tmp_path / "model.pt")
    checkpoint = read_checkpoint(f"torchaudio:{tmp_path / 'model.pt'}")
    front = SMALL.front_end.model_copy(update={"waveform": "utterance"})
    wanted = SMALL.model_copy(update={"front_end": front})
    with pytest.raises(ValueError, match=r"front_end\.waveform_eps is 1e-07, but the checkpoint has 1e-05"):
        build_imported(checkpoint, wanted, OUTPUTS)
    fitting = SMALL.model_copy(update={"front_end": front.model_copy(update={"waveform_eps": 1e-5})})
    assert build_imported(checkpoint, fitting, OUTPUTS).model.settings == fitting


def test_foreign_tensors_and_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another family"):
        read_checkpoint(hugging_face(tmp_path, {"decoder.weight": torch.ones(1)}))
    with pytest.raises(ValueError, match="not one of hf:"):
        read_checkpoint("onnx:model")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        read_checkpoint(f"fairseq:{tmp_path / 'none.pt'}")
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        read_checkpoint(f"hf:{tmp_path}")


def test_parts_with_an_index_are_one_model(tmp_path: Path) -> None:
    source, whole = hugging_face(tmp_path), state_of(HUGGING_FACE)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_checkpoint(source)
    parts = {name: f"part-{i % 2}.bin" for i, name in enumerate(whole)}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": parts}))
    for part in set(parts.values()):
        torch.save({name: whole[name] for name in whole if parts[name] == part}, tmp_path / part)
    tensors = read_checkpoint(source).tensors
    assert len(tensors) == len(whole) and torch.equal(tensors["head.output.bias"], whole["lm_head.bias"])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pointers_to_large_files_are_named_as_such(tmp_path: Path, name: str) -> None:
    source = hugging_face(tmp_path)
    for path in tmp_path.glob("*.bin"):
        path.unlink()
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(ValueError, match=rf"{name}: cannot be read.*git lfs pull"):
        read_checkpoint(source)


def test_broken_files_are_named(tmp_path: Path) -> None:
    source = hugging_face(tmp_path)
    content = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin: cannot be read as a checkpoint.*Download it again"):
        read_checkpoint(source)
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="expected named tensors"):
        read_checkpoint(source)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        read_checkpoint(source)


def test_settings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    encoder = SMALL.encoder.model_copy(update={"heads": 4, "norm_first": True, "dropout": 0.3})
    wanted = SMALL.model_copy(update={"encoder": encoder})
    with pytest.raises(
        ValueError, match=r"encoder\.heads is 4, but the checkpoint has 2; model\.encoder\.norm_first"
    ) as error:
        build_imported(read_checkpoint(hugging_face(tmp_path)), wanted, OUTPUTS)
    assert "dropout" not in str(error.value), "training settings are free"


def test_what_a_file_does_not_say_is_assumed_and_may_be_overruled(tmp_path: Path) -> None:
    torch.save(state_of(TORCHAUDIO), tmp_path / "model.pt")
    checkpoint = read_checkpoint(f"torchaudio:{tmp_path / 'model.pt'}")
    assert checkpoint.shape.assumed == {
        "front_end.strides": (5, 2), "front_end.waveform": "none", "encoder.heads": 2, "encoder.norm_first": False,
    }  # fmt: skip
    front = SMALL.front_end.model_copy(update={"layers": ((8, 10, 4), (8, 3, 3))})
    encoder = SMALL.encoder.model_copy(update={"heads": 8})
    wanted = SMALL.model_copy(update={"front_end": front, "encoder": encoder})
    imported = build_imported(checkpoint, wanted, OUTPUTS)
    assert imported.model.settings == wanted
    assert "assumed\tencoder.heads\t2" in imported.lines


def test_a_prediction_layer_is_kept_only_with_our_units(tmp_path: Path) -> None:
    source = hugging_face(tmp_path)
    weight = state_of(HUGGING_FACE)["lm_head.weight"]
    checkpoint = read_checkpoint(source)
    imported = build_imported(checkpoint, SMALL, OUTPUTS)
    assert imported.new_head and any("its units are not known" in line for line in imported.lines)
    with pytest.raises(ValueError, match="name a fine-tuned model"):
        build_imported(checkpoint, SMALL, None)
    (tmp_path / "vocab.json").write_text(json.dumps({"B": 2, "|": 1, "<pad>": 0}))
    checkpoint = read_checkpoint(source)
    assert build_imported(checkpoint, SMALL, None).model.outputs == 3
    kept = build_imported(checkpoint, SMALL, ["<blk>", "B", "▁"])
    assert not kept.new_head and torch.equal(kept.model.head.output.weight, weight[[0, 2, 1]])
    two = build_imported(checkpoint, SMALL.model_copy(update={"ctc_output": True}), ["<blk>", "B"])
    assert torch.equal(two.model.head.output.weight, weight[[0, 2]]) and torch.equal(
        two.model.ctc.weight, weight[[0, 2]]
    )
    assert "copied\tctc.weight\tlm_head.weight" in two.lines
    other = build_imported(checkpoint, SMALL, ["<blk>", "AH"])
    assert other.new_head and other.model.outputs == 2
    assert any(line.startswith("initialised anew (our outputs AH are not") for line in other.lines)
    assert "not taken over\t\tlm_head.weight" in other.lines


def test_lists_of_layers_are_read_without_evaluation() -> None:
    assert read_list("[(512, 10, 5)] + [(512,3,2)] * 2") == [(512, 10, 5), (512, 3, 2), (512, 3, 2)]
    with pytest.raises(ValueError, match="cannot read"):
        read_list("__import__('os').getcwd()")
