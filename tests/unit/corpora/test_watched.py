"""What a corpus of one's own is made from, so that stage 0 sees every edit."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from distill.corpora.custom import files_of_own, own_roles
from distill.recipe.stage import Stage, run_stage


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Kaldi folders, one of them with a pipe and a relative path, and a test set of cuts."""
    for part in ("labelled", "unlabelled", "dev"):
        (tmp_path / part).mkdir()
        (tmp_path / f"{part}.wav").write_text(part)
        (tmp_path / part / "wav.scp").write_text(
            f"u1 {tmp_path / part}.wav\nu2 sox a.flac - |\nu3\t../dev.wav\nu4\n"
            f"u5\tother.wav \nu6 a\0b\nu7 {'n' * 300}\n"
        )
        (tmp_path / part / "text").write_text("u1 RED\n")
        (tmp_path / part / "utt2spk").write_text("u1 s\n")
    (tmp_path / "cut wav.wav").write_text("cut")
    (tmp_path / "other.wav").write_text("other")
    cut = {"recording": {"sources": [{"type": "file", "channels": [0], "source": str(tmp_path / "cut wav.wav")}]}}
    with gzip.open(tmp_path / "test-a.jsonl.gz", "wt") as file:
        file.write(json.dumps(cut) + "\n")
    return tmp_path


def stage(corpus: Path) -> Stage:
    return Stage(0, corpus / "out/manifests", {}, dict.fromkeys(files_of_own(corpus, own_roles(corpus).parts)))


EDITS = {
    "labelled/text": "u1 BLUE\n", "dev/utt2spk": "u1 t\n", "labelled/segments": "u1 u1 0 1\n", "dev/wav.scp": "u1 x\n",
    "labelled.wav": "louder", "other.wav": "louder", "dev.wav": "louder", "cut wav.wav": "recut",
    "dev/reco2dur": "u1 1\n",
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_seen_and_named(corpus: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run_stage(stage(corpus), lambda folder: None)
    assert stage(corpus).up_to_date()
    (corpus / name).write_text(EDITS[name])
    assert run_stage(stage(corpus), lambda folder: None)
    assert f"{name} changed" in caplog.text or f"{name} is new" in caplog.text or f"/{name} changed" in caplog.text


def test_what_is_not_the_recipes_is_not_watched(corpus: Path) -> None:
    run_stage(stage(corpus), lambda folder: None)
    (corpus / "labelled/README.md").write_text("mine")
    (corpus / "labelled/text.bak").write_text("mine")
    assert stage(corpus).up_to_date()


def test_cuts_that_cannot_be_read_are_left_to_their_reader(corpus: Path) -> None:
    (corpus / "test-a.jsonl.gz").write_bytes(b"\x1f\x8b cut")
    assert corpus / "test-a.jsonl.gz" in files_of_own(corpus, own_roles(corpus).parts)
