"""What a front-end stores of the training audio does not follow single utterances."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lhotse import Recording

from distill.data.statistics import fbank_statistics, level


def cuts(*scales: float, seed: int = 0) -> list:
    draw = np.random.default_rng(seed)
    waves = [np.float32(scale) * draw.standard_normal((1, 4000)).astype(np.float32) for scale in scales]
    common = {"id": "x", "sampling_rate": 16000, "recording": Recording("x", [], 16000, 16000, 1.0)}
    return [SimpleNamespace(**common, load_audio=lambda wave=wave: wave) for wave in waves]


def test_ordinary_audio_is_measured_as_a_whole() -> None:
    every = cuts(0.03, 0.05, 0.1, 0.2)
    samples = np.concatenate([cut.load_audio()[0] for cut in every])
    assert level(every) == pytest.approx(np.sqrt(np.mean(samples.astype(np.float64) ** 2)), rel=1e-6)


@pytest.mark.parametrize("odd", [0.0, np.nan, np.inf, 1e28, 1e-9, 30.0])
def test_single_odd_utterances_move_nothing(odd: float) -> None:
    usual, mixed = cuts(0.05, 0.1, 0.1, 0.05), cuts(0.05, 0.1, 0.1, 0.05, odd)
    assert level(mixed) == pytest.approx(level(usual), rel=1e-6)
    for now, before in zip(fbank_statistics(mixed, 20), fbank_statistics(usual, 20), strict=True):
        torch.testing.assert_close(now, before)


@pytest.mark.parametrize("scales", [(), (0.0, 0.0), (np.nan,)])
def test_audio_without_a_level_is_an_error(scales: tuple[float, ...]) -> None:
    for measure in (level, lambda every: fbank_statistics(every, 20)):
        with pytest.raises(ValueError, match="empty or silent"):
            measure(cuts(*scales))
