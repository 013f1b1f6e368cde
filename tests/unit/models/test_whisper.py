"""Whisper's encoder against transformers' own, value and gradient; CTranslate2 files; what is refused."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from distill.config.model import Encoder, FrontEnd, Model, Streaming
from distill.models.log_mel import log_mel
from distill.models.pretrained import build_imported, read_checkpoint
from distill.models.pretrained.names import CTRANSLATE2, WHISPER
from distill.models.recogniser import Recogniser, build_model

transformers = pytest.importorskip("transformers")

OUTPUTS = ("<blk>", "A", "B")
SAMPLES = (24_517, 9_999)
TAIL = 50
SMALL = Model(
    front_end=FrontEnd(
        input="log_mel",
        layers=((16, 3, 1), (16, 3, 2)),
        bias=True,
        norm="frame",
        norm_layers="none",
        waveform="none",
        tail=TAIL,
    ),
    encoder=Encoder(
        dim=16, ffn_dim=24, layers=3, heads=2, norm_first=True, positions="sinusoid", feature_norm=False, dropout=0.0
    ),
)
CONFIG = {
    "d_model": 16, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_layers": 1,
    "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 3, "max_target_positions": 8, "dropout": 0.0,
}  # fmt: skip


def waves() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, generator=generator) * torch.linspace(0.3, 1e-5, n) for n in SAMPLES]


def twin(folder: Path, name: str = "WhisperModel") -> torch.nn.Module:
    """A random model of transformers in a folder; its positions are the sinusoids that it begins with."""
    torch.manual_seed(5)
    model = getattr(transformers, name)(transformers.WhisperConfig(**CONFIG)).eval()
    with torch.no_grad():
        for each, parameter in model.named_parameters():
            if "embed_positions" not in each:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    transformers.WhisperFeatureExtractor().save_pretrained(folder)
    return model


def theirs(encoder: torch.nn.Module, wave: Tensor, frames: int) -> list[Tensor]:
    """Hidden states (T, C) of the audio in 30 s of silence, the attention limited to those frames and TAIL more."""
    features = transformers.WhisperFeatureExtractor()(wave.numpy(), sampling_rate=16000, return_tensors="pt")
    mask = torch.zeros(1, 1, 1, 1500)
    mask[..., frames + TAIL :] = torch.finfo(torch.float32).min
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, kwargs: ((args[0], mask), kwargs), with_kwargs=True)
        for layer in encoder.layers
    ]
    output = encoder(features.input_features, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return [x[0, :frames] for x in (*output.hidden_states[:-1], output.last_hidden_state)]


def imported(source: str, settings: Model | None = None) -> Recogniser:
    return build_imported(read_checkpoint(source), settings, OUTPUTS).model.eval()


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("samples", [100, 320, 321, 16_000, 50_001])
def test_log_mels_are_those_of_whispers_30_seconds(mels: int, samples: int) -> None:
    extractor = transformers.WhisperFeatureExtractor(feature_size=mels)
    wave = waves()[0].repeat(3)[:samples]
    expected = torch.as_tensor(extractor(wave.numpy(), sampling_rate=16000).input_features)[0]
    found = log_mel(wave[None], mels)[0]
    torch.testing.assert_close(found, expected[:, : found.shape[1]], rtol=0, atol=1e-4)
    assert expected[:, found.shape[1] :].unique().numel() <= 1, "no sample is in the frames that follow"


@pytest.mark.parametrize("name", ["WhisperModel", "WhisperForConditionalGeneration"])
def test_hidden_states_and_gradients_are_transformers(tmp_path: Path, name: str) -> None:
    model = twin(tmp_path, name)
    encoder = getattr(model, "model", model).encoder
    ours = imported(f"hf:{tmp_path}")
    assert ours.settings.encoder == SMALL.encoder.model_copy(update={"dropout": 0.1})
    assert ours.settings.front_end == SMALL.front_end
    output = ours(torch.nn.utils.rnn.pad_sequence(waves(), batch_first=True), torch.tensor(SAMPLES))
    assert output.lengths.tolist() == [samples // 320 for samples in SAMPLES]
    losses = [torch.zeros(()), torch.zeros(())]
    for b, (wave, frames) in enumerate(zip(waves(), output.lengths.tolist())):
        for number, expected in enumerate(theirs(encoder, wave, frames)):
            found = output.hidden[number][b, :frames]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=f"block {number}")
            losses[0], losses[1] = losses[0] + (found**3).mean(), losses[1] + (expected**3).mean()
    for loss in losses:
        loss.backward()
    own, compared = dict(ours.named_parameters()), 0
    for their_name, parameter in encoder.named_parameters():
        if (place := WHISPER.ours(f"encoder.{their_name}")) is not None:
            torch.testing.assert_close(own[place].grad, parameter.grad, rtol=1e-3, atol=1e-5, msg=their_name)
            compared += 1
    assert compared == len(list(encoder.parameters())) - 1, "all but the positions"
    assert max(float(own[f"encoder.blocks.{n}.attention.key.bias"].grad.abs().max()) for n in range(3)) < 1e-6


def test_an_utterance_has_the_same_output_alone_and_in_a_batch() -> None:
    model = build_model(SMALL, len(OUTPUTS)).eval()
    padded = torch.nn.utils.rnn.pad_sequence(waves(), batch_first=True, padding_value=0.7)  # which is not looked at
    padded.requires_grad_()
    together = model(padded, torch.tensor(SAMPLES))
    for b, wave in enumerate(waves()):
        alone = model(wave[None], torch.tensor([len(wave)]))
        for x, y in zip(alone.hidden, together.hidden):
            torch.testing.assert_close(y[b, : x.shape[1]], x[0], rtol=1e-4, atol=1e-5)
    frames = int(together.lengths[1])
    together.logits[1, :frames].square().sum().backward()
    assert padded.grad[1, : SAMPLES[1]].abs().sum() > 0 and padded.grad[1, SAMPLES[1] :].abs().sum() == 0
    assert padded.grad[0].abs().sum() == 0


def test_the_silence_behind_is_seen_and_left_out() -> None:
    with_tail = build_model(SMALL, len(OUTPUTS)).eval()
    without = build_model(
        Model.model_validate({**SMALL.model_dump(), "front_end": {**SMALL.front_end.model_dump(), "tail": 0}}),
        len(OUTPUTS),
    ).eval()
    without.load_state_dict(with_tail.state_dict())
    wave, samples = waves()[0][None], torch.tensor([SAMPLES[0]])
    ours, others = with_tail(wave, samples, attention=(1,)), without(wave, samples)
    silent = without(torch.nn.functional.pad(wave, (0, TAIL * 320)), samples + TAIL * 320)
    frames = int(ours.lengths[0])
    shapes = {x.shape[1] for x in (ours.logits, ours.normed, *ours.hidden, *ours.attention.values())}
    assert shapes == {frames} and others.logits.shape == ours.logits.shape
    torch.testing.assert_close(ours.hidden[0], others.hidden[0])
    torch.testing.assert_close(ours.logits, silent.logits[:, :frames])
    assert float((ours.logits - others.logits).detach().abs().max()) > 1e-3


def test_audio_of_more_than_30_seconds_and_of_less_than_a_frame_is_taken() -> None:
    model = build_model(SMALL, len(OUTPUTS)).eval()
    output = model(torch.cat([0.1 * torch.randn(1, 31 * 16000)] * 2), torch.tensor([31 * 16000, 319]))
    assert output.lengths.tolist() == [1550, 0] and bool(output.logits.isfinite().all())


def test_it_does_not_stream_and_says_why() -> None:
    with pytest.raises(ValueError, match=r"it has front_end\.input: log_mel .*, encoder\.positions: sinusoid"):
        Model(**{**SMALL.model_dump(), "streaming": Streaming(chunk_frames=8)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_layers": "all"}, "log_mel has none"),
        ({"norm": "group"}, "norm: group"),
        ({"waveform": "gain"}, "waveform: gain"),
        ({"layers": ((16, 4, 2),)}, "kernels of an even width"),
        ({"input": "waveform"}, "norm_layers: none with input: waveform"),
        ({"input": "fbank", "norm_layers": "all"}, "tail: 50 frames of silence are for input: log_mel"),
    ],
)
def test_settings_that_whisper_does_not_have_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrontEnd.model_validate({**SMALL.front_end.model_dump(), **changes})


def test_what_is_left_behind_is_listed(tmp_path: Path) -> None:
    twin(tmp_path)
    lines = build_imported(read_checkpoint(f"hf:{tmp_path}"), SMALL, OUTPUTS).lines
    assert "copied\tencoder.blocks.1.attention.key.bias\tencoder.layers.1.self_attn.k_proj.zeros" in lines
    left = [line for line in lines if line.startswith("left behind (")]
    assert any(line.endswith("\tdecoder.embed_tokens.weight") for line in left)
    assert all("\tdecoder." in line or line.endswith("encoder.embed_positions.weight") for line in left)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"activation_function": "relu"}, "'activation_function': 'relu'.*only.*gelu"),
        ({"scale_embedding": True}, "scale_embedding"),
        ({"d_model": 32}, "d_model 32 where the tensors have 16"),
        ({"num_mel_bins": 128}, "num_mel_bins 128 where the tensors have 80"),
        ({"encoder_attention_heads": 3}, "3 attention heads do not divide width 16"),
    ],
)
def test_variants_are_refused(tmp_path: Path, config: dict, message: str) -> None:
    twin(tmp_path)
    rewritten = {**transformers.WhisperConfig.from_pretrained(tmp_path).to_dict(), **config}
    transformers.WhisperConfig.from_dict(rewritten).to_json_file(tmp_path / "config.json", use_diff=False)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(f"hf:{tmp_path}")


def test_trained_positions_and_other_preprocessing_are_refused(tmp_path: Path) -> None:
    model = twin(tmp_path)
    transformers.WhisperFeatureExtractor(hop_length=80).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hop_length 80 of its preprocessor; only 160"):
        read_checkpoint(f"hf:{tmp_path}")
    (tmp_path / "preprocessor_config.json").unlink()
    with torch.no_grad():
        model.encoder.embed_positions.weight[3, 1] += 0.1
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"encoder\.embed_positions\.weight are no sinusoids"):
        read_checkpoint(f"hf:{tmp_path}")


# CTranslate2

TYPES = {np.float32: 0, np.int8: 1, np.int16: 2, np.float16: 4}


def named(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def file_of(
    variables: Mapping[str, np.ndarray],
    aliases: Mapping[str, str] | None = None,
    version: int = 6,
    kind: str = "WhisperSpec",
) -> bytes:
    """A model.bin of CTranslate2."""
    content = struct.pack("<I", version) + named(kind) + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        shape = struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        content += named(name) + shape + struct.pack("<BI", TYPES[value.dtype.type], value.nbytes) + value.tobytes()
    pairs = (aliases or {}).items()
    return content + struct.pack("<I", len(pairs)) + b"".join(named(name) for pair in pairs for name in pair)


def variables_of(model: Recogniser, cast: Callable[[np.ndarray], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """A model's weights by CTranslate2's names, each cast to a value and its scale."""
    own = {name: x.numpy() for name, x in model.state_dict().items()}
    whole = {"encoder/num_heads": np.array(2, np.int16), "decoder/x": np.ones((3, 2), np.float32)}
    for n in range(model.settings.encoder.layers):
        for rest in ("weight", "bias"):
            joined = [own[f"encoder.blocks.{n}.attention.{part}.{rest}"] for part in ("query", "key", "value")]
            whole[f"encoder/layer_{n}/self_attention/linear_0/{rest}"] = np.concatenate(joined)
        for theirs_, ours_ in CTRANSLATE2.names.items():
            theirs_, ours_ = theirs_.replace("{n}", str(n)), ours_.replace("{n}", str(n))
            whole |= {
                theirs_.replace("*", rest): own[ours_.replace("*", rest)]
                for rest in (("weight", "bias") if "*" in theirs_ else ("",)) if "_proj." not in theirs_
            }  # fmt: skip
    cast_names = {name: cast(value) for name, value in whole.items() if name.endswith("/weight")}
    return whole | {f"{name}{end}": value for name, each in cast_names.items() for end, value in each.items()}


def rows(value: np.ndarray) -> dict[str, np.ndarray]:
    """As int8 with a scale for each row."""
    scale = 127 / np.abs(value.reshape(len(value), -1)).max(1)
    return {
        "": np.rint(value * scale.reshape(-1, *[1] * (value.ndim - 1))).astype(np.int8),
        "_scale": scale.astype(np.float32),
    }


CASTS = {
    "float32": (lambda value: {"": value}, 0.0),
    "float16": (lambda value: {"": value.astype(np.float16)}, 1e-3),
    "int8": (rows, 1 / 127),
    "int16": (
        lambda value: {"": np.rint(value * 9999).astype(np.int16), "_scale": np.array(9999, np.float32)}, 1e-3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CASTS)
@pytest.mark.parametrize("parts", [1, 3])
def test_a_ctranslate2_folder_has_the_models_weights(tmp_path: Path, kind: str, parts: int) -> None:
    model, (cast, tolerance) = build_model(SMALL, len(OUTPUTS), seed=2), CASTS[kind]
    content = file_of(variables_of(model, cast))
    size = -(-len(content) // parts)
    for number in range(parts):
        name = "model.bin" if parts == 1 else f"model.bin.part{number + 1}"
        (tmp_path / name).write_bytes(content[number * size : (number + 1) * size])
    found = imported(f"whisper:{tmp_path}")
    assert found.settings.encoder.heads == 2
    own = model.state_dict()
    for name, value in found.state_dict().items():
        if not name.startswith(("head.", "encoder.mask_embedding")):
            torch.testing.assert_close(
                value, own[name], rtol=0, atol=tolerance * float(own[name].abs().max()), msg=name
            )


def test_aliases_stand_for_their_variables(tmp_path: Path) -> None:
    variables = variables_of(build_model(SMALL, len(OUTPUTS)), CASTS["float32"][0])
    variables["encoder/layer_0/ffn/layer_norm/gamma"][:] = np.arange(16)
    same = {"encoder/layer_1/ffn/layer_norm/gamma": "encoder/layer_0/ffn/layer_norm/gamma"}
    (tmp_path / "model.bin").write_bytes(file_of({k: v for k, v in variables.items() if k not in same}, same))
    assert imported(f"whisper:{tmp_path}", SMALL).encoder.blocks[1].ffn_norm.weight.tolist() == list(range(16))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda v: file_of(v)[:-40], "not the whole file"),
        (lambda v: file_of(v)[:5], "not the whole file"),
        (lambda v: b"", "cannot be read"),
        (lambda v: file_of(v) + b"\0", "1 bytes follow its end"),
        (lambda v: file_of(v, version=3), "binary version 3; only 6"),
        (lambda v: file_of(v, kind="BertSpec"), "kind 'BertSpec'; only WhisperSpec"),
        (lambda v: file_of(v, {"a": "b"}), "'a' stands for 'b', which is not there"),
        (lambda v: file_of(v)[:24] + b"\xff" * 4 + file_of(v)[28:], "cannot be read"),
        (lambda v: b"version https://git-lfs.github.com/spec/v1", "binary version"),
        (lambda v: file_of({**v, "encoder/conv1/weight": np.ones((16, 80, 0), np.float32)}), "has shape"),
        (lambda v: file_of({**v, "encoder/conv1/weight": np.ones((16, 80, 3), np.int8)}), "no floating-point"),
        (
            lambda v: file_of({**v, "encoder/conv1/weight_scale": np.ones(3, np.float32)}),
            r"'encoder/conv1/weight' has \(16, 80, 3\), but 3 scales",
        ),
        (
            lambda v: file_of({**v, "encoder/conv1/weight_scale": np.zeros(16, np.float32)}),
            r"NaN or infinite weights in encoder/conv1/weight",
        ),
        (lambda v: file_of({**v, "encoder/x": np.ones(3, np.float32)}), "no Whisper model has: encoder/x"),
        (lambda v: file_of({"encoder/num_heads": v["encoder/num_heads"]}), "is of Whisper: another family"),
        (
            lambda v: file_of({**v, "encoder/position_encodings/encodings": np.ones((9, 16), np.float32)}),
            "are no sinusoids",
        ),
    ],
)  # fmt: skip
def test_damaged_files_are_named(tmp_path: Path, damage: Callable[[dict], bytes], message: str) -> None:
    variables = variables_of(build_model(SMALL, len(OUTPUTS)), CASTS["float32"][0])
    (tmp_path / "model.bin").write_bytes(damage(variables))
    with pytest.raises(ValueError, match=message):
        read_checkpoint(f"whisper:{tmp_path}")


def test_folders_of_another_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model\.bin \(nor model\.bin\.part1"):
        read_checkpoint(f"whisper:{tmp_path}")
    (tmp_path / "model.bin.part2").touch()
    with pytest.raises(FileNotFoundError, match=r"parts \[2\] of model\.bin"):
        read_checkpoint(f"whisper:{tmp_path}")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a folder of CTranslate2; give whisper:"):
        read_checkpoint(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text('{"model_type": "whisper"}')
    with pytest.raises(ValueError, match="is a folder of transformers; give hf:"):
        read_checkpoint(f"whisper:{tmp_path}")
