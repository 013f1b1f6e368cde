"""Lhotse's Shar as a corpus of one's own: the same cuts and samples; what is wrong with it is listed."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

from distill.config.training import Data
from distill.corpora import Custom
from distill.corpora.cut_sets import CutBlocks, each_cut
from distill.corpora.manifests import Checks, write_cut_sets, write_manifests
from distill.corpora.shar import list_shar
from distill.corpora.stored_fbank import compute_chunk, finish
from distill.data.audio import read_audio
from distill.data.loader import SpeechDataset, TrainLoader
from tests.support.shar import Member, read_tar, write_shar, write_tar
from tests.support.training import write_speech
from tests.unit.corpora.test_corpora import prepare
from tests.unit.data.test_loader import handles_and_memory, repeated

PARTS = ("labelled", "dev", "test-split")


@pytest.fixture(scope="module")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> CutSet:
    return write_speech(tmp_path_factory.mktemp("speech"), 12)


def stage_0(root: Path, out: Path, resample: bool = False) -> list[str]:
    """Manifests and cut sets; the rows of skipped.tsv."""
    corpus = Custom(root)
    write_manifests(corpus, out / "manifests", "mine", Checks(resample=resample))
    write_cut_sets(out / "manifests", "mine", corpus.roles, out / "cuts")
    return (out / "manifests/skipped.tsv").read_text().splitlines()[1:]


@pytest.mark.parametrize("size", [5, None])
@pytest.mark.parametrize("place", ["labelled", ""])
@pytest.mark.parametrize("kind", ["wav", "flac", "original"])
def test_cuts_and_samples_are_those_of_the_source(
    tmp_path: Path, cuts: CutSet, kind: str, place: str, size: int | None
) -> None:
    write_shar(cuts, tmp_path / "mine" / place, kind, size)
    assert stage_0(tmp_path / "mine", tmp_path) == []
    made = {cut.id: cut for cut in each_cut(tmp_path / "cuts", PARTS)}
    assert made.keys() == {cut.id for cut in cuts}
    for cut in cuts:
        mine = made[cut.id]
        assert np.array_equal(read_audio(mine), cut.load_audio()[0])
        assert (mine.supervisions[0].text, mine.duration) == (cut.supervisions[0].text, cut.duration)
        assert np.array_equal(read_audio(mine.truncate(offset=0.05, duration=0.1)), cut.load_audio()[0, 800:2400])
    by_lhotse = CutSet.from_file(tmp_path / "cuts/labelled.jsonl.gz")
    assert all(cut.recording == made[cut.id].recording for cut in by_lhotse) and len(list(by_lhotse)) == 8


def test_parts_of_recordings_are_recordings_of_their_own(tmp_path: Path, cuts: CutSet) -> None:
    halves = CutSet.from_cuts(
        cut.truncate(offset=start, duration=0.07).with_id(f"{cut.id}/{start}") for cut in cuts for start in (0.0, 0.07)
    )
    for cut in halves:
        cut.supervisions = [replace(cut.supervisions[0], id=cut.id, start=0.0, duration=0.07)]
    write_shar(halves, tmp_path / "mine")
    listing = list_shar(tmp_path / "mine")
    assert listing.left_out == [] and len(listing.sources) == 2 * len(cuts)


def test_other_rates_are_converted_on_request(tmp_path: Path, cuts: CutSet) -> None:
    write_shar(cuts.resample(8000), tmp_path / "mine")
    with pytest.raises(ValueError, match=r"wrong sampling rate: 8000 Hz, .* --resample true converts it"):
        stage_0(tmp_path / "mine", tmp_path)
    assert stage_0(tmp_path / "mine", tmp_path, resample=True) == []
    assert all(len(read_audio(cut)) == cut.num_samples for cut in each_cut(tmp_path / "cuts", PARTS))


# Faults of the first shard of three: cuts 0 to 4


def drop(name: str) -> Callable[[list[Member]], list[Member]]:
    return lambda members: [member for member in members if not member[0].startswith(f"{name}.")]


def spoil(name: str) -> Callable[[list[Member]], list[Member]]:
    return lambda members: [(n, b"no audio" if n == f"{name}.wav" else content) for n, content in members]


FAULTS: dict[str, tuple[Callable[[list[Member]], list[Member]], dict[str, str]]] = {
    "another order": (lambda members: members[::-1], {}),
    "missing": (drop("cut-0001"), {"cut-0001": "no such member: recording.000000.tar has none of this name among 4"}),
    "another's": (
        lambda members: [*members, ("x.wav", members[0][1])], {"x": "audio without a cut: recording.000000.tar"}
    ),
    "twice": (lambda members: [*members, members[4]], {"cut-0002": "duplicate recording: 2 members have the name"}),
    "no audio": (spoil("cut-0003"), {"cut-0003": "truncated or unreadable audio: "}),
    "placeholder": (
        lambda members: [(n.replace("0004.wav", "0004.nodata"), content) for n, content in members],
        {"cut-0004": "no recording: cut-0004 is stored without audio"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_members_are_listed(tmp_path: Path, cuts: CutSet, fault: str) -> None:
    tar = write_shar(cuts, tmp_path / "labelled") / "recording.000000.tar"
    change, expected = FAULTS[fault]
    write_tar(tar, change(read_tar(tar)))
    listed = {row.split("\t")[1]: row.split("\t")[2] for row in stage_0(tmp_path, tmp_path / "out")}
    assert listed.keys() == expected.keys()
    assert all(listed[name].startswith(reason) for name, reason in expected.items())
    used = {cut.id: cut for cut in each_cut(tmp_path / "out/cuts", PARTS)}
    assert used.keys() == {cut.id for cut in cuts} - listed.keys()
    assert all(np.array_equal(read_audio(used[cut.id]), cut.load_audio()[0]) for cut in cuts if cut.id in used)


@pytest.mark.parametrize(
    ("spoilt", "reason"),
    [
        (lambda tar: tar.unlink(), "no such file: "),
        (lambda tar: (tar.unlink(), os.mkfifo(tar)), "no such file: "),
        (lambda tar: tar.write_bytes(b""), "no such member: "),
        (lambda tar: tar.write_bytes(b"no tar" * 400), "no such member: "),
        (lambda tar: tar.write_bytes(gzip.compress(tar.read_bytes())), "no such member: "),
    ],
)
def test_a_tar_that_cannot_be_read_costs_its_cuts(tmp_path: Path, cuts: CutSet, spoilt, reason: str) -> None:
    spoilt(write_shar(cuts, tmp_path / "labelled") / "recording.000001.tar")
    rows = [row.split("\t") for row in stage_0(tmp_path, tmp_path / "out")]
    assert [name for _, name, _ in rows] == [f"cut-{n:04}" for n in range(5, 10)]
    assert all(why.startswith(reason) and "recording.000001.tar" in why for _, _, why in rows)
    assert rows[0][2].endswith("(cuts.000001.jsonl.gz:1)")


def test_a_tar_that_is_cut_off_is_used_up_to_there(tmp_path: Path, cuts: CutSet) -> None:
    for part in ("dev", "test-a"):
        write_shar(cuts, tmp_path / part)
    tar = write_shar(cuts, tmp_path / "labelled") / "recording.000000.tar"
    members = list_shar(tmp_path / "labelled").sources
    offset, size = (int(n) for n in members["cut-0002"].value.rpartition("#")[2].split("+"))
    tar.write_bytes(tar.read_bytes()[: offset + size // 2])
    rows = [row.split("\t") for row in stage_0(tmp_path, tmp_path / "out")]
    assert [name for _, name, _ in rows] == ["cut-0002", "cut-0003", "cut-0004"]
    assert rows[0][2].startswith("truncated or unreadable audio: ") and "expected" in rows[0][2]
    assert "none of this name among 3; it is cut off, damaged or no tar" in rows[1][2]


def test_odd_files_of_a_folder_are_said(tmp_path: Path, cuts: CutSet, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_shar(cuts, tmp_path / "labelled")
    write_tar(folder / "recording.000007.tar", [("a.wav", b"")])
    for name in ("features.000000.tar", "features.000001.tar", "snr.000000.jsonl.gz"):
        (folder / name).write_bytes(b"")
    with caplog.at_level("INFO"):
        listing = list_shar(folder)
    assert listing.left_out == [
        ("recording.000007.tar", "tar without cuts: no cuts of its number (recording.000007.tar)")
    ]
    assert "fields of Shar that are not used: features (2 files), snr (1 files)" in caplog.text


def test_cuts_without_a_recording_and_other_cuts_are_listed(tmp_path: Path, cuts: CutSet) -> None:
    path = write_shar(cuts, tmp_path / "labelled", size=None) / "cuts.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    del rows[0]["recording"]
    rows[1]["type"], rows[2]["id"] = "MultiCut", 7
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    assert [(name, why.split(":")[0]) for name, why in list_shar(path.parent).left_out] == [
        ("cut-0000", "no recording"), ("cut-0001", "not a cut of one recording"), ("7", "no such member"),
        ("cut-0002", "audio without a cut"),
    ]  # fmt: skip


def test_cuts_that_are_cut_off_end_the_stage(tmp_path: Path, cuts: CutSet) -> None:
    path = write_shar(cuts, tmp_path / "labelled") / "cuts.000001.jsonl.gz"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"cuts\.000001\.jsonl\.gz:\d+: it is no whole gzip archive"):
        prepare(Custom(tmp_path), tmp_path / "out")


def test_a_tar_that_changes_later_is_left_out(tmp_path: Path, cuts: CutSet) -> None:
    tar = write_shar(cuts, tmp_path / "labelled") / "recording.000000.tar"
    stage_0(tmp_path, tmp_path / "out")
    write_tar(tar, [("longer", b""), *read_tar(tar)])
    files = [CutBlocks(tmp_path / "out/cuts", part) for part in PARTS]
    loader = TrainLoader(files, SpeechDataset(None, None, 0, False, False), Data(workers=0), 1, 0, 1)
    left_out = dict(cut for batch in loader.epoch(0) for cut in batch.left_out)
    assert left_out.keys() == {f"cut-{n:04}" for n in range(5)}
    assert all("truncated or unreadable audio" in reason and str(tar) in reason for reason in left_out.values())


def test_fbank_of_members_is_stored(tmp_path: Path, cuts: CutSet) -> None:
    write_shar(cuts, tmp_path / "labelled")
    stage_0(tmp_path, tmp_path / "out")
    compute_chunk(tmp_path / "out/cuts", "labelled", tmp_path / "fbank", 0)
    assert finish(tmp_path / "out/cuts", "labelled", tmp_path / "fbank") == 8
    for cut in each_cut(tmp_path / "fbank", ["labelled"]):
        assert cut.load_features().shape == (round(cut.num_samples / 160), 80)
        assert len(read_audio(cut)) == cut.num_samples


def test_thousands_of_cuts_are_read_in_flat_memory(tmp_path: Path, cuts: CutSet) -> None:
    many = repeated(cuts, 170)
    for cut in many:
        cut.supervisions = [replace(cut.supervisions[0], id=cut.id)]
    folder = write_shar(many, tmp_path / "labelled", size=1000)
    audio = sum(path.stat().st_size for path in folder.glob("*.tar"))
    tracemalloc.start()
    listing = list_shar(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(listing.utterances) == 2040 and peak < audio / 3
    stage_0(tmp_path, tmp_path / "out")
    settings = Data(train=["labelled"], max_duration=0.1, workers=0, window=500)
    files = [CutBlocks(tmp_path / "out/cuts", "labelled")]
    loader = TrainLoader(files, SpeechDataset(None, None, 0, False, False), settings, 1, 0, 1)
    measured = [handles_and_memory() for n, batch in enumerate(loader.epoch(0)) if n in (100, 1500) and batch.ids]
    (handles, memory), (later_handles, later) = measured
    assert later_handles <= handles and later < memory + 20
