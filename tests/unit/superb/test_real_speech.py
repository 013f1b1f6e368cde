"""KS, IC and SF from recordings in the layout of egs/spoken_commands."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.superb.real_speech import intent_of, is_own, split_of, tags_of, write_task
from distill.superb.tasks import TASKS

ORDERS = {
    "a": ("train", "CAN I HAVE A LIGHT ROAST TWELVE OUNCE COFFEE", "scored"),
    "b": ("dev", "MAKE ME A TRIPLE SHOT MOCHA", "scored"),
    "c": ("test", "BREW A DRIP COFFEE", "whisper_free"),
    "d": ("test", "BREW AN ESPRESSO", "unsure"),
}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    keywords = [(f"k{n}{split}", word, split) for n, word in enumerate(["SMART MIRROR", "ALEXA"])
                for split in ("train", "dev", "test")]  # fmt: skip
    tables = {
        "wakeword/wakeword": [[utt, f"{utt}.flac", "c1?", split, word] for utt, word, split in keywords],
        "intent/intent": [
            [utt, f"{utt}.flac", "c2?", split, text, sure] for utt, (split, text, sure) in ORDERS.items()
        ],
        "noise/noise": [["rain", "rain.flac", "rain", "seen"], ["dog", "dog.flac", "dog", "unseen"]],
    }
    heads = {"noise/noise": "utt\tpath\ttype\tsplit", "intent/intent": "utt\tpath\tspeaker\tsplit\ttext\tchecked"}
    for name, rows in tables.items():
        table = root / f"{name}.tsv"
        table.parent.mkdir(parents=True)
        lines = [heads.get(name, "utt\tpath\tspeaker\tsplit\ttext"), *("\t".join(row) for row in rows)]
        table.write_text("\n".join(lines) + "\n")
        for level, row in enumerate(rows, 1):
            soundfile.write(table.parent / row[1], np.full(800, level, np.int16), 16000)
    return root


def test_keywords_keep_their_splits_and_samples(corpus: Path, tmp_path: Path) -> None:
    write_task("KS", corpus, tmp_path / "ks")
    TASKS["KS"].data(tmp_path / "ks", {})  # the layout is found
    found = sorted((tmp_path / "ks").rglob("*.wav"))
    shown = [str(path.relative_to(tmp_path / "ks").parent) for path in found]
    test, train = "speech_commands_test_set_v0.01", "speech_commands_v0.01"
    parts = (f"{test}/_silence_", f"{test}/no", f"{test}/yes", f"{train}/_background_noise_")
    assert shown == [*parts, *[f"{train}/no"] * 2, *[f"{train}/yes"] * 2]
    for word, levels in (("yes", {4: "train", 5: "dev"}), ("no", {1: "train", 2: "dev"})):  # ALEXA comes first
        paths = (tmp_path / "ks/speech_commands_v0.01" / word).iterdir()
        assert {int(soundfile.read(path, dtype="int16")[0][0]): split_of(path.name) for path in paths} == levels


def test_splits_are_those_of_speech_commands() -> None:
    drawn = [split_of(f"{number:08x}_nohash_{number % 3}.wav") for number in range(4000)]
    assert drawn.count("dev") / 4000 == pytest.approx(0.1, abs=0.02)
    assert drawn.count("test") / 4000 == pytest.approx(0.1, abs=0.02)
    assert split_of("1_nohash_0.wav") == split_of("1_nohash_7.wav"), "a speaker is in one part"


def test_orders_have_their_slots_in_place_of_intents(corpus: Path, tmp_path: Path) -> None:
    write_task("IC", corpus, tmp_path / "ic")
    TASKS["IC"].data(tmp_path / "ic", {})
    rows = {
        part: [*csv.DictReader((tmp_path / f"ic/data/{part}_data.csv").open())] for part in ("train", "valid", "test")
    }
    slots = {part: [(row["action"], row["object"], row["location"]) for row in each] for part, each in rows.items()}
    assert slots == {"train": [("coffee", "light", "none")], "valid": [("mocha", "none", "triple")],
                     "test": [("drip coffee", "none", "none")]}  # fmt: skip
    assert (tmp_path / "ic" / rows["test"][0]["path"]).is_file() and rows["test"][0]["speakerId"] == "c2"
    assert intent_of("MAKE ME A MEDIUM DOUBLE SHOT LATTE") == ["latte", "none", "double"]


def test_words_of_orders_have_the_tags_of_their_slots(corpus: Path, tmp_path: Path) -> None:
    write_task("SF", corpus, tmp_path / "sf")
    TASKS["SF"].data(tmp_path / "sf", {})
    lines = (tmp_path / "sf/all.iob.snips.txt").read_text().splitlines()
    assert lines[2] == "Brian-snips-test-2 BOS BREW A DRIP COFFEE EOS\tO O O B-drink I-drink Order" and len(lines) == 3
    assert all((tmp_path / f"sf/{part}/{name}").is_dir() for part, name in (("train", "Ivy"), ("valid", "Aditi")))
    tags = tags_of("A MEDIUM DARK ROAST TWELVE OUNCE MOCHA WITH SOY MILK")
    assert tags == ["O", "B-size", "B-roast", "O", "B-size", "O", "B-drink", "O", "B-milk", "O"]


def test_a_folder_is_written_once_and_whole(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "ks.tmp").mkdir()
    (tmp_path / "ks.tmp/half").touch()
    write_task("KS", corpus, tmp_path / "ks")
    assert not (tmp_path / "ks/half").exists()
    (tmp_path / "ks/mine").touch()
    write_task("KS", corpus, tmp_path / "ks")
    assert (tmp_path / "ks/mine").exists()


def test_what_has_no_recordings_is_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"SID: no real speech of it is in the corpus; there is some of KS, IC, SF"):
        write_task("SID", corpus, tmp_path / "sid")
    with pytest.raises(FileNotFoundError, match="no table at"):
        write_task("KS", tmp_path, tmp_path / "ks")


def test_recordings_and_synthesised_speech_are_no_published_data(tmp_path: Path, corpus: Path) -> None:
    write_task("KS", corpus, tmp_path / "ks")
    (tmp_path / "mini/LibriSpeech").mkdir(parents=True)
    assert [is_own(tmp_path / name) for name in ("ks", "mini/LibriSpeech")] == [True, False]
    (tmp_path / "mini/embedded.json").write_text("{}")
    (tmp_path / "linked").symlink_to(tmp_path / "mini/LibriSpeech")
    assert is_own(tmp_path / "mini/LibriSpeech") and is_own(tmp_path / "linked")
