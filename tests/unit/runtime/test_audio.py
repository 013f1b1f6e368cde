"""Files of other rates and channels, and refused files."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from distill.runtime.audio import read_audio

TONE = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000).astype(np.float32) / 2


def test_files_are_resampled_on_request_only(tmp_path) -> None:
    path = tmp_path / "tone.wav"
    soundfile.write(path, TONE, 8000, subtype="FLOAT")
    with pytest.raises(ValueError, match="8000 Hz, expected 16000 Hz"):
        read_audio(path)
    samples = read_audio(path, resample=True)
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000) / 2
    assert len(samples) == 16000 and samples.dtype == np.float32
    assert np.abs(samples - expected)[500:-500].max() < 0.01


def test_a_channel_must_be_chosen(tmp_path) -> None:
    path = tmp_path / "two.wav"
    soundfile.write(path, np.stack([TONE, -TONE], 1), 16000, subtype="FLOAT")
    with pytest.raises(ValueError, match="2 channels; choose one"):
        read_audio(path)
    with pytest.raises(ValueError, match="channels 0 to 1, got 2"):
        read_audio(path, channel=2)
    np.testing.assert_array_equal(read_audio(path, channel=1), -TONE)


def test_unusable_files_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_audio(tmp_path / "absent.wav")
    with pytest.raises(ValueError, match=rf"{tmp_path} is a folder, .* give {tmp_path}/\*\.wav"):
        read_audio(tmp_path)
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(ValueError, match="unreadable audio"):
        read_audio(tmp_path / "text.wav")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    with pytest.raises(ValueError, match="empty audio"):
        read_audio(tmp_path / "empty.wav")
