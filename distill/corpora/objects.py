"""Audio within a tar or in a bucket: how manifests name it, and reading its bytes."""

from __future__ import annotations

import os
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar

from distill.corpora.listing import Unusable
from distill.extras import way_out

REMOTE = re.compile(r"(s3|gs|https?)://[^/]+/.+")
MEMBER = re.compile(r"(.+\.tar)#(\d+)\+(\d+)")
"""PATH.tar#OFFSET+SIZE, PATH also an address: the bytes of a member."""
PAUSES = (0.5, 2.0)
"""Seconds before each further attempt to read an object."""
MOST_LOST = 100
"""Objects in a row that cannot be read, after which it is the bucket that cannot."""
TIMEOUT = 60.0  # seconds without a byte, of a web server
PARAMETERS: dict[str, dict[str, Any]] = {
    "s3": {"defer_seek": True}, "http": {"timeout": TIMEOUT}, "https": {"timeout": TIMEOUT},
}  # fmt: skip

Result = TypeVar("Result")
_lost = 0  # objects in a row that could not be read


class Unreachable(ValueError):
    """Why no object at all can be read: a missing package, or MOST_LOST in a row."""


def is_remote(value: str) -> bool:
    """True for addresses of objects, s3://, gs://, http:// and https://, and of members of tars there."""
    return bool(REMOTE.fullmatch(value))


@contextmanager
def opened_object(url: str) -> Iterator[IO[bytes]]:
    """An object as a file that can seek; Unreachable without the packages for it, else the library's errors."""
    try:
        import smart_open

        file = smart_open.open(
            url, "rb", compression="disable", transport_params=PARAMETERS.get(url.partition("://")[0])
        )
    except ImportError as error:
        raise Unreachable(f"{url}: reading it needs a package that is missing ({_first_line(error)}); "
                          f"{way_out('smart_open')}") from None  # fmt: skip
    with file:
        yield file


def read_object(url: str, offset: int = 0, size: int = -1) -> bytes:
    """`size` bytes of an object, or all from `offset`; Unusable where it cannot be read, also later."""

    def read() -> bytes:
        with opened_object(url) as file:
            if offset:
                file.seek(offset)
            return file.read(size)

    return _tried(read, url)


def tar_members(tar: str) -> tuple[dict[str, list[str]], str]:
    """The members of a tar in a file or a bucket as MEMBER names them, by their names without suffix, and its fault.

    Header by header, no audio is kept: a file's is passed over, an object streams by. Metadata, `.json`, is left out,
    `.nodata` stands for audio that a cut does not have. Unusable where an object, OSError where a file cannot be read.
    """
    if is_remote(tar):

        def read() -> tuple[dict[str, list[str]], str]:
            with opened_object(tar) as stream:
                return _members(tar, stream, "r|")

        return _tried(read, tar)
    if not os.path.isfile(tar):  # a named pipe is not waited for
        raise FileNotFoundError(tar)
    with open(tar, "rb") as file:
        return _members(tar, file, "r:")


def _members(tar: str, file: IO[bytes], mode: Any) -> tuple[dict[str, list[str]], str]:
    found: dict[str, list[str]] = {}
    try:
        with tarfile.open(fileobj=file, mode=mode) as archive:
            for member in archive:
                name, _, suffix = member.name.rpartition(".")
                if member.isfile() and suffix not in ("json", "nometa"):
                    place = "" if suffix == "nodata" else f"{tar}#{member.offset_data}+{member.size}"
                    found.setdefault(name, []).append(place)
    except tarfile.TarError as error:
        return found, _first_line(error)
    return found, ""


def _tried(read: Callable[[], Result], url: str) -> Result:
    """What `read` gives, tried again after PAUSES; Unusable if it fails, Unreachable if MOST_LOST have."""
    global _lost
    for pause in (*PAUSES, None):
        try:
            result = read()
        except Unreachable:
            raise
        except Exception as error:  # each library of smart_open has its own
            if pause is not None:
                time.sleep(pause)
                continue
            _lost += 1
            reason = f"unreadable object: {url} ({_first_line(error)})"
            if _lost >= MOST_LOST:
                raise Unreachable(
                    f"{MOST_LOST} objects in a row cannot be read; look at network and credentials: {reason}"
                ) from None
            raise Unusable(reason) from None
        _lost = 0
        return result
    raise AssertionError


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
