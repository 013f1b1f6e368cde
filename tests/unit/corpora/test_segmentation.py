"""Stretches of speech: joined, stored, shared by jobs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile

from distill.config.job import Job
from distill.corpora.segmentation import joined, read_segments, segment, speech


def test_neighbours_are_joined_up_to_the_longest_cut() -> None:
    stretches = [(0.0, 2.0), (2.5, 8.0), (8.2, 19.0), (19.3, 22.0), (30.0, 31.0), (32.5, 33.0)]
    assert joined(stretches) == [(0.0, 19.0), (19.3, 22.0), (30.0, 31.0), (32.5, 33.0)]
    assert joined([]) == []


def test_silence_has_no_speech_and_text_is_no_audio(tmp_path: Path) -> None:
    pytest.importorskip("silero_vad")
    soundfile.write(tmp_path / "a.flac", np.zeros(8000 * 3), 8000)
    (tmp_path / "b.flac").write_text("no audio")
    assert speech(str(tmp_path / "a.flac")) == [] and speech(str(tmp_path / "b.flac")) is None


def test_jobs_share_the_recordings_and_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("silero_vad")
    monkeypatch.setattr("distill.corpora.segmentation.ProcessPoolExecutor", Here)
    monkeypatch.setattr("distill.corpora.segmentation.SHARD", 1)
    path, recordings = tmp_path / "part.jsonl", {"a": "a", "b": "b", "c": "none"}
    segment(recordings, path, job=Job(1, 2))
    assert Here.asked == ["a", "none"] and not path.exists()
    segment(recordings, path)
    assert read_segments(path) == {"a": [(1, 2)], "b": [(1, 2)]}
    assert Here.asked == ["a", "none", "b"]


class Here:
    """Stands in for a pool of processes."""

    asked: ClassVar[list[str]] = []

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, _: object, audio, chunksize: int):
        Here.asked += audio
        return [None if path == "none" else [(1, 2)] for path in audio]


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(ValueError, match=r"needs silero_vad,.*pip install .*\[vad\]"):
        segment({"a": "a"}, tmp_path / "part.jsonl")
