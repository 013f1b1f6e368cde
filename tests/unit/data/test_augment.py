from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.data.augment import Distortion, shift_pitch, utterance_rng
from distill.data.noise import NoiseClips, rms
from tests.support.corpora import write_tone

VOLUME_ONLY = {"volume_probability": 1.0, "pitch_probability": 0.0}


def tone(hertz: float = 400.0, samples: int = 16000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(samples) / 16000)).astype(np.float32)


def peak(wave: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(wave * np.hanning(len(wave))))) * 16000 / len(wave))


@pytest.mark.parametrize("factor", [0.9, 0.96, 1.04, 1.1])
def test_pitch_moves_and_length_and_level_stay(factor: float) -> None:
    shifted = shift_pitch(tone(), factor)
    assert shifted.shape == (16000,) and shifted.dtype == np.float32
    assert peak(shifted) == pytest.approx(400 * factor, abs=2)
    assert rms(shifted) == pytest.approx(rms(tone()), rel=0.01)


def test_pitch_leaves_what_it_cannot_or_need_not_change() -> None:
    assert np.array_equal(shift_pitch(tone(), 1.004), tone())
    assert np.array_equal(shift_pitch(tone(samples=100), 1.1), tone(samples=100))
    with pytest.raises(ValueError, match="pitch factor"):
        shift_pitch(tone(), 0.0)


def test_volume_lies_in_its_range() -> None:
    distortion = Distortion(volume=(0.3, 3.0), **VOLUME_ONLY)
    factors = [float(distortion(np.ones(4, np.float32), utterance_rng(0, 0, str(i)))[0]) for i in range(300)]
    assert 0.3 <= min(factors) < 0.4 and 2.9 < max(factors) <= 3.0


def test_probability_is_kept() -> None:
    distortion = Distortion(volume_probability=0.5, pitch_probability=0.0)
    same = [distortion(np.ones(4, np.float32), utterance_rng(0, 0, str(i)))[0] == 1.0 for i in range(1000)]
    assert np.mean(same) == pytest.approx(0.5, abs=0.05)


def test_depends_on_seed_epoch_and_utterance_alone() -> None:
    distortion = Distortion(noise_probability=1.0)
    first = distortion(tone(), utterance_rng(1, 2, "a"))
    assert np.array_equal(first, distortion(tone(), utterance_rng(1, 2, "a")))
    for other in ((2, 2, "a"), (1, 3, "a"), (1, 2, "b")):
        assert not np.array_equal(first, distortion(tone(), utterance_rng(*other)))


def test_noise_from_clips_keeps_the_ratio(tmp_path: Path) -> None:
    clips = NoiseClips([write_tone(tmp_path / "hum.flac", 2.0)])
    distortion = Distortion(
        volume_probability=0.0, pitch_probability=0.0, noise_probability=1.0, noise_snr=(10.0, 10.0), clips=clips
    )
    added = distortion(tone(), utterance_rng(0, 0, "a")) - tone()
    assert 20 * np.log10(rms(tone()) / rms(added)) == pytest.approx(10.0, abs=0.1)
    assert peak(added) == pytest.approx(300, abs=2)


@pytest.mark.parametrize("wrong", [{"volume": (3.0, 0.3)}, {"pitch": (0.0, 1.0)}, {"noise_probability": 1.5}])
def test_wrong_settings_are_errors(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Distortion(**wrong)
