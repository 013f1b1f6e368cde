"""Kaldi data directories as people have them: used rightly, or left out and listed with file and line."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.corpora.kaldi import list_kaldi
from distill.corpora.listing import Skipped
from distill.corpora.manifests import Checks, Manifest, checked_manifest
from tests.support.corpora import write_tone


def write(root: Path, **tables: str) -> Path:
    """A data directory `labelled` with two recordings of 0.4 s, u1 and u2, and some tables of other content."""
    folder = root / "labelled"
    folder.mkdir(exist_ok=True)
    for name in ("u1", "u2"):
        if not (folder / f"{name}.wav").exists():
            write_tone(folder / f"{name}.wav", 0.4)
    usual = {"wav.scp": "u1 u1.wav\nu2 u2.wav\n", "text": "u1 RED LAMP\nu2 BLUE DOOR\n", "utt2spk": "u1 s1\nu2 s1\n"}
    for name, content in (usual | {name.replace("_", "."): text for name, text in tables.items()}).items():
        (folder / name).write_text(content)
    return folder


def used(folder: Path, **options) -> tuple[Manifest, list[tuple[str, str]]]:
    """What stage 0 takes of the directory, and what it lists."""
    skipped = Skipped()
    resample = options.pop("resample", False)
    manifest = checked_manifest("labelled", list_kaldi(folder, **options), skipped, Checks(resample=resample))
    return manifest, [row[1:] for row in skipped.rows]


def texts(manifest: Manifest) -> dict[str, str | None]:
    return {segment.id: segment.text for segment in manifest.supervisions}


BOTH = {"u1": "RED LAMP", "u2": "BLUE DOOR"}


@pytest.mark.parametrize(
    "tables",
    [
        {"text": "\nu1 RED LAMP\n\n  \nu2 BLUE DOOR\n"},
        {"text": "u1\tRED LAMP\r\nu2\t BLUE DOOR \r\n", "wav_scp": "u1\tu1.wav\r\nu2\tu2.wav\r\n"},
        {"text": "\ufeffu1 RED LAMP\nu2 BLUE DOOR", "wav_scp": "\ufeffu1 u1.wav\nu2 u2.wav"},
        {"text": "u1 RED LAMP\nu1 RED LAMP\nu2 BLUE DOOR\n"},
        {"wav_scp": "u1 labelled/u1.wav\nu2 u2.wav\n"},
        {"reco2dur": "u1 30.0\nu2 nan\n", "spk2gender": "s1 f\n", "utt2dur": "x\n"},
        {"segments": "u1 u1 0.0 0.3 1\nu2 u2 0 0.3 0\n"},
        {"segments": "u1 u1 0.0 -1\nu2 u2 0.1 0.45\n"},
    ],
)
def test_oddities_do_no_harm(tmp_path: Path, tables: dict[str, str]) -> None:
    manifest, listed = used(write(tmp_path, **tables))
    assert (texts(manifest), listed) == (BOTH, [])
    assert all(segment.speaker == "s1" for segment in manifest.supervisions)


def test_speakers_are_unknown_without_their_table(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "utt2spk").unlink()
    manifest, listed = used(folder)
    assert (texts(manifest), listed) == (BOTH, []) and {s.speaker for s in manifest.supervisions} == {None}


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"text": "u1 RED LAMP\nu2\n"}, "empty text: labelled/text:2"),
        ({"text": "u1 RED LAMP\n"}, "empty text: no line in labelled/text"),
        ({"text": "u1 RED LAMP\nu2 BLUE\nu2 RED\n"}, "duplicate id: labelled/text:2 and labelled/text:3 differ"),
        ({"utt2spk": "u1 s1\n"}, "no speaker: no line in labelled/utt2spk"),
        ({"utt2spk": "u1 s1\nu2 s1\nu2 s2\n"}, "duplicate id: labelled/utt2spk:2 and labelled/utt2spk:3 differ"),
        ({"wav_scp": "u1 u1.wav\nu2\n"}, "no path: labelled/wav.scp:2"),
        ({"wav_scp": "u1 u1.wav\nu2 gone.wav\n"}, "no such file: gone.wav in labelled or above (labelled/wav.scp:2)"),
        ({"wav_scp": "u1 u1.wav\nu2 u1.wav\nu2 u2.wav\n"}, "duplicate id: labelled/wav.scp:2 and labelled/wav.scp:3"),
        ({"wav_scp": "u1 u1.wav\nu2 a.ark:12\n"}, "not an audio file: a.ark:12, expected a path"),
        ({"wav_scp": "u1 u1.wav\nu2 http://a/b.wav\n"}, "not an audio file: http://a/b.wav, expected a path"),
        ({"segments": "u1 u1 0 0.3\nu2 u2 0.1\n"}, "wrong segment: expected 'UTTERANCE RECORDING START END [CHANNEL]'"),
        ({"segments": "u1 u1 0 0.3\nu2 u2 0 x\n"}, "not a number of seconds: x (labelled/segments:2)"),
        ({"segments": "u1 u1 0 0.3\nu2 u2 nan 0.3\n"}, "not a number of seconds: nan (labelled/segments:2)"),
        ({"segments": "u1 u1 0 0.3\nu2 u2 0 inf\n"}, "not a number of seconds: inf (labelled/segments:2)"),
        ({"segments": "u1 u1 0 0.3\nu2 u2 -0.1 0.3\n"}, "begins before its recording: -0.1 s (labelled/segments:2)"),
        ({"segments": "u1 u1 0 0.3\nu2 u2 0.3 0.3\n"}, "ends before it begins: 0.3 to 0.3 s (labelled/segments:2)"),
        ({"segments": "u1 u1 0 0.3\nu2 u2 5.0 5.4\n"}, "beyond its recording: 5 to 5.4 s of 0.4 s"),
        ({"segments": "u1 u1 0 0.3\nu2 u2 0.2 0.6\n"}, "beyond its recording: 0.2 to 0.6 s of 0.4 s"),
        ({"segments": "u1 u1 0 0.3\nu2 u9 0 0.3\n"}, "no recording: u9 is not in labelled/wav.scp"),
        ({"segments": "u1 u1 0 0.3\nu2 u2 0 0.2\nu2 u2 0.2 0.4\n"}, "duplicate id: labelled/segments:2 and"),
        ({"segments": "u1 u1 0 0.3\nu2 u2 0 0.3 7\n"}, "no such channel: 7, the recording has 1"),
    ],
)
def test_what_is_wrong_with_one_utterance_is_listed(tmp_path: Path, tables: dict[str, str], reason: str) -> None:
    manifest, listed = used(write(tmp_path, **tables))
    assert texts(manifest) == {"u1": "RED LAMP"}
    assert any(name == "u2" and told.startswith(reason) for name, told in listed), listed


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (os.mkfifo, "not a regular file"),
        (Path.mkdir, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
        (lambda path: path.write_bytes(b""), "empty audio"),
        (lambda path: write_tone(path, rate=8000), "wrong sampling rate: 8000 Hz"),
        (lambda path: write_tone(path, rate=44100), "wrong sampling rate: 44100 Hz"),
        (lambda path: soundfile.write(path, [[0.0, 0.1], [0.0, -0.1]] * 4000, 16000), "several channels: 2"),
        (lambda path: soundfile.write(path, [1e28, 0.1] * 4000, 16000, "FLOAT"), "absurdly loud: samples up to 1e+28"),
        (lambda path: soundfile.write(path, [np.nan, 0.1] * 4000, 16000, "FLOAT"), "samples are not finite"),
        (lambda path: soundfile.write(path, [0.0, 1e-5] * 4000, 16000, "FLOAT"), "silent audio"),
    ],
)
def test_audio_that_cannot_be_used_is_listed(tmp_path: Path, spoil, reason: str) -> None:
    folder = write(tmp_path)
    (folder / "u2.wav").unlink()
    spoil(folder / "u2.wav")
    manifest, listed = used(folder)
    assert texts(manifest) == {"u1": "RED LAMP"} and [name for name, _ in listed] == ["u2"]
    assert listed[0][1].startswith(reason) and "labelled/wav.scp:2" in listed[0][1]


@pytest.mark.parametrize(
    "name", ["a.raw", "a.RAW", "a.wav", "a.pcm", "a", "a" * 300, "a.mp3", "a.sph", "a.au", "a.aiff"]
)
def test_files_of_no_audio_are_listed_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, wav_scp=f"u1 u1.wav\nu2 {name}\n")
    if len(name) < 256:
        (folder / name).write_bytes(b"\1\2" * 4000)
    manifest, listed = used(folder)
    assert texts(manifest) == {"u1": "RED LAMP"}
    assert [utterance for utterance, _ in listed] == ["u2"] and "labelled/wav.scp:2" in listed[0][1]


def test_only_the_segments_with_damaged_samples_are_left_out(tmp_path: Path) -> None:
    samples = 0.1 * np.sin(np.arange(6400))
    samples[4000], samples[4800:] = np.inf, 0
    folder = write(tmp_path, segments="a u1 0 0.2\nb u1 0.2 0.3\nc u1 0.3 0.4\n", text="a A\nb B\nc C\n")
    (folder / "utt2spk").unlink()
    soundfile.write(folder / "u1.wav", samples, 16000, "FLOAT")
    manifest, listed = used(folder)
    kinds = {name: reason.split(":")[0] for name, reason in listed}
    assert kinds == {"b": "samples are not finite", "c": "silent audio", "u2": "no supervision"}
    assert texts(manifest) == {"a": "A"}


def test_a_channel_column_chooses_among_several(tmp_path: Path) -> None:
    segments = "u1 u1 0 0.3 B\nu2 u1 0 0.3 0\nu3 u2 0 0.3 1\n"
    folder = write(tmp_path, segments=segments, text="u1 A\nu2 B\nu3 C\n", utt2spk="u1 s\nu2 s\nu3 s\n")
    wave = 0.1 * np.sin(np.arange(6400))
    soundfile.write(folder / "u1.wav", np.stack([0 * wave, wave], 1), 16000)
    manifest, listed = used(folder)
    assert {s.id: s.channel for s in manifest.supervisions} == {"u1": 1, "u3": 0}
    assert [(name, reason.split(":")[0]) for name, reason in listed] == [("u2", "silent audio")]


def test_an_utterance_that_ends_after_its_recording_is_trimmed(tmp_path: Path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        manifest, _ = used(write(tmp_path, segments="u1 u1 0.0 0.3\nu2 u2 0.1 0.45\n"))
    assert {s.id: s.end for s in manifest.supervisions} == pytest.approx({"u1": 0.3, "u2": 0.4})
    assert "1 utterances end with their recording" in caplog.text and "u2" in caplog.text


@pytest.mark.parametrize("rate", [1, 3999, 16001, 44101, 47999])
def test_rates_that_cannot_be_converted_are_listed(tmp_path: Path, rate: int) -> None:
    folder = write(tmp_path)
    soundfile.write(folder / "u2.wav", 0.1 * np.sin(np.arange(max(rate, 2000))), rate)
    manifest, listed = used(folder, resample=True)
    assert texts(manifest) == {"u1": "RED LAMP"} and listed[0][1].startswith(f"wrong sampling rate: {rate} Hz cannot")


@pytest.mark.parametrize("rate", [8000, 44100])
def test_other_rates_are_converted_on_request(tmp_path: Path, rate: int) -> None:
    folder = write(tmp_path, segments="u1 u1 0.0 0.3\nu2 u2 0.1 0.4\n")
    write_tone(folder / "u2.wav", 0.4, rate)
    manifest, listed = used(folder, resample=True)
    recording = {r.id: r for r in manifest.recordings}["u2"]
    assert (texts(manifest), listed) == (BOTH, [])
    assert (recording.sampling_rate, recording.num_samples) == (16000, 6400)
    # write_tone's 300 Hz are 300 Hz still: nothing was taken for another rate.
    spectrum = np.abs(np.fft.rfft(recording.load_audio()[0]))
    assert spectrum.argmax() * 16000 / 6400 == pytest.approx(300, abs=3)


@pytest.mark.parametrize("command", ["touch {0} |", "cat x; touch {0} |", "| touch {0}", "pipe:touch {0}"])
def test_commands_do_not_run_unasked(tmp_path: Path, command: str) -> None:
    folder = write(tmp_path, wav_scp=f"u1 u1.wav\nu2 {command.format(tmp_path / 'ran')}\n")
    with pytest.raises(ValueError, match=r"labelled/wav\.scp:2: a command.*--allow-commands true"):
        list_kaldi(folder)
    assert not (tmp_path / "ran").exists()


def test_commands_run_on_request(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "wav.scp").write_text(f"u1 cat {folder}/u1.wav |\nu2 cat {folder}/absent.wav |\n")
    manifest, listed = used(folder, allow_commands=True)
    (recording,) = manifest.recordings
    assert recording.load_audio().shape == (1, 6400) and texts(manifest) == {"u1": "RED LAMP"}
    assert listed[0][1].startswith("command failed: status 1") and listed[0][1].endswith("(labelled/wav.scp:2)")


def test_a_command_without_end_is_ended(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("distill.corpora.audio.COMMAND_SECONDS", 0.2)
    folder = write(tmp_path, wav_scp="u1 u1.wav\nu2 sleep 60 | cat |\n")
    manifest, listed = used(folder, allow_commands=True)
    assert texts(manifest) == {"u1": "RED LAMP"} and "no end after 0.2 s" in listed[0][1]


@pytest.mark.parametrize("table", ["wav.scp", "text", "utt2spk", "segments"])
def test_other_encodings_are_an_error_with_their_line(tmp_path: Path, table: str) -> None:
    folder = write(tmp_path, segments="u1 u1 0 0.3\nu2 u2 0 0.3\n")
    (folder / table).write_bytes((folder / table).read_bytes() + b"u3 caf\xe9\n")
    with pytest.raises(ValueError, match=rf"labelled/{table}:3: not UTF-8"):
        list_kaldi(folder)


def test_tables_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    folder = write(tmp_path, wav_scp="\n\n")
    with pytest.raises(ValueError, match=r"labelled/wav\.scp is empty"):
        list_kaldi(folder)
    (folder / "text").unlink()
    os.mkfifo(folder / "text")
    with pytest.raises(ValueError, match="labelled/text is not a file"):
        list_kaldi(folder)
    (folder / "wav.scp").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no wav\.scp"):
        list_kaldi(folder)
