"""Streaming Kaldi Fbank in numpy and SciPy: the values of `distill.fbank` without torch.

Complete frames are transformed together: at a chunk of 320 ms this takes 0.4 times the time of kaldi-native-fbank,
which computes frame by frame.
"""

from __future__ import annotations

import numpy as np
from scipy.fft import rfft
from scipy.sparse import csr_array

from distill.config.model import FBANK_SHIFT as SHIFT
from distill.config.model import FBANK_WIDTH as WIDTH
from distill.mel import FFT, FLOOR, PREEMPHASIS, mel_filters, povey_window

BEFORE = (WIDTH - SHIFT) // 2  # samples of a frame before its shift
BLOCK = 32  # frames transformed at a time, so that intermediate arrays stay in the cache


class Fbank:
    """Log-mel energies of one stream; each call returns the frames that are complete by then."""

    def __init__(self, mels: int) -> None:
        self._window = povey_window().astype(np.float32)
        # sparse: faster than a dense product, whose BLAS threads would spin beside those of the model
        self._filters = csr_array(mel_filters(mels).T.astype(np.float32))
        self.reset()

    def reset(self) -> None:
        """Begin another utterance."""
        self._kept = np.zeros(0, np.float32)
        self._begins = self._taken = 0  # index of the first sample kept; frames returned

    def take(self, wave: np.ndarray, final: bool) -> np.ndarray:
        """Samples (n,) -> (J, mels). final: the audio ends here and is mirrored, as it is at its beginning."""
        self._kept = np.concatenate([self._kept, wave])
        samples = self._begins + len(self._kept)
        complete = (samples + BEFORE - WIDTH) // SHIFT + 1
        count = max(0, ((samples + SHIFT // 2) // SHIFT if final else complete) - self._taken)
        begins = SHIFT * self._taken - BEFORE
        if count and begins >= 0 and not final:
            frames = np.lib.stride_tricks.sliding_window_view(self._kept[begins - self._begins :], WIDTH)[::SHIFT]
        else:
            index = begins + SHIFT * np.arange(count)[:, None] + np.arange(WIDTH)
            index = np.where(index < 0, -1 - index, index)
            index = np.where(index < samples, index, 2 * samples - 1 - index).clip(0)
            frames = self._kept[index - self._begins]
        energies = [self._energies(frames[i : min(i + BLOCK, count)]) for i in range(0, max(1, count), BLOCK)]
        self._taken += count
        over = max(0, self._taken * SHIFT - BEFORE - self._begins)
        self._kept, self._begins = self._kept[over:], self._begins + over
        return np.concatenate(energies)

    def _energies(self, frames: np.ndarray) -> np.ndarray:
        """Windows of samples (J, WIDTH) -> (J, mels)."""
        frames = frames - frames.mean(1, keepdims=True)
        frames -= np.float32(PREEMPHASIS) * np.concatenate([frames[:, :1], frames[:, :-1]], 1)
        frames *= self._window
        spectrum = rfft(frames, FFT)
        power = np.square(spectrum.real) + np.square(spectrum.imag)
        return np.log(np.maximum((self._filters @ power.T).T, np.float32(FLOOR)))
