"""Fbank against kaldi-native-fbank; parts of a stream against the whole."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from distill.corpora.stored_fbank import NativeFbank, NativeFbankConfig
from distill.fbank import fbank, fbank_frames, fbank_lengths, log_mel
from distill.mel import mel_filters
from distill.models.log_mel import log_mel as whisper_log_mel
from distill.runtime.fbank import Fbank


@pytest.mark.parametrize("samples", [400, 559, 560, 8000, 16037])
def test_fbank_is_kaldis(samples: int) -> None:
    wave = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples)) + 0.01
    expected = torch.from_numpy(NativeFbank(NativeFbankConfig()).extract(wave.numpy(), 16000))
    mine = fbank(wave[None], torch.tensor([samples]))[0]
    assert len(expected) == int(fbank_lengths(torch.tensor(samples))) == len(mine)
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("cuts", [(), (100, 101, 400, 3000), tuple(range(1, 8000, 37))])
@pytest.mark.parametrize("samples", [30, 79, 80, 400, 559, 560, 8000, 16037])
def test_a_stream_gives_the_frames_of_the_whole(samples: int, cuts: tuple[int, ...]) -> None:
    wave = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples)) + 0.01
    expected = fbank(wave[None], torch.tensor([samples]))[0]
    stream = Fbank(80)
    for _ in range(2):
        pieces = np.split(wave.numpy(), [cut for cut in cuts if cut < samples])
        found = [*(stream.take(piece, False) for piece in pieces), stream.take(np.zeros(0, np.float32), True)]
        assert sum(map(len, found[:-1])) >= len(expected) - 3, "frames come as soon as they are complete"
        torch.testing.assert_close(torch.from_numpy(np.concatenate(found)), expected, rtol=1e-4, atol=2e-3)
        stream.reset()


def test_padding_and_silence_change_nothing() -> None:
    wave = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    alone = fbank(wave[None], torch.tensor([5000]))[0]
    padded = torch.nn.functional.pad(wave, (0, 3000), value=9.0)
    together = fbank(padded[None], torch.tensor([5000]))[0, : len(alone)]
    torch.testing.assert_close(together, alone)
    assert fbank(torch.zeros(1, 1600), torch.tensor([1600])).isfinite().all()


def test_a_part_of_the_audio_gives_its_frames() -> None:
    wave = torch.randn(1, 6400, generator=torch.Generator().manual_seed(2))
    whole = fbank(wave, torch.tensor([6400]))
    part = fbank_frames(wave[:, 1480:3200], torch.tensor([3200]), 10, 9, begins=1480)
    torch.testing.assert_close(part, whole[:, 10:19])


def test_too_many_filters_are_refused() -> None:
    with pytest.raises(ValueError, match="some would be empty"):
        mel_filters(300)


@pytest.mark.parametrize("of", [log_mel, whisper_log_mel], ids=["kaldi", "whisper"])
def test_half_precision_of_a_training_changes_nothing(of: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    wave = torch.randn(2, 400)
    with torch.autocast("cpu", torch.bfloat16):
        found = of(wave, 80)
    torch.testing.assert_close(found, of(wave, 80), rtol=0, atol=0)
