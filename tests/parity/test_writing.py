"""Folders for transformers: AutoModelForCTC loads them and gives our log-probabilities."""

from __future__ import annotations

import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from distill.config.model import Encoder, FrontEnd, Model  # noqa: E402
from distill.models.pretrained import read_checkpoint  # noqa: E402
from distill.models.pretrained.writing import obstacles, write_folder  # noqa: E402
from distill.models.recogniser import Recogniser  # noqa: E402

OUTPUTS = ["<blk>", *"ABCDEFG"]
LAYERS = ((16, 10, 5), (16, 3, 2), (24, 3, 2))


def model_of(norm: str, norm_first: bool, dim: int, waveform: str, shared: int | None) -> Recogniser:
    torch.manual_seed(0)
    front = FrontEnd(
        layers=LAYERS, norm=norm, norm_layers="first" if norm == "group" else "all", bias=norm == "frame",
        waveform=waveform,
    )  # fmt: skip
    encoder = Encoder(
        dim=dim, ffn_dim=32, layers=2, heads=2, norm_first=norm_first, position_kernel=6, position_groups=2
    )
    model = Recogniser(Model(front_end=front, encoder=encoder, shared_head_dim=shared), len(OUTPUTS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.front_end.gain.fill_(2.5)
    return model


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert"])
@pytest.mark.parametrize(
    ("norm", "norm_first", "dim", "waveform", "shared"),
    [("group", False, 16, "utterance", None), ("frame", True, 16, "gain", 20), ("frame", True, 24, "utterance", None)],
)
def test_automodel_gives_our_log_probabilities(tmp_path, kind, norm, norm_first, dim, waveform, shared) -> None:
    model = model_of(norm, norm_first, dim, waveform, shared)
    write_folder(model, OUTPUTS, tmp_path, kind)
    theirs, loading = transformers.AutoModelForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and not loading["mismatched_keys"]
    wave = torch.randn(1, 4000)
    heard = wave
    if waveform == "utterance":
        heard = (wave - wave.mean()) / (wave.var(unbiased=False) + 1e-7).sqrt()
    with torch.no_grad():
        ours = model(wave, torch.tensor([4000])).logits
        got = theirs.eval()(heard).logits
    torch.testing.assert_close(got, ours, rtol=1e-4, atol=1e-4)


def test_a_transducer_stays_behind(tmp_path) -> None:
    model = model_of("frame", True, 16, "gain", None)
    both = Model.model_validate(model.settings.model_dump() | {"transducer": {"dim": 6, "joiner_dim": 7}})
    write_folder(Recogniser(both, len(OUTPUTS)), OUTPUTS, tmp_path)
    _, loading = transformers.AutoModelForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


def test_what_transformers_lacks_is_named(tmp_path) -> None:
    model = model_of("frame", True, 16, "gain", None)
    values = model.settings.model_dump()
    values["front_end"]["causal"] = values["encoder"]["position_causal"] = True
    causal = Recogniser(Model.model_validate(values), len(OUTPUTS))
    with pytest.raises(ValueError, match=r"causal: true, encoder\.position_causal: true"):
        write_folder(causal, OUTPUTS, tmp_path)
    with pytest.raises(ValueError, match="expected wav2vec2 or hubert"):
        write_folder(model, OUTPUTS, tmp_path, "whisper")
    assert list(tmp_path.iterdir()) == []


def test_the_epsilon_of_another_library_is_an_obstacle() -> None:
    model = model_of("frame", True, 16, "utterance", None).settings
    other = model.model_copy(update={"front_end": model.front_end.model_copy(update={"waveform_eps": 1e-5})})
    assert (obstacles(model), obstacles(other)) == ([], ["front_end.waveform_eps: 1e-05"])


@pytest.mark.parametrize(
    ("outputs", "said", "text"),
    [
        (["<blk>", "▁", *"ABCDEF"], "▁AB▁C", "AB C"),
        (["<blk>", "|", *"ABCDEF"], "A|B", "A|B"),  # a unit of its own
        (["<blk>", "▁", "|", *"ABCDE"], "▁A|", "▁A|"),
        (["<blk>", *"ABCDEFG"], "AB", "AB"),
    ],
)
def test_words_are_separated_as_the_outputs_say(outputs: list[str], said: str, text: str, tmp_path) -> None:
    write_folder(model_of("group", False, 16, "utterance", None), outputs, tmp_path)
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path)
    assert tokenizer.decode([outputs.index(symbol) for symbol in said]) == text
    assert read_checkpoint(f"hf:{tmp_path}").units == tuple(outputs)
