"""Each distortion by what it does to a waveform; draws, labels and wrong settings."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from distill.config.distortions import CHANGES, CLEAN, CODECS, NOISES, Distort
from distill.config.experiment import Experiment
from distill.data import distortions
from distill.data.augment import utterance_rng
from distill.data.distortions import CHANGE, FORMATS, NOISE, ROOMS, Distorter, fast_response, shoebox_response
from distill.data.loader import SpeechDataset
from distill.synthetic.noise import coloured_noise, rms
from tests.support.corpora import write_tone
from tests.support.training import SETTINGS, loader_of, write_speech

PINK = 0.1 * coloured_noise(32001, 1.0, np.random.default_rng(0))


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hertz * np.arange(round(16000 * seconds)) / 16000)).astype(np.float32)


def peak(wave: np.ndarray) -> float:
    return float(np.argmax(np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 1 << 18))) * 16000 / (1 << 18))


def decibels(wave: np.ndarray, low: float, high: float) -> float:
    """Power between two frequencies."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    bins = np.arange(len(spectrum)) * 16000 / len(wave)
    return float(10 * np.log10(spectrum[(bins >= low) & (bins <= high)].mean() + 1e-30))


def distorted(name: str, wave: np.ndarray = PINK, utterance: str = "a", **settings: Any) -> np.ndarray:
    distorter = Distorter(Distort(steps=((name,),), **settings), Path())
    return distorter(wave, utterance_rng(0, 0, utterance))[0]


def test_the_tables_have_the_names_of_the_settings() -> None:
    assert (tuple(NOISE), tuple(CHANGE), tuple(FORMATS)) == (NOISES, CHANGES, CODECS)


@pytest.mark.parametrize("name", [*NOISES, *CHANGES])
@pytest.mark.parametrize("samples", [32001, 1600])
def test_length_stays_and_draws_depend_on_the_random_numbers_alone(name: str, samples: int) -> None:
    first = distorted(name, PINK[:samples])
    torch.manual_seed(123)
    assert first.shape == (samples,) and first.dtype == np.float32 and not np.array_equal(first, PINK[:samples])
    assert np.array_equal(first, distorted(name, PINK[:samples]))
    if name not in (*CODECS, "narrowband"):  # which have nothing to draw
        assert not np.array_equal(first, distorted(name, PINK[:samples], utterance="b"))


@pytest.mark.parametrize("name", NOISES)
@pytest.mark.parametrize("snr", [(10.0, 10.0), (-5.0, 20.0)])
def test_noise_is_added_at_a_ratio_within_the_range(name: str, snr: tuple[float, float]) -> None:
    for utterance in "abcd":
        ratio = 20 * np.log10(rms(PINK) / rms(distorted(name, utterance=utterance, snr=snr) - PINK))
        assert snr[0] - 0.01 <= ratio <= snr[1] + 0.01


@pytest.mark.parametrize("name", CHANGES)
def test_changes_keep_the_level_and_silence(name: str) -> None:
    assert rms(distorted(name)) == pytest.approx(rms(PINK), rel=1e-4)
    assert not distorted(name, np.zeros(4000, np.float32)).any()


def test_recorded_noise_is_of_its_folder(tmp_path: Path) -> None:
    write_tone(tmp_path / "noise/hall/hum.flac", 2.0)
    settings = Distort(steps=(("hall",),), noises={"hall": "noise/hall"}, snr=(12, 12))
    added = Distorter(settings, tmp_path)(PINK, utterance_rng(0, 0, "a"))[0] - PINK
    assert peak(added) == pytest.approx(300, abs=1)
    assert 20 * np.log10(rms(PINK) / rms(added)) == pytest.approx(12, abs=0.01)


