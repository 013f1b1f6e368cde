"""Parameter counts of the paper's shapes from their YAML files, and multiply-adds against torch's own counter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from distill.config.experiment import Experiment
from distill.config.model import Encoder, FrontEnd, Model, Streaming, Transducer
from distill.models.cost import parameters, predict_rtf, quantizer_parameters
from distill.models.macs import frames_of, macs
from distill.models.recogniser import Recogniser
from tools import size

CONF = Path(__file__).parents[3] / "egs" / "librispeech" / "conf"
BASE_LIKE = ["model.front_end.bias=false", "model.front_end.norm_layers=first", "model.encoder.norm_first=false"]
TRUNKS = {  # design: BASE-like, Large-like
    "s1": (94_371_712, 94_381_440),
    "s2": (44_129_408, 44_139_136),
    "s3": (26_873_344, 26_883_072),
    "s4": (23_324_416, 23_334_144),
    "s5": (22_338_304, 22_347_008),
}


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("large", [False, True], ids=["base-like", "large-like"])
def test_named_shapes_have_the_published_counts(name: str, large: bool) -> None:
    experiment = Experiment.load(CONF / f"{name}.yaml", [] if large else BASE_LIKE)
    assert parameters(experiment.model, 43)["trunk"] == TRUNKS[name][large]
    streams = Experiment.load(CONF / f"{name}_stream.yaml", [] if large else BASE_LIKE)
    assert streams.init == name and streams.stage == 9
    assert parameters(streams.model, 43) == parameters(experiment.model, 43)


def test_s2_with_an_always_present_projection() -> None:
    for overrides, count in (([], 44_401_792), (BASE_LIKE, 44_392_064)):
        model = Experiment.load(CONF / "s2.yaml", [*overrides, "model.encoder.always_project=true"]).model
        assert parameters(model, 43)["trunk"] == count


def test_teachers_have_the_published_counts() -> None:
    large = Experiment.load(CONF / "teacher.yaml").model
    assert parameters(large, 43)["trunk"] + quantizer_parameters(512, 1024, code_dim=768) == 317_390_592
    base = Experiment.load(CONF / "teacher_hubert.yaml").model
    assert parameters(base, 43)["trunk"] == 94_371_712
    assert parameters(base, 43)["trunk"] + quantizer_parameters(512, 768, code_dim=256) == 95_044_608
    wavlm = Experiment.load(CONF / "teacher_wavlm.yaml").model
    assert parameters(wavlm, 43)["trunk"] == 94_381_936
    wavlm_large = ["model.front_end.bias=false", "model.encoder.relative_buckets=320"]
    assert parameters(Experiment.load(CONF / "teacher.yaml", wavlm_large).model, 43)["trunk"] == 315_453_120


WAVE = FrontEnd(layers=((12, 10, 5), (16, 8, 8), (24, 8, 8)), norm="frame", waveform="none", causal=True)
FBANK = FrontEnd(input="fbank", layers=((24, 3, 2),), norm="frame", waveform="none")
LOG_MEL = FrontEnd(input="log_mel", layers=((24, 3, 1), (24, 3, 2)), norm="frame", norm_layers="none", waveform="none")


@pytest.mark.parametrize(
    ("front", "shared", "always"),
    [(WAVE, None, False), (WAVE, 40, True), (FBANK, 40, False), (LOG_MEL, None, False)],
)
def test_multiply_adds_are_what_torch_counts(front: FrontEnd, shared: int | None, always: bool) -> None:
    encoder = Encoder(
        dim=24, ffn_dim=56, layers=3, heads=2, position_kernel=6, position_groups=4, position_causal=True,
        always_project=always, positions="sinusoid" if front is LOG_MEL else "convolution",
    )  # fmt: skip
    model = Model(front_end=front, encoder=encoder, shared_head_dim=shared)
    network = Recogniser(model, 11).eval()
    frames = frames_of(model)
    assert frames.past == 0 and frames.seconds == pytest.approx(15)
    samples = 15 * 16000 + front.ahead
    plain = sdpa_kernel(SDPBackend.MATH)  # the fused attention of a CPU is not counted
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        output = network(torch.zeros(1, samples), torch.tensor([samples]))
    assert abs(output.logits.shape[1] - frames.now) <= 1
    expected = macs(model, 11)
    transform = {"fbank": 100 * 512 * 10, "log_mel": 100 * 400 * 9}.get(front.input, 0)  # torch counts none
    assert counter.get_total_flops() / 2 == pytest.approx(15 * (sum(expected.values()) - transform), rel=5e-3)


def test_streaming_counts_the_whole_history() -> None:
    streaming = Streaming(chunk_frames=10, history_frames=50)
    encoder = Encoder(dim=24, ffn_dim=56, layers=3, heads=2, position_groups=4, position_causal=True)
    model = Model(front_end=WAVE, encoder=encoder, streaming=streaming)
    rate = 16000 / 320
    assert macs(model, 11)["attention"] == rate * 3 * 2 * 24 * 60
    assert frames_of(model).seconds == pytest.approx(0.2)


def test_the_tool_prints_all_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "size.json"
    monkeypatch.setattr("sys.argv", ["size.py", str(CONF / "mini" / "ss_fbank40.yaml"), "--json", str(written)])
    size.main()
    (row,) = json.loads(written.read_text())["rows"]
    model = Experiment.load(CONF / "mini" / "ss_fbank40.yaml").model
    assert row["params"] == {**parameters(model, 43), "training_only": 2 * 112 * 192}, "the last W is the shared head's"
    assert row["macs_per_second"]["total"] == pytest.approx(sum(macs(model, 43).values()))
    assert (row["latency_ms"]["mean"], row["latency_ms"]["max"]) == (140 + 37.5, 280 + 37.5)
    assert row["rtf_predicted"]["total"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["lrf.yaml", "--set", "model.encoder.rank=5000"], r"model\.encoder\.rank: 5000 makes no linear map smaller"),
        (
            ["m3.yaml", "--set", "objective.teacher_layers=[1,2,9]"],
            r"names teacher blocks \[9\], but the teacher has 1",
        ),
        (["sn.yaml", "--set", "teacher.experiment=other"], r"sn: teacher\.experiment: there is no .*/mini/other\.yaml"),
    ],
)
def test_the_tool_refuses_what_training_does(monkeypatch: pytest.MonkeyPatch, options: list[str], message: str) -> None:
    monkeypatch.setattr("sys.argv", ["size.py", str(CONF / "mini" / options[0]), *options[1:]])
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        size.main()


def test_heads_of_terms_are_counted_with_and_without_a_teacher() -> None:
    conf, counts = CONF / "mini", {}
    for name in ("hubert1", "bestrq", "dt_disc"):
        experiment = Experiment.load(conf / f"{name}.yaml")
        counts[name] = size.training_only(experiment, conf), experiment.model.encoder.dim, experiment
    count, dim, experiment = counts["hubert1"]
    final = experiment.objective.hubert.final_dim
    assert count == (dim + 1) * final + experiment.units.clusters * final
    count, dim, experiment = counts["bestrq"]
    assert count == (dim + 1) * experiment.objective.bestrq.codebooks * experiment.objective.bestrq.codewords
    count, dim, _ = counts["dt_disc"]
    regression = (dim + 1) * 3 * dim + 3 * (dim + 1) * Experiment.load(conf / "hubert.yaml").model.encoder.dim
    assert count == regression + (dim + 1) * 64 + 500 * 64, "as many codewords as HuBERT's, where they are not known"


@pytest.mark.parametrize("transducer", [None, "stateless", "lstm"])
def test_prediction_has_all_parts_and_leaves_the_threads_alone(transducer: str | None) -> None:
    encoder = Encoder(dim=24, ffn_dim=56, layers=3, heads=2, position_groups=4, relative_buckets=8)
    before = torch.get_num_threads()
    joined = Transducer.model_validate({"predictor": transducer, "dim": 8, "joiner_dim": 8}) if transducer else None
    predicted = predict_rtf(Model(front_end=FBANK, encoder=encoder, transducer=joined), 11, repeats=1)
    assert ("transducer" in predicted) == (transducer is not None)
    assert torch.get_num_threads() == before
    assert min(predicted.values()) > 0 and predicted["total"] == pytest.approx(sum(predicted.values()) / 2)
