"""Data of one's own: transcripts beside audio, splits, and what is made where it is not given."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from distill.corpora import Custom, Options
from distill.corpora.audio_folder import list_folder
from distill.corpora.custom import split_off
from distill.corpora.listing import Listing, Utterance
from distill.recipe.options import recipe_from, recipe_parser
from distill.recipe.stage import Stage
from local import prepare_corpus
from tests.support.corpora import write_chapter, write_tone
from tests.unit.corpora.test_corpora import prepare, read, write_kaldi


def facts(listing: Listing) -> list[tuple[str, str | None, str | None]]:
    return sorted((u.name, u.text, u.speaker) for u in listing.utterances)


def test_transcripts_beside_the_audio(tmp_path: Path) -> None:
    for name in ("ann/a", "ann/deep/b", "c", "d.v2"):
        write_tone(tmp_path / f"{name}.flac")
    (tmp_path / "ann/a.txt").write_text("one\ntwo\n")
    (tmp_path / "ann/deep/b.lab").write_text("three")
    (tmp_path / "d.v2.txt").write_text("four")
    (tmp_path / "README.txt").write_text("mine")
    listing = list_folder(tmp_path)
    assert facts(listing) == [("ann-a", "one two", "ann"), ("ann-deep-b", "three", "ann"), ("d.v2", "four", None)]
    assert listing.left_out == [("c", "no supervision: no c.txt nor c.lab, and no line in a *.trans.txt or *.tsv")]
    assert [u.place for u in listing.utterances if u.name == "ann-a"] == ["ann/a.txt"]
    assert len(list_folder(tmp_path, needs_text=False).utterances) == 4


def test_transcripts_as_in_librispeech(tmp_path: Path) -> None:
    write_chapter(tmp_path / "7/1", {"7-1-0000": "HELLO", "7-1-0001": "BYE"})
    (tmp_path / "7/1/7-1-0001.flac").unlink()
    listing = list_folder(tmp_path)
    assert facts(listing) == [("7-1-7-1-0000", "HELLO", "7")]
    assert listing.left_out == [("7-1-0001", "transcript without audio: 7/1/7-1.trans.txt:2")]


@pytest.mark.parametrize("heading", ["path\ttext\tspeaker", "client_id\tpath\tsentence", "file\ttranscript"])
@pytest.mark.parametrize("place", ["", "clips/"])
def test_transcripts_in_a_table(tmp_path: Path, heading: str, place: str) -> None:
    write_tone(tmp_path / f"{place}a.wav")
    names = heading.split("\t")
    values = {"path": "a.wav", "file": "a.wav", "text": "one", "sentence": "one", "transcript": "one"}
    (tmp_path / "validated.tsv").write_text(
        f"{heading}\n" + "\t".join(values.get(name, "ann") for name in names) + "\n"
    )
    ((name, text, speaker),) = facts(list_folder(tmp_path))
    assert (name, text) == (f"{place}a".replace("/", "-"), "one")
    assert speaker == ("ann" if len(names) == 3 else "clips" if place else None)


def test_odd_tables_are_errors(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav")
    (tmp_path / "a.tsv").write_text("path\tnote\na.wav\tx\n")
    with pytest.raises(ValueError, match=r"a\.tsv: the first line names no column of the text: text or .* 'note'$"):
        list_folder(tmp_path)
    for content, message in ((b"a.wav\tone\ttwo", "more cells than the 2 columns"), (b"a.wav\tcaf\xe9", "not UTF-8")):
        (tmp_path / "a.tsv").write_bytes(b"path\ttext\n" + content)
        with pytest.raises(ValueError, match=rf"a\.tsv:2: {message}"):
            list_folder(tmp_path)
    (tmp_path / "b.tsv").write_text("path\ttext\n")
    with pytest.raises(ValueError, match=r"holds 2 tables, a\.tsv and b\.tsv among them"):
        list_folder(tmp_path)


def test_two_transcripts_or_files_of_one_name_are_listed(tmp_path: Path) -> None:
    for name in ("a.wav", "a.flac", "b.wav"):
        write_tone(tmp_path / name)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("one")
    (tmp_path / "t.tsv").write_text("path\ttext\nb.wav\ttwo\n")
    assert list_folder(tmp_path).left_out == [
        ("a", "duplicate id: a.flac and a.wav"), ("b", "duplicate id: b.txt and t.tsv:2"),
    ]  # fmt: skip


def test_links_are_followed_once_and_broken_ones_are_listed(tmp_path: Path) -> None:
    write_tone(tmp_path / "elsewhere/a.wav")
    (tmp_path / "elsewhere/a.TXT").write_text("one")
    (tmp_path / "mine").mkdir()
    for name, target in (("ann", tmp_path / "elsewhere"), ("self", Path(".")), ("b.wav", Path("nowhere.wav"))):
        (tmp_path / "mine" / name).symlink_to(target)
    (tmp_path / "mine/b.txt").write_text("two")
    # b is left out later, as its file is looked for
    assert facts(list_folder(tmp_path / "mine")) == [("ann-a", "one", "ann"), ("b", "two", None)]
    assert len(Custom(tmp_path / "mine").inputs) == 3  # an input is a file that is there


def test_skipped_tsv_outlives_a_stage_without_usable_utterances(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "local"))
    from prepare_corpus import manifests

    for name in "abcd":
        write_tone(tmp_path / f"mine/{name}.wav")
    recipe = SimpleNamespace(corpus="custom", nj=1, resample=False, data_dir=tmp_path)
    checked = Stage(0, tmp_path / "checked", {}, {}, resumable=True)
    with pytest.raises(ValueError, match=r"no supervision: no a\.txt .*\(4 such\); .*skipped\.tsv lists all"):
        manifests(recipe, Custom(tmp_path / "mine"), checked, tmp_path / "manifests")
    assert len((tmp_path / "skipped.tsv").read_text().splitlines()) == 5


def people(count: int, each: int, known: bool = True) -> list[Utterance]:
    return [
        Utterance(f"{p}-{n}", f"{p}-{n // 2}", speaker=f"s{p}" if known else None)
        for p in range(count)
        for n in range(each)
    ]


@pytest.mark.parametrize(("known", "kind"), [(True, "speaker"), (False, "recording")])
def test_parts_are_split_off_whole(known: bool, kind: str, caplog) -> None:
    caplog.set_level("INFO")
    utterances = people(20, 10, known)
    split = split_off(utterances, ["dev", "test-split"])
    groups: dict[str, set[str]] = {}
    for utterance in utterances:
        groups.setdefault(getattr(utterance, kind) or "", set()).add(split[utterance.name])
    assert all(len(parts) == 1 for parts in groups.values())
    sizes = {part: list(split.values()).count(part) for part in ("labelled", "dev", "test-split")}
    assert sizes == {"labelled": 160, "dev": 20, "test-split": 20} and f"by {kind}: dev" in caplog.text
    assert split == split_off(utterances[::-1], ["dev", "test-split"])


def test_too_few_recordings_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="dev, test-split cannot be split off 4 labelled utterances of 2 recordings"):
        split_off(people(1, 4), ["dev", "test-split"])
    assert sorted(split_off(people(1, 6), ["dev", "test-split"]).values()) == ["dev"] * 2 + ["labelled"] * 2 + [
        "test-split"] * 2  # fmt: skip


@pytest.mark.parametrize("form", ["folder", "kaldi", "named"])
def test_one_folder_is_enough(tmp_path: Path, form: str) -> None:
    root, texts = tmp_path / "mine", {f"u{n}": f"words of {n}" for n in range(12)}
    if form == "kaldi":
        write_kaldi(root, texts)
    else:
        for name, text in texts.items():
            write_tone(root / ("labelled" if form == "named" else "") / f"{name}.flac")
            (root / ("labelled" if form == "named" else "") / f"{name}.txt").write_text(text)
    corpus = Custom(root)
    assert prepare(corpus, tmp_path) == []
    sizes = {path.name.split(".")[0]: len(read(path)) for path in (tmp_path / "cuts").glob("*.jsonl.gz")}
    if form == "kaldi":  # write_kaldi has one speaker, so recordings are split
        assert sizes["labelled"] == 8
    assert sizes == {"labelled": 8, "unlabelled": 8, "dev": 2, "test-split": 2}
    assert sorted(corpus.sentences()) == sorted(u.text for u in corpus.listing("labelled").utterances)
    assert len(corpus.inputs) >= 13 and corpus.texts == corpus.inputs
    corpus.write_notes(tmp_path)
    assert len((tmp_path / "split.tsv").read_text().splitlines()) == 13


def test_what_is_given_is_not_split(tmp_path: Path) -> None:
    for part in ("labelled", "dev", "test-mine"):
        write_kaldi(tmp_path / part, {f"{part}-{n}": "x" for n in range(3)})
    corpus = Custom(tmp_path)
    assert corpus.split == {} and len(corpus.listing("labelled").utterances) == 3
    corpus.write_notes(tmp_path)
    assert (tmp_path / "split.tsv").read_text() == ""


@pytest.mark.timeout(30)
def test_a_pipe_among_unlabelled_recordings_is_not_waited_for(tmp_path: Path) -> None:
    for part in ("labelled", "unlabelled"):
        write_kaldi(tmp_path / part, {f"u{n}": "x" for n in range(3)})
    path = Path(Custom(tmp_path).listing("unlabelled").sources["u1"].value)
    path.unlink()
    os.mkfifo(path)
    Custom(tmp_path, Options(audio_dir=tmp_path / "audio")).render(tmp_path / "audio")
    assert not (tmp_path / "audio/unlabelled.jsonl").exists()


def test_long_unlabelled_recordings_are_cut(tmp_path: Path, monkeypatch) -> None:
    write_kaldi(tmp_path / "labelled", {f"u{n}": "x" for n in range(3)})
    write_tone(tmp_path / "unlabelled/ann/short.flac")
    write_tone(tmp_path / "unlabelled/ann/long.flac", 40.0)
    write_tone(tmp_path / "unlabelled/ann/empty.flac", 40.0)
    for number in range(4):
        write_tone(tmp_path / f"unlabelled/ann/b{number}.flac", 40.0)
    corpus = Custom(tmp_path, Options(audio_dir=tmp_path / "audio"))
    asked = {}

    def segment(recordings: dict[str, str], path: Path, processes: int, job: object) -> None:
        asked.update(recordings)
        path.write_text('{"recording": "ann-long", "speech": [[1.0, 4.5], [6.0, 9.0]]}\n'
                        '{"recording": "ann-empty", "speech": []}\n'
                        + "".join(f'{{"recording": "ann-b{n}", "speech": [[0.0, 1.0]]}}\n' for n in (2, 0, 3, 1))
                        )  # fmt: skip

    monkeypatch.setattr("distill.corpora.custom.segment", segment)
    (tmp_path / "audio").mkdir()
    corpus.render(tmp_path / "audio")
    assert set(asked) == {"ann-long", "ann-empty", *(f"ann-b{n}" for n in range(4))}
    listing = corpus.listing("unlabelled")
    cut = [u.name for u in listing.utterances if u.name.startswith("ann-b")]
    assert cut == [f"ann-b{n}-0000" for n in range(4)], "in the order of the folder, in every process"
    assert sorted((u.name, u.start, u.end, u.speaker) for u in listing.utterances if u.name not in cut) == [
        ("ann-long-0000", 1.0, 4.5, "ann"), ("ann-long-0001", 6.0, 9.0, "ann"), ("ann-short", 0.0, None, "ann"),
    ]  # fmt: skip
    assert [(name, re.sub(r": /.*", "", why)) for name, why in listing.left_out] == [("ann-empty", "no speech found")]


def test_new_parts_leave_the_others_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A further test set and more unlabelled audio change no other cut set; other audio of equal length does."""
    root, data, searched = tmp_path / "mine", tmp_path / "data", []
    for part in ("labelled", "unlabelled", "dev", "test-a"):
        write_kaldi(root / part, {f"{part}-{n}": "ONE TWO" for n in range(3)})
    monkeypatch.setattr(Custom, "render", lambda self, folder, job=None: searched.append(folder))
    recipe = recipe_from(
        recipe_parser("").parse_args(
            ["--corpus", "custom", "--data-dir", str(data), "--exp-dir", "exp", "--conf-dir", "conf"]
        )
    )

    def prepared() -> dict[str, str]:
        prepare_corpus.prepare(recipe, Custom(root, Options(audio_dir=data / "audio", jobs=1)))
        readers = {
            part: Stage(6, tmp_path / part, {}, {recipe.cut_set(part): 0}) for part in ("labelled", "unlabelled")
        }
        readers |= {"text": Stage(3, tmp_path / "lm", {}, {recipe.text: 0})}
        return {part: reader.identity()["inputs"] for part, reader in readers.items()}

    def changed(before: dict[str, str]) -> list[str]:
        return [part for part, inputs in prepared().items() if inputs != before[part]]

    first = prepared()
    write_kaldi(root / "test-b", {"b": "ONE"})
    assert (changed(first), len(searched)) == ([], 1)
    shutil.rmtree(root / "unlabelled")
    write_kaldi(root / "unlabelled", {f"unlabelled-{n}": "ONE TWO" for n in range(4)})
    assert (changed(first), len(searched)) == (["unlabelled"], 2)
    audio = next(iter(Custom(root).listing("labelled").sources.values())).value
    samples, rate = soundfile.read(audio)
    soundfile.write(audio, samples * 0.5, rate)
    assert changed(first) == ["labelled", "unlabelled"]


def test_audio_in_many_formats_is_read(tmp_path: Path) -> None:
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000)
    for suffix, kind in (("wav", "WAV"), ("flac", "FLAC"), ("ogg", "OGG"), ("mp3", "MP3")):
        (tmp_path / "mine").mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"mine/{suffix}.{suffix}", noise, 16000, format=kind)
        (tmp_path / f"mine/{suffix}.txt").write_text("one")
    assert prepare(Custom(tmp_path / "mine"), tmp_path) == []
