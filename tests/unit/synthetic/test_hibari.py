"""Voices made of hibari-tts' one: formants and pitch where they should be, same seed, same speech."""

from __future__ import annotations

import random

import numpy as np
import pytest

from distill.synthetic.hibari import RATE, VOICED, Hibari, places, warped

hibari = pytest.importorskip("hibari")
TEXT = "HE HAD NEVER BEEN HANDSOME"


def test_formants_move_by_their_factor() -> None:
    bins = np.arange(601.0)
    envelope = np.exp(-(((bins - 100) / 20) ** 2))[:, None].astype(np.float32)
    for factor in (0.8, 1.0, 1.1):
        assert warped(envelope, factor)[:, 0].argmax() == pytest.approx(100 * factor, abs=0.6)
    np.testing.assert_allclose(warped(envelope, 1.0), envelope)
    assert places(601, 0.8).max() == 600  # above the highest bin its value is kept


def test_pitch_moves_and_unvoiced_frames_stay() -> None:
    voice = Hibari(random.Random(0), "M")
    voice.pitch, voice.movement = 0.5, 1.0
    f0 = np.array([0.0, 180.0, 200.0, 220.0, 0.0], np.float32)
    np.testing.assert_allclose(voice.moved(f0), [0, 90, 100, 110, 0], rtol=1e-5)
    voice.movement = 0.0
    assert voice.moved(f0)[1:4] == pytest.approx([99.66] * 3, rel=1e-3)  # their geometric mean
    assert not voice.moved(np.zeros(3, np.float32)).any()


def test_men_speak_lower_and_the_same_seed_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    man, woman = Hibari(random.Random(1), "M"), Hibari(random.Random(1), "F")
    spoken, synth = [], man.package.dsp.synth

    def recorded(*parts: np.ndarray) -> np.ndarray:
        spoken.append(parts[5][parts[5] > VOICED])  # the pitch of voiced frames
        return synth(*parts)

    monkeypatch.setattr(man.package.dsp, "synth", recorded)
    low, high = (voice.synthesise(TEXT, seed=7, pace=1.0) for voice in (man, woman))
    assert np.isfinite(low).all() and np.isfinite(high).all() and 1.0 < len(low) / RATE < 4.0
    assert 80 < np.median(spoken[0]) < 160 < np.median(spoken[1]) < 280
    np.testing.assert_array_equal(low, man.synthesise(TEXT, seed=7, pace=1.0))
    assert len(man.synthesise(TEXT, seed=7, pace=0.7)) > len(low)
    with pytest.raises(RuntimeError, match="no phonemes for ''"):
        man.synthesise("", seed=1, pace=1.0)
