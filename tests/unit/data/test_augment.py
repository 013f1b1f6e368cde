from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.config.distortions import noise_clips
from distill.data.augment import Distortion, NoiseClips, shift_pitch, utterance_rng
from distill.synthetic.noise import add_noise, coloured_noise, rms
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


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_spectrum_falls_by_its_exponent(exponent: float) -> None:
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


def test_noise_that_is_read_as_it_is_drawn_is_the_same(tmp_path: Path) -> None:
    files = [write_tone(tmp_path / f"{hertz}.flac", seconds) for hertz, seconds in ((1, 0.01), (2, 0.5), (3, 2.0))]
    every, read = NoiseClips(files), NoiseClips(files, kept=0)
    for seed in range(20):
        first, second = (clips.draw(8000, np.random.default_rng(seed)) for clips in (every, read))
        np.testing.assert_array_equal(first, second)


def test_clips_are_found_in_folders(tmp_path: Path) -> None:
    write_tone(tmp_path / "x/y.flac")
    assert len(NoiseClips(tmp_path).files) == 1


def test_wrong_clips_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no noise folder"):
        NoiseClips(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"no \.flac or \.wav"):
        NoiseClips(tmp_path)
    with pytest.raises(ValueError, match="8000 Hz, expected 16000"):
        NoiseClips([write_tone(tmp_path / "slow.flac", rate=8000)])


LEVELS = {"PCM_16": [0.1], "PCM_24": [0.1], "FLOAT": [1e-5, 0.1, 30.0], "DOUBLE": [1e-5, 0.1, 30.0]}


@pytest.mark.parametrize(("subtype", "level"), [(kind, level) for kind, levels in LEVELS.items() for level in levels])
@pytest.mark.parametrize("kept", [0, 10**6])
def test_noise_of_every_format_is_drawn(tmp_path: Path, subtype: str, level: float, kept: int) -> None:
    """Floating point has no range of its own."""
    noise = (level * np.sin(np.arange(800))).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", noise, 16000, subtype=subtype)
    drawn, same = NoiseClips(tmp_path, kept=kept).draw(400, np.random.default_rng(0)), np.random.default_rng(0)
    same.integers(1)  # the file
    expected = np.roll(noise, -int(same.integers(800)))[:400]
    cosine = (drawn * expected).sum() / (np.linalg.norm(drawn) * np.linalg.norm(expected))
    assert cosine == pytest.approx(1, abs=1e-3)


def test_damaged_noise_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 16000), 16000)
    path.write_bytes(path.read_bytes()[:9000])
    for kept in (0, 10**6):
        with pytest.raises(ValueError, match=rf"noise clip {path} cannot be read .*remove it, or convert it"):
            for number in range(20):
                NoiseClips(tmp_path, kept=kept).draw(8000, np.random.default_rng(number))
    soundfile.write(tmp_path / "b.wav", np.full(100, np.nan, np.float32), 16000, subtype="FLOAT")
    path.unlink()
    with pytest.raises(ValueError, match=r"b\.wav cannot be read \(infinite samples"):
        NoiseClips(tmp_path)


def test_noise_in_linked_folders_is_found_once(tmp_path: Path) -> None:
    folder, other = tmp_path / "noise", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    write_tone(folder / "a.wav", 0.1)
    write_tone(other / "b.WAV", 0.1)
    (folder / "sub").symlink_to(other)
    (other / "circle").symlink_to(folder)
    assert sorted(path.name for path in noise_clips(folder)) == ["a.wav", "b.WAV"]
