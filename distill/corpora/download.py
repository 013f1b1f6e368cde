"""Files that a corpus publishes: located, fetched with resuming and checksums, unpacked; the standard library alone."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import logging
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from distill.files import WAYS_OUT, not_written, replacing

log = logging.getLogger(__name__)

MIRRORS = "DISTILL_MIRRORS"
"""Environment variable: servers that are asked before the publisher, by the same paths; separated by blanks."""
ADDRESS = re.compile(r"\w+://[!-+\--~]+")  # printable ASCII without commas
TIMEOUT = 60.0  # seconds without a byte
RETRIES = 5  # fruitless attempts in a row to take up a connection that was cut
PAUSE = 1.0  # seconds before the first of them, doubled each time
REPORTED = 30.0  # seconds between two lines of progress
BLOCK = 1 << 20
NOT_WHOLE = (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error)


@dataclass(frozen=True)
class Published:
    """A file that a corpus publishes.

    page: where it is described. size: bytes, 0 where unknown; about: then, roughly. digest: `md5:…` or `sha256:…`,
    empty where none is published. gives: the file or folder below the corpus folder that it is or is unpacked to.
    needed: whether a recipe stops without it where nothing is to be downloaded.
    """

    page: str
    url: str
    size: int = 0
    digest: str = ""
    gives: str = ""
    needed: bool = True
    about: float = 0

    @property
    def room(self) -> float:
        """Bytes that it takes, as far as they are known."""
        return self.size or self.about

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.name} ({readable(self.room) if self.room else 'size unknown'}) of {self.page}"


def readable(count: float) -> str:
    """A number of bytes in kB, MB, GB or TB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def obtain(missing: Sequence[Published], root: Path, download: bool = True) -> None:
    """Fetches and unpacks into `root` what is missing there; archives that lie in `root` are not fetched again.

    Raises FileNotFoundError with files, pages and folder where a file cannot be fetched or is not to be, OSError where
    the disk is full or an archive is damaged.
    """
    missing = [each for each in missing if download or each.needed]
    to_fetch = [each for each in missing if not (root / each.name).is_file()]
    if to_fetch and not download:
        raise FileNotFoundError(_listed(to_fetch, root, "they are not to be fetched (--download false)"))
    if missing:
        root.mkdir(parents=True, exist_ok=True)
        _check_room(missing, to_fetch, root)
    if to_fetch:
        there = sum(_size(_part(root / each.name)) for each in to_fetch)
        log.info("to fetch into %s: %d files, %s; %s of it are there", root, len(to_fetch),
                 readable(sum(each.room for each in to_fetch)), readable(there))  # fmt: skip
    for number, each in enumerate(to_fetch):
        try:
            fetch(each, root / each.name)
        except ConnectionError as error:
            raise FileNotFoundError(_listed(to_fetch[number:], root, str(error))) from None
    for each in missing:
        if each.gives not in ("", each.name):
            unpack(each, root / each.name, root)


def _listed(files: Sequence[Published], root: Path, why: str) -> str:
    """The message for files that are missing."""
    lines = "".join(f"\n  {file}" for file in files)
    trained = "; --download false goes without them" if not any(file.needed for file in files) else ""
    return (
        f"{len(files)} files of the corpus are missing in {root}: {why}; call again with a network, name mirrors in"
        f" {MIRRORS}, or fetch them by other means and put them there as they are{trained}:{lines}"
    )


def _check_room(missing: Sequence[Published], to_fetch: Sequence[Published], root: Path) -> None:
    """Raises OSError where the archives and what they are unpacked to, of about the same size, exceed the disk."""
    unpacked = sum(each.room for each in missing if each.gives not in ("", each.name))
    needed = unpacked + sum(max(0, each.room - _size(_part(root / each.name))) for each in to_fetch)
    if needed > (free := shutil.disk_usage(root).free):
        raise OSError(
            f"{root}: {readable(needed)} are needed for the corpus, {readable(free)} are free; make room, or name"
            " another folder as --corpus-dir"
        )


def fetch(file: Published, path: Path) -> None:
    """Fetches a file as `path`, resuming what lies in `path`.part; raises ConnectionError where no server gives it."""
    part, faults = _part(path), []
    for url in _addresses(file.url):
        try:
            _download(url, part)
            check(file, part)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in WAYS_OUT:
                raise
            faults.append(f"{url}: {_reason(error)}")
        else:
            os.replace(part, path)
            return
    raise ConnectionError("; ".join(faults))


def _addresses(url: str) -> Iterator[str]:
    """Where a file is asked for, in this order; raises ValueError for mirrors that are no addresses."""
    for mirror in os.environ.get(MIRRORS, "").split():
        if not ADDRESS.fullmatch(mirror):
            raise ValueError(
                f"{MIRRORS} has {mirror!r}; expected addresses such as https://us.openslr.org with blanks between them"
            )
        yield mirror.rstrip("/") + urlsplit(url).path
    yield url


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code}"
    return str(getattr(error, "reason", error)) or type(error).__name__