@pytest.mark.parametrize(("cents", "steps"), [(-500, 37), (-100, 47), (250, 58), (500, 67)])
def test_pitch_moves_by_the_cents_drawn(cents: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors are multiples of 1 / 50: within 24 cents, which a thousand draws below the range show as well."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(distortions, "shift_pitch", spy := Spy(distortions.shift_pitch))
    for _ in range(4):
        CHANGE["pitch"](tone(440), rng)
    assert all(abs(1200 * np.log2(factor)) <= 500 for factor in spy.factors)
    moved = 1200 * np.log2(peak(spy.function(tone(440), 2 ** (cents / 1200))) / 440)
    assert moved == pytest.approx(1200 * np.log2(steps / 50), abs=5) and abs(moved - cents) < 24


class Spy:
    """Keeps the factors of `shift_pitch`."""

    def __init__(self, function: Any) -> None:
        self.function, self.factors = function, list[float]()

    def __call__(self, samples: np.ndarray, factor: float) -> np.ndarray:
        self.factors.append(factor)
        return self.function(samples, factor)


@pytest.mark.parametrize(("low", "high"), [(300.0, 600.0), (2000.0, 2400.0), (1.0, 200.0), (7000.0, 7999.0)])
def test_a_band_is_rejected_and_its_neighbours_stay(low: float, high: float) -> None:
    white = np.random.default_rng(0).standard_normal(64000).astype(np.float32)
    kept = distortions.reject_band(white, low, high)
    edge = distortions.TRANSITION / 2 + 10
    assert (
        decibels(kept, low + edge, high - edge) < decibels(white, low + edge, high - edge) - 70
    )  # the leakage of the window
    for below, above in ((10.0, low - edge), (high + edge, 7990.0)):
        if above - below > 100:
            assert decibels(kept, below, above) == pytest.approx(decibels(white, below, above), abs=0.05)
    alone = np.zeros(8001, np.float32)
    alone[4000] = 1
    response = np.abs(np.fft.rfft(distortions.reject_band(alone, low, high)))
    bins = np.arange(len(response)) * 16000 / 8001
    inside = response[(bins > low + edge) & (bins < high - edge)]
    assert 20 * np.log10(inside.max()) < -distortions.ATTENUATION + 1


def test_random_bands_lie_all_over_the_mel_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    bands: list[tuple[float, float]] = []
    monkeypatch.setattr(distortions, "reject_band", lambda samples, *band: bands.append(band))
    for number in range(500):
        CHANGE["band_reject"](PINK, np.random.default_rng(number))
    mels = np.log1p(np.array(bands) / 700) / np.log1p(8000 / 700)
    widths = mels[:, 1] - mels[:, 0]
    assert widths.min() >= 0 and 0.05 < widths.max() <= 27 * 0.5 / 256 + 1e-6
    assert mels.min() < 0.02 and mels.max() > 0.98
    assert np.histogram(mels[:, 0], 4, (0, 0.95))[0].min() > 80


@pytest.mark.parametrize("low", [0.0, 256 - 1e-4])
def test_a_band_at_an_edge_of_the_axis_may_be_empty(low: float) -> None:
    draws = iter((1e-4, low))
    rng = SimpleNamespace(uniform=lambda *_: next(draws))
    assert np.array_equal(CHANGE["band_reject"](PINK, rng), PINK)  # type: ignore[arg-type]


@pytest.mark.parametrize("response", [fast_response, shoebox_response])
def test_rooms_differ_and_leave_speech_in_its_frame(response: Any) -> None:
    rooms = [response(number) for number in range(5)]
    assert len({len(room) for room in rooms}) > 1
    before = torch.get_rng_state()
    response.__wrapped__(1)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(response.__wrapped__(1), rooms[1])
    click = np.zeros(8000, np.float32)
    click[1000] = 1.0
    for number in range(5):
        name = "reverb" if response is fast_response else "room"
        wet = distorted(name, click, utterance=str(number))
        energy = np.square(wet)
        assert energy.argmax() == 1000 and energy[1001:].sum() > energy[:1000].sum()
        assert energy[: 1000 - 320].sum() < 0.01 * energy.sum()  # of a frame
    assert ROOMS > 100


@pytest.mark.parametrize("name", CODECS)
def test_codecs_change_a_waveform_without_moving_it(name: str) -> None:
    speech = np.concatenate([tone(hertz, 0.2) for hertz in (220, 440, 330, 550, 275)]) + 0.01 * PINK[:16000]
    coded = distorted(name, speech)
    shifts = np.fft.irfft(np.fft.rfft(coded) * np.conj(np.fft.rfft(speech)))
    assert shifts.argmax() == 0 and 0.001 < rms(coded - speech) / rms(speech) < 0.6


def test_narrowband_and_clipping() -> None:
    white = np.random.default_rng(0).standard_normal(32000).astype(np.float32)
    narrow, clipped = distorted("narrowband", white), distorted("clipping", white)
    assert decibels(narrow, 5000, 8000) < decibels(narrow, 100, 3500) - 40
    assert 0.05 <= np.isclose(np.abs(clipped), np.abs(clipped).max()).mean() <= 0.31


def test_steps_draw_uniformly_and_labels_name_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distortions, "CHANGE", {name: lambda samples, rng: -samples for name in CHANGES})
    settings = Distort()
    assert settings.names == ("reverb", "pitch", "band_reject", "coloured", "gaussian", CLEAN)
    distorter, counts = Distorter(settings, Path()), Counter[tuple[str, ...]]()
    for number in range(1200):
        wave, label = distorter(tone(300, 0.01), utterance_rng(1, 0, str(number)))
        names = tuple(name for name, is_on in zip(distorter.names, label) if is_on)
        counts[names] += 1
        if names == (CLEAN,):
            assert np.array_equal(wave, tone(300, 0.01))
        elif {*names} <= {*CHANGES}:
            assert np.array_equal(wave, -tone(300, 0.01))
    assert len(counts) == 4 * 3 and all(60 < count < 145 for count in counts.values()), counts
    assert ("pitch", "gaussian") in counts and not any(CLEAN in names and len(names) > 1 for names in counts)


