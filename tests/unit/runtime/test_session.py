"""Sessions over torch: any chunking gives the masked forward; wrong audio is named."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.decode.log_probs import in_windows
from distill.runtime.info import ModelInfo
from distill.runtime.open import open_session
from distill.runtime.session import Session, checked
from distill.runtime.torch_runner import info_of, torch_runner
from tests.support.models import CHUNK, MODELS, OUTPUTS, build


def forward(model, wave: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        output = model(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
    return output.logits[0, : int(output.lengths)].log_softmax(-1).numpy()


def torch_session(model, mode: str = "") -> Session:
    info = info_of(model, OUTPUTS, "small")
    return Session(torch_runner(model, info, bool(info.chunk_frames) if not mode else mode == "streaming"))


def speech(samples: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    slow = np.sin(np.arange(samples) / 900) ** 2
    return (0.2 * slow * generator.standard_normal(samples)).astype(np.float32)


def in_pieces(session: Session, wave: np.ndarray, cuts: list[int]) -> np.ndarray:
    edges = sorted({0, len(wave), *(cut % len(wave) for cut in cuts)})
    heard = [session.feed(wave[start:end]) for start, end in itertools.pairwise(edges)]
    heard.append(session.flush())
    starts = np.cumsum([0, *(len(h.log_probs) for h in heard)])
    assert [h.start for h in heard] == starts[:-1].tolist()
    assert [h.samples for h in heard] == [*edges[1:], len(wave)]
    return np.concatenate([h.log_probs for h in heard])


@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from(sorted(MODELS)), samples=st.integers(1, 9000), cuts=st.lists(st.integers(0, 9000), max_size=6)
)
def test_any_chunking_gives_the_masked_forward(name: str, samples: int, cuts: list[int]) -> None:
    model, wave = build(*MODELS[name]), speech(samples)
    session, expected = torch_session(model), forward(model, wave)
    for _ in range(2):  # the second utterance finds nothing left of the first
        np.testing.assert_allclose(in_pieces(session, wave, cuts), expected, rtol=0, atol=1e-4)


def test_info_counts_frames_as_the_model_does(model) -> None:
    info = info_of(model, OUTPUTS, "small")
    samples = torch.tensor([1, 79, 399, 400, 559, 560, 4000, 16001])
    assert [info.model.front_end.frames(n) for n in samples.tolist()] == model.front_end.lengths(samples).tolist()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.float32), "zero samples"),
        (np.array([0.1, np.nan, np.inf], np.float32), "2 NaN or infinite values of 3"),
        (np.zeros((2, 160), np.float32), r"one channel \(n,\), got \(2, 160\)"),
        (np.full(160, 3000.0), "reach 3000, expected floats in -1..1"),
        (np.zeros(160, np.int32), "int32"),
    ],
)
def test_wrong_audio_is_refused(samples: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        torch_session(build(*MODELS["waveform"])).feed(samples)


def test_sixteen_bit_samples_mean_the_same() -> None:
    whole = np.array([-32768, 0, 16384], np.int16)
    np.testing.assert_array_equal(checked(whole), np.array([-1, 0, 0.5], np.float32))


def test_missing_and_unknown_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="train it first"):
        open_session(tmp_path, "torch")
    with pytest.raises(FileNotFoundError, match="--stage 12"):
        open_session(tmp_path, "onnx")
    with pytest.raises(ValueError, match="expected torch, onnx or int8"):
        open_session(tmp_path, "tensorrt")
    with pytest.raises(ValueError, match="streaming or offline"):
        open_session(tmp_path, "onnx", "sometimes")
    (tmp_path / "export.json").write_text('{"model": {"outputs": []}}')
    with pytest.raises(ValueError, match="another version"):
        ModelInfo.of_export(tmp_path / "export.json")


def test_the_state_of_a_stream_is_bounded() -> None:
    session = torch_session(build(*MODELS["waveform"]))
    sizes = []
    for seed in range(12):
        session.feed(speech(5000, seed))
        state = vars(session.runner._state)  # type: ignore[attr-defined]
        tensors = [t for value in state.values() for t in (value if isinstance(value, list) else [value])]
        flat = [x for t in tensors for x in (t if isinstance(t, tuple) else (t,)) if isinstance(x, torch.Tensor)]
        sizes.append(sum(x.numel() for x in flat if x is not state["audio"]))
        assert state["audio"].shape[1] < 2 * 5000
    assert len(set(sizes[4:])) == 1


@pytest.mark.parametrize("name", ["waveform", "gabor", "post-LN", "fbank", "relative", "conformer"])
@pytest.mark.parametrize("samples", [500, 60000, 61237])
def test_the_masked_forward_in_windows_is_the_whole_one(name: str, samples: int) -> None:
    model, wave = build(*MODELS[name]), speech(samples)
    pieces = [wave[start : start + 1111] for start in range(0, samples, 1111)]
    windows = list(in_windows(model, pieces, 3 * CHUNK))
    assert len(windows) > 1 or samples == 500
    got = np.concatenate([np.zeros((0, len(OUTPUTS)), np.float32), *windows])
    np.testing.assert_allclose(got, forward(model, wave), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["offline", "sinks"])
def test_windows_need_a_bounded_past(name: str) -> None:
    with pytest.raises(ValueError, match="has unbounded left context"):
        next(in_windows(build(*MODELS[name]), [speech(100)], 8))