def _download(url: str, part: Path) -> None:
    """Appends to `part` until the file is whole; a connection that is cut is taken up again where it ended."""
    begun, fruitless = False, 0
    while True:
        before = _size(part)
        try:
            return _receive(url, part, before)
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing follows what is there
                return
            raise
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.errno in WAYS_OUT:
                raise
            gained = _size(part) > before
            begun, fruitless = begun or gained, 0 if gained else fruitless + 1
            if not begun or fruitless > RETRIES:
                raise
            log.warning("%s: %s after %s; taken up again", url, _reason(error), readable(_size(part)))
            time.sleep(PAUSE * 2**fruitless)


def _receive(url: str, part: Path, before: int) -> None:
    """One request for what follows the first `before` bytes; ConnectionError where it ends early."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={before}-"} if before else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        resumed = answer.status == 206
        count, length = before if resumed else 0, answer.headers["Content-Length"]
        total = count + int(length) if length else 0
        if total <= before and not resumed and before:  # a page that asks for a login, for instance
            raise ConnectionError(f"the answer has {total} bytes, {before} are in {part}; remove it to begin anew")
        reported = time.monotonic()
        with part.open("ab" if resumed else "wb") as file:
            while block := answer.read(BLOCK):
                try:
                    file.write(block)
                    file.flush()
                except OSError as error:
                    raise not_written(part, error.errno) from None
                count += len(block)
                if time.monotonic() - reported > REPORTED:
                    log.info("%s: %s of %s", url, readable(count), readable(total) if total else "unknown size")
                    reported = time.monotonic()
    if total and count != total:
        raise ConnectionError(f"the connection ended after {count} of {total} bytes")


def check(file: Published, path: Path) -> None:
    """Raises OSError, and removes a `.part`, unless a file has its size and checksum; archives without are read."""
    found = {"bytes": str(_size(path))}
    wanted = {"bytes": str(file.size)} if file.size else {}
    if file.digest:
        kind, _, wanted[kind] = file.digest.partition(":")
        digest = hashlib.new(kind)
        with path.open("rb") as content:
            while block := content.read(BLOCK):
                digest.update(block)
        found[kind] = digest.hexdigest()
    faults = [f"{name}: expected {value}, got {found[name]}" for name, value in wanted.items() if value != found[name]]
    if not faults and not file.digest:
        faults = _damage(path)
    if faults:
        way_out = "remove it and call again"
        if path.name.endswith(".part"):
            path.unlink()
            way_out = "call again"
        raise OSError(f"{path} is not the file that {file.page} publishes ({'; '.join(faults)}); {way_out}")


def _damage(path: Path) -> list[str]:
    """What is found to be wrong with an archive when it is read to its end."""
    name = path.name.removesuffix(".part")
    try:
        if name.endswith((".tar", ".tar.gz", ".tgz")):
            with tarfile.open(path) as tar:
                for _ in tar:
                    pass
        elif name.endswith(".gz"):
            with gzip.open(path) as content:
                while content.read(BLOCK):
                    pass
    except NOT_WHOLE as error:
        return [f"no whole archive: {error}"]
    return []


def unpack(file: Published, archive: Path, root: Path) -> None:
    """Unpacks an archive below `root`; the folder `file.gives` appears when it is complete, a killed call continues.

    Raises OSError for an archive that is damaged, lacks the folder, or names files outside of `root`.
    """
    log.info("unpacking %s", archive)
    check(file, archive)
    target = root / file.gives
    unfinished = target.with_name(f"{target.name}.unpacking")
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                inside = (root / member.name).resolve()
                if not inside.is_relative_to(root.resolve()):
                    raise OSError(f"{archive}: {member.name!r} leads out of {root}; remove the archive")
                if inside.is_relative_to(target.resolve()):
                    inside = unfinished / inside.relative_to(target.resolve())
                if member.isfile() and not (inside.is_file() and inside.stat().st_size == member.size):
                    _extract(tar, member, inside)
    except NOT_WHOLE as error:
        raise OSError(f"{archive} is no whole archive ({error}); remove it and call again") from None
    if not unfinished.is_dir():
        raise OSError(f"{archive} holds no {file.gives}; is it the file of {file.page}?")
    os.rename(unfinished, target)
    log.info("%s is complete; %s is needed no more", target, archive)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = tar.extractfile(member)
    assert content is not None, member.name
    with replacing(path) as temporary, temporary.open("wb") as plain:
        shutil.copyfileobj(content, plain, BLOCK)


def _part(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def _size(path: Path) -> int:
    """Bytes of a file, 0 without one."""
    return path.stat().st_size if path.is_file() else 0
