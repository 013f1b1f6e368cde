"""Downloads from a server of our own: cut connections, wrong files, no network, mirrors, archives."""

from __future__ import annotations

import errno
import hashlib
import logging
import random
import shutil
from pathlib import Path

import pytest

from distill.corpora import LibriSpeech, Options, download
from distill.corpora.download import Published, obtain
from tests.support.downloads import Server, server, tar  # noqa: F401

SPEECH = {f"LibriSpeech/part/1/2/1-2-{n}.flac": random.Random(n).randbytes(3000) for n in range(4)}
FILES = {"LibriSpeech/SPEAKERS.TXT": b"; speakers", **SPEECH}


def published(server: Server, name: str = "part.tar.gz", **changes) -> Published:  # noqa: F811
    content = server.content.setdefault(f"/resources/12/{name}", tar(FILES))
    usual = {"size": len(content), "digest": f"sha256:{hashlib.sha256(content).hexdigest()}"}
    gives = "LibriSpeech/part" if name == "part.tar.gz" else name
    return Published("http://page", f"{server.address}/resources/12/{name}", gives=gives, **usual | changes)


def unpacked(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in (root / "LibriSpeech").rglob("*") if p.is_file()}


def test_a_file_is_fetched_checked_and_unpacked(server: Server, tmp_path: Path, caplog) -> None:  # noqa: F811
    caplog.set_level(logging.INFO)
    file = published(server)
    obtain([file], tmp_path)
    assert unpacked(tmp_path) == FILES
    assert "1 files, 1" in caplog.text and "kB; 0 bytes of it are there" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LibriSpeech", "part.tar.gz"]


@pytest.mark.parametrize("kind", ["md5", "sha256", "none"])
def test_a_cut_connection_is_taken_up_where_it_ended(server: Server, tmp_path: Path, kind: str) -> None:  # noqa: F811
    file = published(server)
    content = server.content["/resources/12/part.tar.gz"]
    digest = "" if kind == "none" else f"{kind}:{hashlib.new(kind, content).hexdigest()}"
    server.limit = 1 + len(content) // 3
    obtain([published(server, digest=digest)], tmp_path)
    assert [first for _, first in server.asked] == [0, server.limit, 2 * server.limit]
    assert (tmp_path / file.name).read_bytes() == content and unpacked(tmp_path) == FILES


def test_a_killed_call_is_taken_up(server: Server, tmp_path: Path) -> None:  # noqa: F811
    file = published(server)
    content = server.content["/resources/12/part.tar.gz"]
    (tmp_path / "part.tar.gz.part").write_bytes(content[:1000])
    (tmp_path / "LibriSpeech/part.unpacking/1/2").mkdir(parents=True)
    (tmp_path / "LibriSpeech/part.unpacking/1/2/1-2-0.flac").write_bytes(b"half")
    obtain([file], tmp_path)
    assert server.asked == [("/resources/12/part.tar.gz", 1000)] and unpacked(tmp_path) == FILES


def test_a_server_without_ranges_gives_the_file_from_its_start(server: Server, tmp_path: Path) -> None:  # noqa: F811
    server.ranges = False
    (tmp_path / "part.tar.gz.part").write_bytes(b"x" * 1000)
    obtain([published(server)], tmp_path)
    assert unpacked(tmp_path) == FILES


def test_a_short_answer_does_not_replace_a_longer_part(server: Server, tmp_path: Path) -> None:  # noqa: F811
    server.ranges = False
    file = published(server)
    server.content["/resources/12/part.tar.gz"] = b"<html>log in</html>"
    (tmp_path / "part.tar.gz.part").write_bytes(b"x" * 1000)
    with pytest.raises(
        FileNotFoundError, match=r"the answer has 19 bytes, 1000 are in .*\.part; remove it to begin anew"
    ):
        obtain([file], tmp_path)
    assert (tmp_path / "part.tar.gz.part").read_bytes() == b"x" * 1000


@pytest.mark.parametrize("mirror", ["us.openslr.org", "http://a,http://b", "http://пример"])
def test_a_mirror_that_is_no_address_is_an_error(server: Server, tmp_path: Path, monkeypatch, mirror) -> None:  # noqa: F811
    monkeypatch.setenv(download.MIRRORS, mirror)
    with pytest.raises(ValueError, match=f"DISTILL_MIRRORS has '{mirror}'; expected addresses such as"):
        obtain([published(server)], tmp_path)


def test_a_whole_part_is_not_fetched_again(server: Server, tmp_path: Path) -> None:  # noqa: F811
    file = published(server)
    (tmp_path / "part.tar.gz.part").write_bytes(server.content["/resources/12/part.tar.gz"])
    obtain([file], tmp_path)
    assert unpacked(tmp_path) == FILES


