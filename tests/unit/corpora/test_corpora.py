from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, SupervisionSegment

from distill.corpora import Custom, LibriSpeech, Options, SpokenCommands
from distill.corpora.audio import check_samples
from distill.corpora.corpus import Corpus
from distill.corpora.custom import own_roles
from distill.corpora.manifests import write_cut_sets, write_manifests
from distill.corpora.spoken_commands import TABLES
from distill.corpora.tables import read_table
from tests.support.corpora import write_tone, write_words


def prepare(corpus: Corpus, out: Path) -> list[tuple[str, ...]]:
    """Manifests and cut sets in `out`; returns the rows of skipped.tsv."""
    write_manifests(corpus, out / "manifests", "name")
    write_cut_sets(out / "manifests", "name", corpus.roles, out / "cuts")
    with (out / "manifests/skipped.tsv").open(newline="") as file:
        return [tuple(row) for row in csv.reader(file, delimiter="\t")][1:]


def librispeech(root: Path, **changes: Any) -> LibriSpeech:
    """LibriSpeech with other roles."""
    corpus = LibriSpeech(root)
    corpus.roles = replace(corpus.roles, **changes)
    return corpus


def read(path: Path) -> list:
    return list(CutSet.from_file(path))


def test_cut_sets_of_librispeech(libri: Path, tmp_path: Path) -> None:
    assert prepare(LibriSpeech(libri), tmp_path) == []
    names = {path.name.split(".")[0] for path in (tmp_path / "cuts").glob("*.jsonl.gz")}
    assert names == {"labelled", "unlabelled", "dev", "test-clean", "test-other"}
    first, second = read(tmp_path / "cuts/labelled.jsonl.gz")
    assert (first.id, second.id) == ("1-7-0000", "1-7-0001")
    assert (first.supervisions[0].text, first.supervisions[0].speaker) == ("HELLO WORLD", "1")
    assert second.supervisions[0].text == "IT'S ME"
    assert first.load_audio().shape == (1, 8000)


def test_unlabelled_text_is_hidden(libri: Path, tmp_path: Path) -> None:
    prepare(LibriSpeech(libri), tmp_path)
    for cut in read(tmp_path / "cuts/unlabelled.jsonl.gz"):
        assert cut.supervisions[0].text is None
        assert cut.supervisions[0].custom["reference"] in ("HELLO WORLD", "IT'S ME")


def test_hidden_share_of_the_labelled_part(libri: Path, tmp_path: Path) -> None:
    prepare(librispeech(libri, tests={}, hidden_share=0.5), tmp_path)
    added = [cut for cut in read(tmp_path / "cuts/unlabelled.jsonl.gz") if cut.id.endswith("-unlabelled")]
    assert len(added) == 1
    assert added[0].recording_id.startswith("1-7-") and added[0].supervisions[0].text is None


def test_limits_cut_the_sets_down(libri: Path, tmp_path: Path) -> None:
    prepare(librispeech(libri, limits={"labelled": 1, "test": 1}), tmp_path)
    sizes = {name: len(read(tmp_path / f"cuts/{name}.jsonl.gz")) for name in ("labelled", "dev", "test-other")}
    assert sizes == {"labelled": 1, "dev": 2, "test-other": 1}


def rewrite(path: Path, change: Iterable[tuple[str, str]]) -> None:
    text = path.read_text()
    for old, new in change:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)


def chapter(libri: Path) -> Path:
    return libri / "LibriSpeech/train-clean-100/1/7"


