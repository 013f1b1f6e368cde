"""hibari-tts with voices of ours: its one voice with other formants, another pitch and pace, drawn at random.

The package's network gives the envelopes of harmonics and noise for each frame of 12.5 ms and their pitch, its own DSP
makes speech of them: both are moved in between. All are one person's articulation, so that nothing is shown about
speakers whom a model has not met.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np

from distill.extras import needed

RATE = 24_000
VOICED = 40.0
"""Hz; hibari gives 0 where there is no pitch."""


def load_hibari() -> Any:
    """The module hibari; ValueError with the command that installs it."""
    with needed("the synthesis of natural speech"):
        import hibari
    return hibari


class Hibari:
    """The synthesiser with one voice: formants and pitch relative to its own, an exponent of pitch movements, pace."""

    def __init__(self, rng: random.Random, sex: str) -> None:
        self.package = load_hibari()
        male = sex == "M"
        self.formants = rng.uniform(0.80, 0.93) if male else rng.uniform(0.95, 1.12)
        self.pitch = rng.uniform(0.48, 0.72) if male else rng.uniform(0.85, 1.25)
        self.movement, self.pace = rng.uniform(0.7, 1.2), rng.uniform(0.85, 1.2)
        self.network = self.package.Hibari()

    def synthesise(self, text: str, seed: int, pace: float) -> np.ndarray:
        """Speech (N,) float32 in ±1 at 24 kHz; pace relative to the voice's own."""
        phonemes = " ".join(self.network.phonemize(text.lower()))
        if not phonemes:
            raise RuntimeError(f"hibari-tts has no phonemes for {text!r}")
        ids = np.asarray([self.network.ids(phonemes)], np.int64)
        speed = np.asarray([self.pace * pace], np.float32)
        harmonic, phase, noise, free, free_phase, f0 = (
            each[0] for each in self.network.sess.run(None, {"ids": ids, "speed": speed})
        )
        harmonic, noise, free = (warped(each, self.formants) for each in (harmonic, noise, free))
        nearest = places(len(phase), self.formants).round().astype(int)
        spoken = self.package.dsp.synth(
            harmonic, phase[nearest], noise, free, free_phase[nearest], self.moved(f0), np.random.default_rng(seed)
        )
        return np.asarray(spoken, np.float32)

    def moved(self, f0: np.ndarray) -> np.ndarray:
        """The pitch (F,) in Hz around another mean, its movements in octaves scaled; unvoiced frames stay so."""
        voiced = f0 > VOICED
        if not voiced.any():
            return f0
        mean = np.exp(np.log(f0[voiced]).mean())
        new = self.pitch * mean * (np.maximum(f0, VOICED) / mean) ** self.movement
        return np.where(voiced, np.maximum(new, VOICED + 1), f0).astype(np.float32)


def places(bins: int, factor: float) -> np.ndarray:
    """Where each frequency bin of a spectrum comes from whose formants lie `factor` times as high."""
    return np.minimum(np.arange(bins) / factor, bins - 1)


def warped(envelope: np.ndarray, factor: float) -> np.ndarray:
    """A log-magnitude envelope (bins, F) with formants `factor` times as high, between bins by linear interpolation."""
    place = places(len(envelope), factor)
    below = np.floor(place).astype(int)
    share = (place - below)[:, None].astype(np.float32)
    return (1 - share) * envelope[below] + share * envelope[np.minimum(below + 1, len(envelope) - 1)]
