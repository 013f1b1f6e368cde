"""Audio in a bucket, that is, behind a web server on this machine: read in parts, left out where it is missing."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lhotse import CutSet

from distill.config.training import Data
from distill.corpora import Custom, objects
from distill.corpora.cut_sets import CutBlocks, each_cut
from distill.corpora.objects import Unreachable, read_object
from distill.corpora.shar import list_shar
from distill.data.audio import read_audio
from distill.data.loader import SpeechDataset, TrainLoader
from tests.support.downloads import Server, server  # noqa: F401
from tests.support.shar import write_shar
from tests.support.training import write_speech
from tests.unit.corpora.test_corpora import prepare

PARTS = ("labelled", "dev", "test-split")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(objects, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(objects, "_lost", 0)
    return


@pytest.fixture
def cuts(tmp_path: Path, server: Server) -> CutSet:  # noqa: F811
    """Cuts of files that the server has too."""
    made = write_speech(tmp_path / "speech", 12)
    server.content = {f"/{path.name}": path.read_bytes() for path in (tmp_path / "speech").iterdir()}
    return made


def store(cuts: CutSet, server: Server, root: Path) -> Path:  # noqa: F811
    """labelled.jsonl.gz in a corpus folder, of cuts whose audio is the server's."""
    root.mkdir()
    moved = []
    for cut in cuts:
        (source,) = cut.recording.sources
        url = replace(source, type="url", source=f"{server.address}/{Path(source.source).name}")
        moved.append(replace(cut, recording=replace(cut.recording, sources=[url])))
    CutSet.from_cuts(moved).to_file(root / "labelled.jsonl.gz")
    return root


def assert_same_audio(cuts: CutSet, folder: Path, without: str = "") -> None:
    made = {cut.id: cut for cut in each_cut(folder, PARTS)}
    assert made.keys() == {cut.id for cut in cuts} - {without}
    assert all(np.array_equal(read_audio(made[cut.id]), cut.load_audio()[0]) for cut in cuts if cut.id != without)


def test_cuts_of_objects_are_used_and_a_missing_one_is_listed(
    tmp_path: Path, cuts: CutSet, server: Server  # noqa: F811
) -> None:  # fmt: skip
    root = store(cuts, server, tmp_path / "mine")
    del server.content["/cut-0003.wav"]
    ((_, name, reason),) = prepare(Custom(root), tmp_path / "out")
    assert name == "cut-0003" and reason.startswith(f"unreadable object: {server.address}/cut-0003.wav (404")
    assert reason.endswith("(labelled.jsonl.gz:4)") and server.asked.count(("/cut-0003.wav", 0)) == 3
    assert_same_audio(cuts, tmp_path / "out/cuts", without="cut-0003")


def test_an_object_that_is_gone_later_is_left_out_of_training(
    tmp_path: Path, cuts: CutSet, server: Server  # noqa: F811
) -> None:  # fmt: skip
    prepare(Custom(store(cuts, server, tmp_path / "mine")), tmp_path / "out")
    del server.content["/cut-0003.wav"]
    server.content["/cut-0004.wav"] = server.content["/cut-0005.wav"]
    files = [CutBlocks(tmp_path / "out/cuts", part) for part in PARTS]
    loader = TrainLoader(files, SpeechDataset(None, None, 0, False, False), Data(workers=0), 1, 0, 1)
    left_out = dict(cut for batch in loader.epoch(0) for cut in batch.left_out)
    assert {name: reason.split(": ")[1] for name, reason in left_out.items()} == {
        "cut-0003": "unreadable object", "cut-0004": "manifest and audio differ",
    }  # fmt: skip


def test_members_of_tars_in_a_bucket_are_read_in_parts(
    tmp_path: Path, cuts: CutSet, server: Server  # noqa: F811
) -> None:  # fmt: skip
    folder = write_shar(cuts, tmp_path / "mine/labelled", "flac")
    for tar in folder.glob("*.tar"):
        server.content[f"/b/{tar.name}"] = tar.read_bytes()
        tar.unlink()
    (folder / "recording.txt").write_text(f"{server.address}/b/\n")
    listing = list_shar(folder)
    assert server.asked == [(f"/b/recording.00000{n}.tar", 0) for n in range(3)] and listing.left_out == []
    assert prepare(Custom(tmp_path / "mine"), tmp_path / "out") == []
    assert_same_audio(cuts, tmp_path / "out/cuts")
    cut = next(each_cut(tmp_path / "out/cuts", ["labelled"]))
    server.asked.clear()
    read_audio(cut)
    tar, _, part = cut.recording.sources[0].source.removeprefix(server.address).partition("#")
    assert server.asked[-1] == (tar, int(part.split("+")[0])) and cut.recording.sources[0].type == "url"
    del server.content["/b/recording.000001.tar"]
    assert {why.split(":")[0] for _, why in list_shar(folder).left_out} == {"unreadable object"}


def test_what_fails_for_a_while_is_read(server: Server) -> None:  # noqa: F811
    server.content, server.refusals = {"/a": b"0123456789"}, 2
    assert read_object(f"{server.address}/a", 3, 4) == b"3456"
    server.refusals = 3
    with pytest.raises(ValueError, match=r"^unreadable object: http.*/a \(503"):
        read_object(f"{server.address}/a")


def test_a_bucket_without_an_answer_ends_the_stage(
    tmp_path: Path, cuts: CutSet, server: Server, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:  # fmt: skip
    monkeypatch.setattr(objects, "MOST_LOST", 5)
    prepare(Custom(store(cuts, server, tmp_path / "mine")), tmp_path / "out")
    server.content.clear()
    with pytest.raises(Unreachable, match=r"^5 objects in a row cannot be read; look at network and credentials: "):
        prepare(Custom(tmp_path / "mine"), tmp_path / "again")
    (cut, *_) = each_cut(tmp_path / "out/cuts", ["labelled"])
    with pytest.raises(Unreachable):
        read_audio(cut)


@pytest.mark.parametrize("missing", ["smart_open", "boto3"])
def test_missing_packages_are_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "smart_open":
        monkeypatch.setitem(sys.modules, "smart_open", None)
    elif importlib.util.find_spec("boto3"):
        pytest.skip("it is there")
    with pytest.raises(Unreachable, match=r"^s3://a/b: reading it needs .*'bucket': .*-e '\.\[bucket\]'$"):
        read_object("s3://a/b")


@pytest.mark.parametrize("text", ["", "mine\n", "s3://a\ns3://b\n", "ftp://a/b\n"])
def test_an_address_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "recording.txt").write_text(text)
    with pytest.raises(ValueError, match=r"recording\.txt: expected one line, the address of the tars' folder"):
        list_shar(tmp_path)