def write_noise(path: Path, channels: int = 1, damaged: bool = False) -> None:
    """Two seconds that do not compress: half the bytes hold about half the frames."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (32000, channels))
    soundfile.write(path, noise, 16000, subtype="PCM_16")
    if damaged:
        data, middle = path.read_bytes(), path.stat().st_size // 2
        path.write_bytes(data[:middle] + bytes(200) + data[middle + 200 :])


def truncate(path: Path) -> None:
    write_noise(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "truncated or unreadable"),
        (lambda path: write_tone(path, rate=8000), "wrong sampling rate: 8000 Hz, expected 16000 Hz"),
        (lambda path: write_tone(path, 0.05), "duration outside 0.1 to 35.0 s: 0.05 s"),
        (lambda path: write_tone(path, 36.0), "duration outside 0.1 to 35.0 s: 36.00 s"),
        (lambda path: path.unlink(), "transcript without audio"),
        (lambda path: path.write_bytes(b""), "empty audio"),
        (lambda path: path.write_text("not audio"), "truncated or unreadable"),
        (lambda path: write_noise(path, damaged=True), "truncated or unreadable"),
        (lambda path: soundfile.write(path, np.zeros(8000), 16000), "silent audio"),
        (lambda path: soundfile.write(path, np.full(8000, 0.25), 16000), "silent audio"),
        (lambda path: write_noise(path, channels=2), "several channels: 2, expected 1"),
    ],
)
def test_unusable_audio_is_skipped_and_listed(libri: Path, tmp_path: Path, spoil, reason: str) -> None:
    spoil(chapter(libri) / "1-7-0000.flac")
    ((part, name, listed),) = prepare(LibriSpeech(libri), tmp_path)
    assert (part, name) == ("train-clean-100", "1-7-0000") and listed.startswith(reason)
    assert [cut.id for cut in read(tmp_path / "cuts/labelled.jsonl.gz")] == ["1-7-0001"]


@pytest.mark.parametrize("text", ["", " ..."])
def test_an_empty_transcript_is_skipped(libri: Path, tmp_path: Path, text: str) -> None:
    rewrite(chapter(libri) / "1-7.trans.txt", [(" IT'S ME", text)])
    reason = "empty text: train-clean-100/1/7/1-7.trans.txt:2"
    assert prepare(LibriSpeech(libri), tmp_path) == [("train-clean-100", "1-7-0001", reason)]


def test_audio_without_transcript_is_skipped(libri: Path, tmp_path: Path) -> None:
    write_tone(chapter(libri) / "1-7-0002.flac")
    assert prepare(LibriSpeech(libri), tmp_path) == [("train-clean-100", "1-7-0002", "no supervision")]


def test_nothing_left_is_an_error_with_its_reason(libri: Path, tmp_path: Path) -> None:
    for path in chapter(libri).glob("*.flac"):
        write_tone(path, rate=8000)
    with pytest.raises(ValueError, match=r"train-clean-100: no usable utterance is left: wrong .* it .*\(2 such\)$"):
        prepare(LibriSpeech(libri), tmp_path)


@pytest.mark.parametrize("second", ["1-7-0001 OTHER", "1-7-0001"])
def test_two_transcripts_of_one_utterance_are_listed(libri: Path, tmp_path: Path, second: str) -> None:
    path = chapter(libri) / "1-7.trans.txt"
    path.write_text(path.read_text() + second)
    ((part, name, reason),) = prepare(LibriSpeech(libri), tmp_path)
    assert (part, name, reason[:14]) == ("train-clean-100", "1-7-0001", "duplicate id: ")
    assert reason.endswith("7.trans.txt:2 and train-clean-100/1/7/1-7.trans.txt:3")


def test_two_files_of_one_utterance_are_listed(libri: Path, tmp_path: Path) -> None:
    write_tone(chapter(libri).parent / "8/1-7-0001.flac")
    ((_, name, reason),) = prepare(LibriSpeech(libri), tmp_path)
    assert (name, reason.split(":")[0]) == ("1-7-0001", "duplicate id") and "1/8/1-7-0001.flac" in reason


def test_transcripts_in_another_encoding_are_an_error_with_their_line(libri: Path, tmp_path: Path) -> None:
    path = chapter(libri) / "1-7.trans.txt"
    path.write_bytes(path.read_bytes() + b"1-7-0002 CAF\xc9\n")
    with pytest.raises(ValueError, match=r"1-7\.trans\.txt:3: not UTF-8"):
        prepare(LibriSpeech(libri), tmp_path)


def test_missing_corpus_or_part_is_an_error(libri: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no LibriSpeech in .*absent"):
        LibriSpeech(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"dev-other; unpack dev-other.tar.gz"):
        prepare(librispeech(libri, unlabelled=("dev-other",)), tmp_path)
    (libri / "librispeech-lexicon.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no librispeech-lexicon.txt .*openslr.org/11"):
        LibriSpeech(libri)


def write_kaldi(folder: Path, texts: dict[str, str]) -> None:
    folder.mkdir(parents=True)
    for name in texts:
        write_tone(folder / f"{name}.flac")
    lines = {
        "wav.scp": [f"{name} {folder / name}.flac" for name in texts],
        "text": [f"{name} {text}" for name, text in texts.items()],
        "utt2spk": [f"{name} ann" for name in texts],
    }
    for file, rows in lines.items():
        (folder / file).write_text("".join(f"{row}\n" for row in rows))


def test_own_corpus_of_kaldi_dirs_and_cuts(libri: Path, tmp_path: Path) -> None:
    own, out = write_words(tmp_path / "own"), tmp_path / "out"
    for part in ("labelled", "dev", "test-mine"):
        write_kaldi(own / part, {"a1": "hello, there", "a2": "bye"})
    prepare(LibriSpeech(libri), tmp_path)
    (tmp_path / "cuts/unlabelled.jsonl.gz").rename(own / "unlabelled.jsonl.gz")
    prepare(Custom(own), out)
    labelled = read(out / "cuts/labelled.jsonl.gz")
    assert [(cut.id, cut.supervisions[0].text) for cut in labelled] == [("a1", "HELLO THERE"), ("a2", "BYE")]
    assert len(read(out / "cuts/unlabelled.jsonl.gz")) == 4
    assert (out / "cuts/test-mine.jsonl.gz").is_file()


def test_a_name_in_two_parts_becomes_two_cuts_with_audio_of_their_own(tmp_path: Path, caplog) -> None:
    own, out = write_words(tmp_path / "own"), tmp_path / "out"
    parts = ("labelled", "unlabelled", "dev", "test-mine")
    for length, part in enumerate(parts, 1):
        write_kaldi(own / part, {"a1": f"words of {part}"})
        write_tone(own / part / "a1.flac", seconds=0.2 * length)
    prepare(Custom(own), out)
    cuts = [
        cut for part in ("labelled", "unlabelled", "dev", "test-mine") for cut in read(out / f"cuts/{part}.jsonl.gz")
    ]
    assert [cut.id for cut in cuts] == ["a1", "a1-unlabelled", "a1-dev", "a1-test-mine"]
    assert [cut.load_audio().shape[1] for cut in cuts] == [3200, 6400, 9600, 12800]
    assert "unlabelled: 1 utterances have the name of another" in caplog.text


def test_audio_that_is_trained_on_and_tested_on_is_a_warning(tmp_path: Path, caplog) -> None:
    own = write_words(tmp_path / "own")
    for part in ("labelled", "unlabelled", "dev", "test-mine"):
        write_kaldi(own / part, {f"{part}-1": "HELLO"})
    (own / "test-mine/wav.scp").write_text(f"test-mine-1 {own}/labelled/labelled-1.flac\n")
    prepare(Custom(own), tmp_path / "out")
    assert "test-mine: 1 utterances are of recordings that are trained on: test-mine-1" in caplog.text
    assert "dev: 1 utterances are of" not in caplog.text


def test_a_part_in_two_forms_is_an_error(tmp_path: Path) -> None:
    for part in ("labelled", "unlabelled", "dev", "test-mine"):
        write_kaldi(tmp_path / part, {"a1": "HELLO"})
    (tmp_path / "dev.jsonl.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"has dev and dev\.jsonl\.gz; which of them"):
        Custom(write_words(tmp_path)).listing("dev")


def test_missing_parts_of_an_own_corpus_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give --corpus-dir"):
        own_roles(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no labelled in"):
        Custom(tmp_path).listing("labelled")
    write_kaldi(tmp_path / "test-mine", {"a1": "x"})
    with pytest.raises(FileNotFoundError, match="no labelled in"):
        Custom(write_words(tmp_path)).listing("labelled")
    (tmp_path / "labelled").mkdir()
    with pytest.raises(FileNotFoundError, match=r"labelled has no wav\.scp; it is empty"):
        Custom(tmp_path).listing("labelled")


def write_commands(root: Path) -> None:
    """Two digits, one connected string of every split, orders of every split, one keyword."""
    tables = {
        "fsdd/digits.tsv": [("utt", "path"), ("d1", "wav/d1.flac"), ("d2", "wav/d2.flac")],
        "fsdd/connected.tsv": [("utt", "speaker", "split", "parts", "gaps_ms", "text")],
        "intent/intent.tsv": [("utt", "path", "speaker", "split", "text", "checked")],
        "wakeword/wakeword.tsv": [
            ("utt", "path", "speaker", "split", "text"),
            ("k1", "k1.flac", "c", "train", "ALEXA"),
        ],
    }
    for split in ("train", "dev_seen", "dev_unseen", "test_seen", "test_unseen"):
        row = (f"cd-{split}", "ann", split, "d1,d2", "100,50,25", "ONE TWO")
        tables["fsdd/connected.tsv"].append(row)
    for split, checked in (("train", "unsure"), ("dev", "scored"), ("test", "scored"), ("test", "unsure")):
        name = f"o-{split}-{checked}"
        tables["intent/intent.tsv"].append((name, f"{name}.flac", "bob", split, "BREW A LATTE", checked))
        write_tone(root / f"intent/{name}.flac")
    for name in ("fsdd/wav/d1", "fsdd/wav/d2", "wakeword/k1"):
        write_tone(root / f"{name}.flac")
    for name, rows in tables.items():
        (root / name).write_text("".join("\t".join(row) + "\n" for row in rows))


def commands(root: Path, audio: Path) -> SpokenCommands:
    """Spoken commands with their digit strings rendered."""
    write_commands(root)
    corpus = SpokenCommands(root, Options(audio_dir=audio))
    corpus.render(audio)
    return corpus


def test_spoken_commands(tmp_path: Path) -> None:
    root, audio = tmp_path / "commands", tmp_path / "audio"
    corpus = commands(root, audio)
    samples, rate = soundfile.read(audio / "cd-train.flac")
    assert rate == 16000 and len(samples) == round((0.1 + 0.5 + 0.05 + 0.5 + 0.025) * 16000)
    assert np.abs(samples[:1600]).max() == 0
    assert np.sqrt(np.mean(samples[1600:9600] ** 2)) == pytest.approx(0.05, rel=0.01)
    assert prepare(corpus, tmp_path) == []
    ids = {path.name.split(".")[0]: [cut.id for cut in read(path)] for path in (tmp_path / "cuts").glob("*.jsonl.gz")}
    other_speeds = [f"{name}_sp{factor}" for name in ("cd-train", "o-train-unsure") for factor in (0.9, 1.1)]
    assert ids["labelled"] == ["cd-train", "o-train-unsure", *other_speeds]
    assert ids["dev"] == ["cd-dev_seen", "cd-dev_unseen", "o-dev-scored"]
    assert ids["test-digits-unseen"] == ["cd-test_unseen"]
    assert ids["test-orders"] == ["o-test-scored", "o-test-unsure"] and ids["test-orders-sure"] == ["o-test-scored"]
    assert "k1" in ids["unlabelled"] and len(ids["unlabelled"]) == 2


def test_text_of_spoken_commands_follows_their_tables(tmp_path: Path) -> None:
    corpus = commands(tmp_path / "commands", tmp_path / "audio")
    assert {*corpus.tables.values()} <= {*corpus.texts}, "transcripts are sentences of the text corpus"


def test_other_speeds_change_the_audio_alone(tmp_path: Path) -> None:
    corpus = commands(tmp_path / "commands", tmp_path / "audio")
    assert prepare(corpus, tmp_path) == []
    _, own, _, _, slow, _ = read(tmp_path / "cuts/labelled.jsonl.gz")
    assert slow.supervisions[0].text == own.supervisions[0].text == "BREW A LATTE"
    assert slow.load_audio().shape[1] == pytest.approx(own.load_audio().shape[1] / 0.9, abs=1)


@pytest.mark.parametrize("absent", ["", *(name for name, _ in TABLES.values())])
def test_spoken_commands_need_their_tables(tmp_path: Path, absent: str) -> None:
    root = tmp_path / "commands"
    if absent:
        write_commands(root)
        (root / absent).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{absent}.*--corpus-dir") as error:
        SpokenCommands(root)
    assert all(f"{name}: {', '.join(columns)}" in str(error.value) for name, columns in TABLES.values())


@pytest.mark.parametrize(("table", "columns"), [pytest.param(*table, id=table[0]) for table in TABLES.values()])
def test_a_table_without_a_column_or_a_cell_is_an_error(tmp_path: Path, table: str, columns: tuple[str, ...]) -> None:
    write_commands(tmp_path)
    heading = (tmp_path / table).read_text().splitlines()[0]
    for column in columns:
        (tmp_path / table).write_text(heading.replace(column, "other") + "\n")
        with pytest.raises(ValueError, match=rf"{table}: the first line names no column .*{column}"):
            read_table(tmp_path / table, columns)
    (tmp_path / table).write_text(heading + "\nonly\n")
    with pytest.raises(ValueError, match=rf"{table}:2: no "):
        read_table(tmp_path / table, columns)


@pytest.mark.parametrize(
    ("parts", "gaps", "told"),
    [
        ("d1,d2", "100,50", "expected 3 gaps"),
        ("d1,d2", "100,x,25", "expected 3 gaps"),
        ("d1,d9", "100,50,25", "'d9' is not in digits.tsv"),
        ("d1,absent", "100,50,25", "no audio of digit absent .*fetch.py"),
        ("d1,cut", "100,50,25", "truncated or unreadable"),
    ],
)
def test_strings_that_do_not_fit_their_digits_are_errors(tmp_path: Path, parts: str, gaps: str, told: str) -> None:
    write_commands(tmp_path)
    (tmp_path / "fsdd/digits.tsv").write_text("utt\tpath\nd1\twav/d1.flac\nabsent\twav/no.flac\ncut\twav/cut.flac\n")
    (tmp_path / "fsdd/wav/cut.flac").write_bytes((tmp_path / "fsdd/wav/d1.flac").read_bytes()[:60])
    strings = tmp_path / "fsdd/connected.tsv"
    strings.write_text(strings.read_text().splitlines()[0] + f"\nx\tann\ttrain\t{parts}\t{gaps}\tONE TWO\n")
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        SpokenCommands(tmp_path).render(tmp_path / "audio")
    assert not list((tmp_path / "audio").iterdir())


def test_checksums_are_of_each_utterances_own_samples(tmp_path: Path) -> None:
    """Whatever overlaps with it, and in its own channel."""
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (48000, 2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    spans = {"whole": (0.0, 3.0, 0), "early": (0.0, 1.5, 1), "late": (1.0, 3.0, 0), "within": (1.2, 1.4, 1)}
    segments = [SupervisionSegment(n, "a", s, e - s, channel=c) for n, (s, e, c) in spans.items()]
    with soundfile.SoundFile(tmp_path / "a.wav") as file:
        found = check_samples(file, segments, "a.wav")
    for (begin, end, channel), (fault, checksum) in zip(spans.values(), found, strict=True):
        own = samples[round(begin * 16000) : round(end * 16000), channel]
        assert fault is None and int(checksum, 16) == crc32(own.tobytes())
