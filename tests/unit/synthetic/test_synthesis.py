from __future__ import annotations

import builtins
import errno
import filecmp
import gzip
import os
import random
import signal
from pathlib import Path

import pytest
import soundfile

from distill.corpora import Options
from distill.corpora.novels import Novels
from distill.synthetic import speech as synthesis
from distill.synthetic.espeak import voice_variant
from distill.synthetic.plans import PARTS, WORDS, Drawn, Read
from distill.text import read_lines

MINI = Path(__file__).parents[3] / "egs/librispeech/mini"
NOVELS = MINI.parents[1] / "tables/source"


@pytest.fixture(scope="module")
def plan() -> Drawn:
    return Drawn(MINI, 42)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("espeakng_loader")
    return synthesis.generate_corpus(tmp_path_factory.mktemp("corpus"), MINI, scale=0.01, processes=2)


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_speakers_are_disjoint_and_sized(plan: Drawn) -> None:
    speakers = synthesis.plan_speakers(plan)
    assert len({s.number for s in speakers}) == len(speakers) == sum(p.speakers for p in PARTS)
    for part in PARTS:
        assert sum(len(s.texts) for s in speakers if s.part == part.name) == part.sentences


def test_each_accent_has_both_sexes(plan: Drawn) -> None:
    for part in PARTS:
        voices = {(s.accent, s.sex) for s in synthesis.plan_speakers(plan) if s.part == part.name}
        if part.speakers >= 2 * len(part.accents):
            assert len(voices) == 2 * len(set(part.accents))


def test_sentences_have_a_speakable_length(plan: Drawn) -> None:
    rng = random.Random(0)
    lengths = {len(plan.draw(rng).split()) for _ in range(500)}
    assert min(lengths) >= WORDS[0] and max(lengths) <= WORDS[1]


def test_voice_variants_differ() -> None:
    assert voice_variant(random.Random(1), "M") != voice_variant(random.Random(2), "M")


def test_layout_is_librispeechs(corpus: Path) -> None:
    transcripts = sorted((corpus / "LibriSpeech").rglob("*.trans.txt"))
    assert {path.parts[-4] for path in transcripts} == {part.name for part in PARTS}
    for path in transcripts:
        speaker, chapter = path.parts[-3:-1]
        assert path.name == f"{speaker}-{chapter}.trans.txt"
        for line in path.read_text().splitlines():
            info = soundfile.info(path.parent / f"{line.split()[0]}.flac")
            assert (info.samplerate, info.subtype, info.channels) == (16000, "PCM_16", 1)


def test_speakers_table(corpus: Path) -> None:
    lines = (corpus / "LibriSpeech/SPEAKERS.TXT").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith(";")]
    assert all(len(row) == 5 and row[1] in "MF" and float(row[3]) > 0 for row in rows)
    folders = {path.name for path in (corpus / "LibriSpeech").glob("*/*") if path.is_dir()}
    assert {row[0] for row in rows} == folders


def test_text_corpus_has_no_spoken_sentence(corpus: Path) -> None:
    text = set(gzip.decompress((corpus / "librispeech-lm-norm.txt.gz").read_bytes()).decode().splitlines())
    spoken = {
        line.split(" ", 1)[1]
        for path in (corpus / "LibriSpeech").rglob("*.trans.txt")
        for line in path.read_text().splitlines()
    }
    assert len(text) > len(spoken) and not text & spoken


def test_clauses_of_novels_are_spoken_once_and_tests_are_of_other_novels() -> None:
    plan = Read(NOVELS, 42)
    trained, held_out = (set(read_lines(NOVELS / name)) for name in Read.files)
    speakers = synthesis.plan_speakers(plan)
    spoken = [text for speaker in speakers for text in speaker.texts]
    assert len(spoken) == len(set(spoken)) == sum(part.sentences for part in Read.parts)
    for speaker in speakers:
        assert {*speaker.texts} <= (trained if speaker.part.startswith("train") else held_out)
    further = plan.further(set(spoken), 1.0)
    assert {*further} == trained - {*spoken} and not trained & held_out
    words = {word for text in (*trained, *held_out) for word in text.split()}
    assert words == {line.split()[0] for line in read_lines(NOVELS / "lexicon.txt")}
    assert synthesis.plan_speakers(Read(NOVELS, 42)) == speakers != synthesis.plan_speakers(Read(NOVELS, 1))


def test_a_corpus_of_clauses_has_the_layout_of_librispeech(tmp_path: Path) -> None:
    pytest.importorskip("espeakng_loader")
    options = Options(NOVELS.parent, embedded=True, rehearse=True)
    synthesis.generate_corpus(tmp_path, NOVELS, scale=0.001, kind=Read)
    corpus = Novels(tmp_path, options)
    assert list(corpus.roles.by_name()) == ["labelled", "unlabelled", "dev", "test-clean", "test-other"]
    assert all(corpus.listing(part).utterances for part in corpus.roles.parts)
    assert next(iter(corpus.sentences())) in set(read_lines(NOVELS / "text.txt.gz"))


def test_same_bytes_for_another_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    again = synthesis.generate_corpus(tmp_path / "again", MINI, scale=0.01, processes=1)
    names = files(corpus)
    assert names == files(again)
    assert not any(filecmp.cmpfiles(corpus, again, names, shallow=False)[1:])


def test_a_killed_run_continues(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    target = tmp_path / "killed"
    monkeypatch.setattr(Drawn, "further", interrupt)
    with pytest.raises(KeyboardInterrupt):
        synthesis.generate_corpus(target, MINI, scale=0.01)
    monkeypatch.undo()
    part = next((target / "LibriSpeech").glob("*/*"))
    before = {path: path.stat().st_mtime_ns for path in part.rglob("*.flac")}
    synthesis.generate_corpus(target, MINI, scale=0.01)
    assert {path: path.stat().st_mtime_ns for path in part.rglob("*.flac")} == before
    assert files(target) == files(corpus)


def test_a_full_disk_is_named_once_and_gets_its_room_back(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(samples: object, rate: int) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(synthesis, "as_flac", full)
    with pytest.raises(RuntimeError, match=r"speaker 101 of the embedded corpus: .*No space left on device"):
        synthesis.generate_corpus(tmp_path, MINI, scale=0.01, processes=1)
    assert "Traceback" not in capfd.readouterr().err and set(files(tmp_path)) <= {".lock", "embedded.json"}
    monkeypatch.undo()
    synthesis.generate_corpus(tmp_path, MINI, scale=0.01, processes=2)
    assert files(tmp_path) == files(corpus)


def test_a_process_that_is_killed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis, "_synthesise_speaker", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(RuntimeError, match="speaker 101 of the embedded corpus: its process ended with exit code -9"):
        synthesis.generate_corpus(tmp_path, MINI, scale=0.01, processes=1)


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "LibriSpeech/dev-clean").mkdir(parents=True)
    with pytest.raises(ValueError, match="not an embedded corpus"):
        synthesis.generate_corpus(tmp_path, MINI, scale=0.01)
    assert (tmp_path / "LibriSpeech/dev-clean").is_dir()


def test_a_missing_synthesiser_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args, **kwargs):
        if name == "espeakng_loader":
            raise ModuleNotFoundError(name, name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"needs espeakng_loader, .*pip install -c constraints.txt -e '\.\[synth\]'"):
        synthesis.generate_corpus(tmp_path, MINI, scale=0.01)