def batches(cuts: Any, workers: int = 0) -> list[Any]:
    data = {**SETTINGS["data"], "workers": workers}
    experiment = Experiment.parse({**SETTINGS, "data": data, "distort": {}}, "toy")
    loader = loader_of(
        cuts, None, experiment, distorter=Distorter(Distort(), Path()), with_second=True, with_clean=True
    )
    return [*loader.epoch(0), *loader.epoch(1)]


def test_versions_of_an_utterance_are_the_same_in_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.data.loader.available_cores", lambda: 8)
    monkeypatch.setattr("torch.utils.data.DataLoader.check_worker_number_rationality", lambda self: None)
    cuts = write_speech(tmp_path)
    first, others = batches(cuts), [batches(cuts, workers) for workers in (1, 2)]
    for other in others:
        assert [batch.ids for batch in other] == [batch.ids for batch in first]
        for ours, theirs in zip(first, other):
            for name in ("wave", "clean", "second", "distortions"):
                assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    changed = [(b.wave - b.clean).abs().amax(1) > 0 for b in first]
    assert torch.equal(torch.cat([b.distortions[:, -1] for b in first]) == 0, torch.cat(changed))
    assert any((b.wave != b.second).any() for b in first) and any((b.clean != b.second).any() for b in first)
    row = first[0].row(0)
    assert row.second.shape == row.wave.shape == row.clean.shape and row.distortions.shape == (1, 6)


def test_a_stand_in_has_every_version() -> None:
    dataset = SpeechDataset(None, None, 0, True, False, distorter=Distorter(Distort(), Path()), with_second=True)
    batch = dataset[[]]
    assert not batch.counted and not batch.wave.any() and batch.second.shape == batch.clean.shape == batch.wave.shape
    assert batch.distortions.shape == (1, 6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": [["gausian"]]}, "no distortion 'gausian'; did you mean 'gaussian'"),
        ({"steps": [["hum", "hum"]]}, "name each of its entries once"),
        ({"steps": [["hum"], ["hum", "clean"]]}, "in two of them, where one is enough: hum"),
        ({"steps": []}, "at least 1 item"),
        ({"steps": [[]]}, "at least 1 item"),
        ({"snr": [20, 10]}, "a range, its lower end first"),
        ({"snr": [10, 1000]}, "less than or equal to 200"),
        ({"steps": [["hall"]], "noises": {"hall": ""}}, "no folder is given: hall"),
        ({"steps": [["hall"]], "noises": {"hall": "../hall"}}, "folder below the data dir"),
        ({"noises": {"hall": "noise/hall"}}, r"in no step \(null takes one of a base away\): hall"),
        ({"steps": [["hum"]], "noises": {"hum": "noise/hum"}}, "name of another distortion: hum"),
    ],
)
def test_wrong_settings_are_errors(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Experiment.parse({**SETTINGS, "distort": wrong}, "toy")


def test_wrong_noise_and_missing_codecs_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Distort(steps=(("hall", "opus"),), noises={"hall": "hall"})
    with pytest.raises(FileNotFoundError, match="no noise folder"):
        Distorter(settings, tmp_path)
    (tmp_path / "hall").mkdir()
    with pytest.raises(ValueError, match=r"no \.flac or \.wav"):
        Distorter(settings, tmp_path)
    write_tone(tmp_path / "hall/slow.flac", rate=8000)
    with pytest.raises(ValueError, match="8000 Hz, expected 16000"):
        Distorter(settings, tmp_path)
    monkeypatch.setattr(soundfile, "check_format", lambda *format: format != ("OGG", "OPUS"))
    with pytest.raises(ValueError, match=r"opus: libsndfile [\d.]+ does not write OGG OPUS; install a newer soundfile"):
        Distorter(settings, tmp_path)


def test_rooms_without_their_package_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyroomacoustics", None)
    with pytest.raises(ValueError, match=r"room needs pyroomacoustics.*install the extra 'rooms'"):
        Distorter(Distort(steps=(("room",),)), Path())


def test_null_takes_away_what_a_base_has(tmp_path: Path) -> None:
    conf = Path(__file__).parents[3] / "egs/librispeech/conf"
    experiment = Experiment.load(conf / "cdm0_ft.yaml", ["decoding.conditions.fsd=null"])
    assert list(experiment.decoding.conditions) == ["two", "dns"]
    assert not Experiment.load(conf / "cdm0_ft.yaml", ["decoding.conditions=null"]).decoding.conditions
    steps = "distort={steps: [[gaussian, clean]], noises: {musan: null, wham: null}}"
    assert Experiment.load(conf / "cdm1.yaml", [steps]).distort.names == ("gaussian", "clean")