def test_an_archive_in_the_folder_is_used(server: Server, tmp_path: Path) -> None:  # noqa: F811
    file = published(server)
    (tmp_path / file.name).write_bytes(server.content["/resources/12/part.tar.gz"])
    obtain([file], tmp_path, download=False)
    assert server.asked == [] and unpacked(tmp_path) == FILES


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"digest": f"md5:{'0' * 32}"}, f"md5: expected {'0' * 32}, got "),
        ({"digest": f"sha256:{'0' * 64}"}, f"sha256: expected {'0' * 64}, got "),
        ({"size": 17}, "bytes: expected 17, got "),
    ],
)
def test_another_file_than_the_published_one_is_refused(
    server: Server, tmp_path: Path, changes: dict, reason: str  # noqa: F811
) -> None:  # fmt: skip
    with pytest.raises(FileNotFoundError, match="is not the file that http://page publishes") as error:
        obtain([published(server, **changes)], tmp_path)
    assert reason in str(error.value) and not list(tmp_path.iterdir())


def test_a_half_archive_without_a_checksum_is_refused(server: Server, tmp_path: Path) -> None:  # noqa: F811
    published(server)
    server.content["/resources/12/part.tar.gz"] = server.content["/resources/12/part.tar.gz"][:5000]
    with pytest.raises(FileNotFoundError, match="no whole archive"):
        obtain([published(server, digest="", size=0)], tmp_path)


def test_one_error_names_files_pages_and_folder(server: Server, tmp_path: Path) -> None:  # noqa: F811
    files = [published(server), published(server, "b.txt"), published(server, "c.txt")]
    del server.content["/resources/12/b.txt"]
    with pytest.raises(FileNotFoundError, match="HTTP status 404") as error:
        obtain(files, tmp_path)
    told = str(error.value)
    assert f"2 files of the corpus are missing in {tmp_path}" in told and told.count("of http://page") == 2
    assert "b.txt (" in told and "c.txt (" in told and "part.tar.gz" not in told


def test_no_network_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise download.urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**13, 0, 10**13))
    with pytest.raises(FileNotFoundError, match="Temporary failure in name resolution") as error:
        LibriSpeech.obtain(tmp_path, Options(download=True))
    told = str(error.value)
    names = ("train-clean-100.tar.gz (6.39 GB)", "train-other-500.tar.gz", "librispeech-lexicon.txt", "4-gram.arpa.gz")
    assert all(name in told for name in names) and str(tmp_path) in told
    assert "https://www.openslr.org/12" in told and "https://www.openslr.org/11" in told


def test_without_downloads_the_corpus_is_only_located(libri: Path) -> None:
    LibriSpeech.obtain(libri, Options())  # n-grams are no need
    shutil.rmtree(libri / "LibriSpeech/train-other-500")
    LibriSpeech.obtain(libri, Options(unlabelled=("train-clean-360",)))
    with pytest.raises(
        FileNotFoundError, match=r"--download false.*\n  train-other-500\.tar\.gz \(30\.6 GB\)"
    ) as error:
        LibriSpeech.obtain(libri, Options())
    assert "arpa" not in str(error.value)


def test_a_folder_that_does_not_exist_is_not_filled(tmp_path: Path) -> None:
    LibriSpeech.obtain(tmp_path / "slip", Options(download=True))
    assert not (tmp_path / "slip").exists()


def test_mirrors_come_first(server: Server, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    file = published(server)
    elsewhere = Published(file.page, "http://127.0.0.1:9/resources/12/part.tar.gz", file.size, file.digest, file.gives)
    monkeypatch.setenv(download.MIRRORS, f"http://127.0.0.1:9/ {server.address}/")
    obtain([elsewhere], tmp_path)
    assert unpacked(tmp_path) == FILES


def test_a_full_disk_is_reported_before_and_while_fetching(server: Server, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    file = published(server)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 1000))
        with pytest.raises(OSError, match=r"needed for the corpus, 1 kB are free; make room"):
            obtain([file], tmp_path)
    assert server.asked == []

    def full(part: Path, *_: object) -> None:
        raise download.not_written(part, errno.ENOSPC)

    monkeypatch.setattr(download, "_receive", lambda url, part, before: full(part))
    with pytest.raises(OSError, match=r"no space left on device; make room") as error:
        obtain([file], tmp_path)
    assert not isinstance(error.value, FileNotFoundError)


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "LibriSpeech/part/../../../out.txt"])
def test_an_archive_that_leads_out_of_the_folder_is_refused(server: Server, tmp_path: Path, name: str) -> None:  # noqa: F811
    server.content["/resources/12/part.tar.gz"] = tar({**FILES, name: b"x"})
    with pytest.raises(OSError, match="leads out of"):
        obtain([published(server)], tmp_path / "root")
    assert not (tmp_path / "out.txt").exists() and not (tmp_path / "root/LibriSpeech/part").exists()


def test_an_archive_of_something_else_is_refused(server: Server, tmp_path: Path) -> None:  # noqa: F811
    server.content["/resources/12/part.tar.gz"] = tar({"other/a": b"x"})
    with pytest.raises(OSError, match=r"holds no LibriSpeech/part"):
        obtain([published(server)], tmp_path)
