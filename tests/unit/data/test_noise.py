from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from distill.data.noise import NoiseClips, add_noise, coloured_noise, rms
from tests.support.corpora import write_tone


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_spectrum_falls_as_asked(exponent: float) -> None:
    noise = coloured_noise(1 << 16, exponent, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(noise)) ** 2
    octaves = [power[1 << k : 2 << k].mean() for k in range(6, 15)]
    slope = np.polyfit(np.log(2.0) * np.arange(len(octaves)), np.log(octaves), 1)[0]
    assert slope == pytest.approx(-exponent, abs=0.1)
    assert rms(noise) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 20.0])
def test_noise_is_added_at_the_ratio(snr: float) -> None:
    rng = np.random.default_rng(1)
    speech = rng.standard_normal(8000).astype(np.float32)
    added = add_noise(speech, 7 * rng.standard_normal(8000).astype(np.float32), snr) - speech
    assert 20 * np.log10(rms(speech) / rms(added)) == pytest.approx(snr, abs=0.01)


def test_silent_noise_changes_nothing() -> None:
    speech = np.ones(10, np.float32)
    assert np.array_equal(add_noise(speech, np.zeros(10, np.float32), 5.0), speech)


def test_short_clips_are_repeated(tmp_path: Path) -> None:
    clips = NoiseClips([write_tone(tmp_path / "a.flac", 0.01)])
    drawn = clips.draw(1000, np.random.default_rng(0))
    assert drawn.shape == (1000,) and np.array_equal(drawn[:160], drawn[160:320]) and rms(drawn) > 0.01


def test_clips_are_found_in_folders(tmp_path: Path) -> None:
    write_tone(tmp_path / "x/y.flac")
    assert len(NoiseClips(tmp_path).clips) == 1


def test_wrong_clips_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no noise folder"):
        NoiseClips(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"no \.flac or \.wav"):
        NoiseClips(tmp_path)
    with pytest.raises(ValueError, match="8000 Hz, expected 16000"):
        NoiseClips([write_tone(tmp_path / "slow.flac", rate=8000)])
