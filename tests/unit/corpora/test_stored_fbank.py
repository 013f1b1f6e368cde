from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet, Fbank, FbankConfig, MonoCut, Recording

from distill.corpora import stored_fbank as features
from distill.corpora.cut_sets import write_cuts
from tests.support.corpora import write_tone


@pytest.fixture
def cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of three cuts of 0.5 s, dev.jsonl.gz, in a block each."""
    monkeypatch.setattr("distill.corpora.cut_sets.BLOCK", 1)
    made = []
    for i in range(3):
        recording = Recording.from_file(write_tone(tmp_path / f"{i}.flac"), recording_id=str(i))
        made.append(MonoCut(str(i), 0.0, recording.duration, 0, recording=recording))
    write_cuts(made, tmp_path / "dev.jsonl.gz")
    return tmp_path


def compute(cuts: Path, folder: Path) -> int:
    for number in features.missing(cuts, "dev", folder):
        features.compute_chunk(cuts, "dev", folder, number)
    return features.finish(cuts, "dev", folder)


def test_stored_features(cuts: Path, tmp_path: Path) -> None:
    assert compute(cuts, tmp_path / "fbank") == 3
    for cut in CutSet.from_file(tmp_path / "fbank/dev.jsonl.gz"):
        assert cut.load_features().shape == (50, 80)


def test_native_fbank_is_kaldis() -> None:
    pytest.importorskip("kaldi_native_fbank")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 8000).astype(np.float32)
    native = features.NativeFbank(features.NativeFbankConfig()).extract(noise, 16000)
    reference = np.asarray(Fbank(FbankConfig(num_filters=80)).extract(noise, 16000))
    assert np.abs(native - reference).max() < 2e-3


def test_wrong_rate_is_an_error() -> None:
    extractor = features.NativeFbank(features.NativeFbankConfig())
    with pytest.raises(ValueError, match="expected 16000 Hz, got 8000 Hz"):
        extractor.extract(np.zeros(8000, np.float32), 8000)


def test_finished_chunks_are_kept(cuts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fbank"
    for number in (2, 0):
        features.compute_chunk(cuts, "dev", folder, number)
    done = {path: path.stat().st_mtime_ns for path in (folder / "dev").rglob("*.npy")}
    features.compute_chunk(cuts, "dev", folder, 2)  # by another process, at the same time
    assert len(done) == 2 and features.missing(cuts, "dev", folder) == [1]
    assert compute(cuts, folder) == 3
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert [cut.id for cut in CutSet.from_file(folder / "dev.jsonl.gz")] == ["0", "1", "2"]
    assert not list(folder.rglob("*.tmp"))
