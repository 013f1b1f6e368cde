"""Streaming resampling to 16 kHz."""

from __future__ import annotations

import numpy as np
import pytest

from distill.runtime.resample import Resampler


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_resampling_keeps_a_tone_in_blocks_of_any_size(rate: int) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate).astype(np.float32)
    resampler = Resampler(rate)
    pieces = [resampler(piece) for piece in np.split(tone, [1, 3, 500, 501, 4000])]
    output = np.concatenate([*pieces, resampler.flush()])
    assert abs(len(output) - 16000) <= 1
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(output)) / 16000)
    np.testing.assert_allclose(output[40:-40], expected[40:-40], atol=1e-3)
    np.testing.assert_array_equal(output[: len(output) // 2], Resampler(rate)(tone)[: len(output) // 2])


@pytest.mark.parametrize("rate", [0, 3999, 15999, 192001])
def test_rates_without_a_bound_on_memory_are_refused(rate: int) -> None:
    with pytest.raises(ValueError, match="from 4000 to 192000 with a simple ratio"):
        Resampler(rate)
