"""Stored cuts as people have them: used rightly, or left out and listed with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording, SupervisionSegment

from distill.corpora.cut_files import list_cuts
from distill.corpora.listing import Skipped
from distill.corpora.manifests import Checks, Manifest, checked_manifest
from tests.support.corpora import write_tone


def cut(root: Path, name: str = "u2") -> dict[str, Any]:
    """A cut of a whole file of 0.5 s, as lhotse stores it."""
    recording = Recording.from_file(write_tone(root / f"{name}.flac"), recording_id=name)
    whole = recording.to_cut()
    whole.id, whole.supervisions = name, [SupervisionSegment(name, name, 0.0, 0.5, text="BLUE DOOR", speaker="s1")]
    return whole.to_dict()


def used(root: Path, *rows: dict[str, Any], **options) -> tuple[Manifest, list[tuple[str, str]]]:
    """What stage 0 takes of a file of a sound cut u1 and of `rows`, and what it lists."""
    path, skipped = root / "labelled.jsonl", Skipped()
    path.write_text("".join(json.dumps(row) + "\n" for row in (cut(root, "u1"), *rows)))
    resample = options.pop("resample", False)
    return checked_manifest("labelled", list_cuts(path, **options), skipped, Checks(resample=resample)), [
        row[1:] for row in skipped.rows
    ]


def names(manifest: Manifest) -> set[str]:
    return {segment.id for segment in manifest.supervisions}


def test_cuts_that_lhotse_wrote_are_used(tmp_path: Path) -> None:
    path = tmp_path / "labelled.jsonl.gz"
    CutSet.from_dicts([cut(tmp_path), cut(tmp_path, "u1")]).to_file(path)
    listing = list_cuts(path)
    assert listing.left_out == [] and {utterance.name for utterance in listing.utterances} == {"u1", "u2"}
    assert {(u.text, u.speaker, u.start, u.end) for u in listing.utterances} == {("BLUE DOOR", "s1", 0.0, 0.5)}


def test_each_supervision_of_a_cut_is_an_utterance_of_its_recording(tmp_path: Path) -> None:
    row = cut(tmp_path) | {"start": 0.1, "duration": 0.4}
    first = row["supervisions"][0] | {"duration": 0.2}
    row["supervisions"] = [first, first | {"id": "u3", "start": 0.2}]
    manifest, listed = used(tmp_path, row)
    assert {s.id: (s.start, s.end) for s in manifest.supervisions if s.id != "u1"} == {
        "u2": pytest.approx((0.1, 0.3)),
        "u3": pytest.approx((0.3, 0.5)),
    }
    assert listed == []


@pytest.mark.parametrize("supervisions", [None, []])
def test_a_cut_without_supervision_is_an_utterance_where_no_text_is_needed(tmp_path: Path, supervisions) -> None:
    path, row = tmp_path / "unlabelled.jsonl", cut(tmp_path) | {"start": 0.1, "duration": 0.3}
    path.write_text(json.dumps(row | {"supervisions": supervisions}) + "\n")
    (utterance,) = list_cuts(path, needs_text=False).utterances
    assert (utterance.name, utterance.text, utterance.start, utterance.end) == ("u2", None, 0.1, pytest.approx(0.4))
    listing = list_cuts(path)
    assert not listing.utterances and "no supervision" in listing.left_out[0][1]
    path.write_text(json.dumps(row | {"supervisions": ["HELLO"]}) + "\n")
    assert "no supervision" in list_cuts(path, needs_text=False).left_out[0][1]


def test_paths_are_looked_for_beside_the_file(tmp_path: Path) -> None:
    row = cut(tmp_path)
    row["recording"]["sources"][0]["source"] = "u2.flac"
    assert used(tmp_path, row)[1] == []


def test_a_cut_of_one_channel_among_several(tmp_path: Path) -> None:
    row = cut(tmp_path)
    wave = 0.1 * np.sin(np.arange(8000))
    soundfile.write(tmp_path / "u2.flac", np.stack([0 * wave, wave], 1), 16000)
    assert "channels, 1 in the manifest, 2 in the audio" in used(tmp_path, row)[1][0][1]
    row["recording"]["sources"][0]["channels"] = [0, 1]
    assert used(tmp_path, row)[1][0][1].startswith("silent audio")
    manifest, listed = used(tmp_path, row | {"channel": 1})
    assert listed == [] and {s.channel for s in manifest.supervisions if s.id == "u2"} == {1}


@pytest.mark.parametrize("change", [{"type": "MixedCut"}, {"type": "PaddingCut"}, {"type": "MultiCut"}])
def test_other_cuts_are_listed_by_their_type(tmp_path: Path, change: dict[str, Any]) -> None:
    manifest, listed = used(tmp_path, cut(tmp_path) | change)
    assert names(manifest) == {"u1"}
    reason = f"not a cut of one recording: {change['type']}, expected MonoCut (labelled.jsonl:2)"
    assert listed == [("u2", reason)]


@pytest.mark.parametrize(
    ("recording", "reason"),
    [
        ({"duration": 30.0}, "manifest and audio differ: 30.00 s in the manifest, 0.50 s in the audio"),
        ({"sources": []}, "no sources: expected a list"),
        ({"sources": {"a": 1}}, "no sources: expected a list"),
        ({"id": 5}, "no recording"),
        ({"id": "u1"}, "duplicate recording: u1 is another file at labelled.jsonl:1"),
        ({"transforms": [{"name": "ReverbWithImpulseResponse", "kwargs": {}}]}, "transformed audio"),
        ({"sources": [{"type": "url", "channels": [0], "source": "ftp://a/b"}]}, "not an audio file: url ftp://a/b"),
        ({"sources": [{"type": "file", "channels": [0], "source": "/gone.wav"}]}, "no such file: /gone.wav"),
        ({"sources": [{"type": "file", "channels": [0], "source": "/dev/zero"}]}, "not a regular file: /dev/zero"),
    ],
)
def test_recordings_that_cannot_be_used_are_listed(tmp_path: Path, recording: dict[str, Any], reason: str) -> None:
    row = cut(tmp_path)
    row["recording"] |= recording
    manifest, listed = used(tmp_path, row)
    assert names(manifest) == {"u1"} and [name for name, _ in listed] == ["u2"]
    assert listed[0][1].startswith(reason) and "labelled.jsonl:2" in listed[0][1]


@pytest.mark.parametrize(
    ("supervision", "reason"),
    [
        ({"duration": float("nan")}, "not a number of seconds: duration is nan"),
        ({"start": "soon"}, "not a number of seconds: start is 'soon'"),
        ({"start": True}, "not a number of seconds: start is True"),
        ({"duration": 10**400}, "not a number of seconds: duration is 1000"),
        ({"duration": -1}, "ends before it begins: -1 s long"),
        ({"start": 0.3}, "outside its cut: 0.3 to 0.8 s of 0.5 s"),
        ({"text": None}, "empty text"),
        ({"text": 7}, "wrong text: 7, expected a string"),
        ({"id": None}, "no id: a supervision has None"),
    ],
)
def test_supervisions_that_cannot_be_used_are_listed(tmp_path: Path, supervision: dict[str, Any], reason: str) -> None:
    row = cut(tmp_path)
    row["supervisions"][0] |= supervision
    manifest, listed = used(tmp_path, row)
    assert names(manifest) == {"u1"} and [name for name, _ in listed] == ["u2"]
    assert listed[0][1].startswith(reason) and "labelled.jsonl:2" in listed[0][1]


@pytest.mark.parametrize("key", ["id", "text", "speaker", "custom"])
def test_half_characters_are_listed_by_their_line(tmp_path: Path, key: str) -> None:
    row = cut(tmp_path)
    row["supervisions"][0][key] = {"a": "RED\ud800"} if key == "custom" else "RED\ud800"
    manifest, listed = used(tmp_path, row)
    assert names(manifest) == {"u1"} and listed[0][0] == "line 2" and listed[0][1].startswith("half a character")


def test_one_name_twice_is_listed(tmp_path: Path) -> None:
    manifest, listed = used(tmp_path, cut(tmp_path), cut(tmp_path))
    assert names(manifest) == {"u1"}
    assert listed == [("u2", "duplicate id: labelled.jsonl:2 and labelled.jsonl:3")]


def test_commands_run_only_on_request(tmp_path: Path) -> None:
    row = cut(tmp_path)
    row["recording"]["sources"][0] |= {"type": "command", "source": f"touch {tmp_path}/ran; cat {tmp_path}/u2.flac"}
    with pytest.raises(ValueError, match=r"labelled\.jsonl:2: a command.*--allow-commands true"):
        used(tmp_path, row)
    assert not (tmp_path / "ran").exists()
    manifest, listed = used(tmp_path, row, allow_commands=True)
    assert (names(manifest), listed) == ({"u1", "u2"}, []) and (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n\n", "is empty"),
        (b'{"id": "a", \n', r":1: not JSON"),
        (b"[" * 100_000, r":1: not JSON"),
        (b"\n[1]\n", r":2: not a cut but a list"),
        (b'{"id": "\xff"}\n', r":1: not UTF-8"),
    ],
)
def test_files_that_cannot_be_read_are_errors_with_their_line(tmp_path: Path, content: bytes, message: str) -> None:
    for path, data in ((tmp_path / "dev.jsonl", content), (tmp_path / "dev.jsonl.gz", gzip.compress(content))):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{path.name} ?{message}"):
            list_cuts(path)


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], lambda data: b"plain" + data, lambda _: b"{}"])
def test_files_that_are_no_whole_gzip_are_errors(tmp_path: Path, spoil) -> None:
    path = tmp_path / "dev.jsonl.gz"
    path.write_bytes(spoil(gzip.compress(json.dumps(cut(tmp_path)).encode() * 50)))
    with pytest.raises(ValueError, match=r"dev\.jsonl\.gz:\d+: it is no whole gzip archive"):
        list_cuts(path)
