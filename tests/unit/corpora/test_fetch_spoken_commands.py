"""egs/spoken_commands/fetch.py against a server of our own: cut connections, other contents, odd tables."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import runpy
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from distill.corpora.tables import read_table
from tests.unit.corpora.test_corpora import write_commands

FETCH = Path(__file__).parents[3] / "egs/spoken_commands/fetch.py"
FILES = {
    "fsdd": {"recordings/0_ann_7.wav": 8000, "recordings/1_ann_8.wav": 8000},
    "intent": {f"data/speech/clean/{name}.wav": 16000 for name in ("a", "b")},
    "wakeword": {"audio/alexa/0.flac": 16000},
}
TABLES = {
    "fsdd/digits.tsv": "utt\tpath\nfsdd-ann-0-07\twav/0.flac\nfsdd-ann-1-08\twav/1.flac\n",
    "intent/intent.tsv": "utt\tpath\tspeaker\tsplit\ttext\tchecked\n"
    + "".join(f"sti-{name}\twav/{name}.flac\tc\ttrain\tBREW A LATTE\tscored\n" for name in "ab"),
    "wakeword/wakeword.tsv": "utt\tpath\tspeaker\tsplit\ttext\torig\nww-0\twav/0.flac\tc\ttrain\tALEXA\talexa/0.flac\n",
}


def archive(files: dict[str, int]) -> bytes:
    """A tar.gz as the sources publish them: a second of silence, half a second of tone, a second of silence a file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, rate in files.items():
            tone = 0.5 * np.sin(np.arange(rate // 2) * 0.3)
            audio = io.BytesIO()
            audio.name = name  # soundfile takes the format from it
            soundfile.write(audio, np.concatenate([np.zeros(rate), tone, np.zeros(rate)]), rate)
            member = tarfile.TarInfo(f"source-1234/{name}")
            member.size = len(audio.getvalue())
            tar.addfile(member, io.BytesIO(audio.getvalue()))
    return packed.getvalue()


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` by path; of a path in `cut`, only the first half."""

    content: dict[str, bytes]
    cut: set[str]
    asked: list[str]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.content.get(self.path)
        if body is None:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path in self.server.cut else body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as found:
        found.content = {f"/{name}": archive(files) for name, files in FILES.items()}
        found.cut, found.asked = set(), []
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    write_commands(tmp_path / "corpus")
    for name, table in TABLES.items():
        (tmp_path / "corpus" / name).write_text(table)
    return tmp_path / "corpus"


def fetch(monkeypatch: pytest.MonkeyPatch, server: Server, corpus: Path, **known: str) -> str:
    """Runs the script with sources on the server; its last words if it fails, else an empty text."""
    address = f"http://127.0.0.1:{server.server_address[1]}"
    rows = [
        f"{name}\tCC0\t{address}\t{address}/{name}\t{known.get('bytes', 'not published')}"
        f"\t{known.get(name, 'not published')}\n"
        for name in FILES
    ]
    sources = corpus.parent / "sources.tsv"
    sources.write_text("name\tlicence\thomepage\tarchive\tbytes\tsha256\n" + "".join(rows))
    arguments = [str(FETCH), "--corpus-dir", str(corpus), "--sources", str(sources)]
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        runpy.run_path(str(FETCH), run_name="__main__")
    except SystemExit as error:
        return str(error.code)
    return ""


def test_audio_is_written_where_the_tables_name_it(
    monkeypatch: pytest.MonkeyPatch, server: Server, corpus: Path
) -> None:
    assert fetch(monkeypatch, server, corpus) == ""
    digit, rate = soundfile.read(corpus / "fsdd/wav/1.flac")
    assert rate == 16000 and len(digit) == 2.5 * 16000
    for path in ("intent/wav/a.flac", "intent/wav/b.flac", "wakeword/wav/0.flac"):
        order, rate = soundfile.read(corpus / path)
        assert rate == 16000 and len(order) == pytest.approx((0.3 + 0.5 + 0.5) * 16000, abs=160)
    assert np.abs(order[:4000]).max() < 1e-3 < np.abs(order[5000:12000]).max()
    assert not [path for path in corpus.rglob("*") if path.suffix in (".part", ".tmp")]


def test_what_is_there_is_neither_fetched_nor_replaced(
    monkeypatch: pytest.MonkeyPatch, server: Server, corpus: Path
) -> None:
    (corpus / "intent/wav").mkdir()
    (corpus / "intent/wav/a.flac").write_text("mine")
    assert fetch(monkeypatch, server, corpus) == ""
    server.asked.clear()
    (corpus / "intent/wav/b.flac").unlink()
    assert fetch(monkeypatch, server, corpus) == ""
    assert server.asked == [] and (corpus / "intent/wav/a.flac").read_text() == "mine"
    assert (corpus / "intent/wav/b.flac").is_file()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.corpora.download.PAUSE", 0.0)


@pytest.mark.parametrize("fault", ["cut", "404", "cut without a length", "no server"])
def test_an_archive_that_does_not_come_is_an_error_and_comes_later(
    monkeypatch: pytest.MonkeyPatch, server: Server, corpus: Path, fault: str
) -> None:
    whole = server.content["/intent"]
    if fault == "cut":
        server.cut = {"/intent"}
    elif fault == "404":
        del server.content["/intent"]
    elif fault == "no server":
        monkeypatch.setattr("urllib.request.urlopen", refused)
    else:
        server.content["/intent"] = whole[: len(whole) // 2]
    told = fetch(monkeypatch, server, corpus)
    assert told.startswith("fetch.py: http://") and "call again" in told and "\n" not in told
    left = ["intent.tar.gz.part"] if fault == "cut" else []  # which the next call takes up
    assert [path.name for path in corpus.rglob("intent.tar.gz*")] == left and not (corpus / "intent/wav").exists()
    monkeypatch.undo()
    server.cut, server.content["/intent"] = set(), whole
    assert fetch(monkeypatch, server, corpus) == ""


def refused(*_: object, **__: object) -> None:
    raise ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize("known", [{"intent": "0" * 64}, {"bytes": "17"}])
def test_another_archive_than_the_published_one_is_refused(
    monkeypatch: pytest.MonkeyPatch, server: Server, corpus: Path, known: dict[str, str]
) -> None:
    told = fetch(monkeypatch, server, corpus, **known)
    assert "is not the file that http" in told and ": expected" in told and not list(corpus.rglob("intent.tar.gz*"))


def test_the_published_checksum_is_taken(monkeypatch: pytest.MonkeyPatch, server: Server, corpus: Path) -> None:
    assert fetch(monkeypatch, server, corpus, intent=hashlib.sha256(server.content["/intent"]).hexdigest()) == ""


@pytest.mark.parametrize("kind", ["absent", "no audio"])
def test_files_that_an_archive_lacks_are_named(
    monkeypatch: pytest.MonkeyPatch, server: Server, corpus: Path, kind: str
) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        pointer = b"version https://git-lfs.github.com/spec/v1"
        for name in FILES["intent"] if kind == "no audio" else ():
            member = tarfile.TarInfo(f"source/{name}")
            member.size = len(pointer)
            tar.addfile(member, io.BytesIO(pointer))
    server.content["/intent"] = packed.getvalue()
    told = fetch(monkeypatch, server, corpus)
    assert "2 of 2 files" in told and "data/speech/clean/a.wav" in told
    assert ("no audio" if kind == "no audio" else "not in the archive") in told


@pytest.mark.parametrize(
    ("row", "told"),
    [("sti-a\t../../a.flac", "leads out of the folder"), ("sti-a\t/tmp/a.flac", "leads out"), ("sti-a", "no path")],
)
def test_odd_tables_are_refused(
    monkeypatch: pytest.MonkeyPatch, server: Server, corpus: Path, row: str, told: str
) -> None:
    table = corpus / "intent/intent.tsv"
    table.write_text(table.read_text().splitlines()[0] + f"\n{row}\n")
    assert told in fetch(monkeypatch, server, corpus)
    assert not (corpus.parent / "a.flac").exists()


def test_the_sources_of_the_recipe_name_licence_and_commit() -> None:
    rows = read_table(FETCH.with_name("sources.tsv"), ("name", "licence", "homepage", "archive"))
    assert [row["name"] for row in rows] == list(FILES)
    assert all(re.fullmatch(rf"{row['homepage']}/archive/[0-9a-f]{{40}}\.tar\.gz", row["archive"]) for row in rows)
    assert all(row["licence"] for row in rows)


def test_an_unknown_source_is_named(monkeypatch: pytest.MonkeyPatch, server: Server, corpus: Path) -> None:
    monkeypatch.setitem(FILES, "other", {})
    assert "source 'other' is none of fsdd, intent, wakeword" in fetch(monkeypatch, server, corpus)
