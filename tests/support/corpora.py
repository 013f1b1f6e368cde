"""Tiny corpora for the tests of distill.data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

RATE = 16000


def write_tone(path: Path, seconds: float = 0.5, rate: int = RATE) -> Path:
    """A sine of 300 Hz as FLAC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.1 * np.sin(2 * np.pi * 300 * time), rate, subtype="PCM_16")
    return path


def write_chapter(folder: Path, texts: dict[str, str]) -> None:
    """A LibriSpeech chapter folder with a tone for each utterance."""
    for name in texts:
        write_tone(folder / f"{name}.flac")
    speaker, chapter = folder.parts[-2:]
    lines = "".join(f"{name} {text}\n" for name, text in texts.items())
    (folder / f"{speaker}-{chapter}.trans.txt").write_text(lines)


def write_words(root: Path) -> Path:
    """A text corpus and a lexicon under the names of both kinds of recipes; returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    for prefix, text in (("librispeech-", "librispeech-lm-norm.txt"), ("", "lm.txt")):
        (root / text).write_text("HELLO WORLD\n")
        (root / f"{prefix}lexicon.txt").write_text("HELLO HH AH L OW\nWORLD W ER L D\n")
    return root


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    """A LibriSpeech of two utterances a part."""
    parts = ("train-clean-100", "train-clean-360", "dev-clean", "test-clean", "test-other", "train-other-500")
    for speaker, part in enumerate(parts, 1):
        folder = tmp_path / "corpus/LibriSpeech" / part / str(speaker) / "7"
        write_chapter(folder, {f"{speaker}-7-0000": "HELLO WORLD", f"{speaker}-7-0001": "IT'S ME"})
    return write_words(tmp_path / "corpus")
