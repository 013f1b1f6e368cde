"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ASIDE = ".aside-"  # of the name of what was put aside, before its number
OWN = ".writer-"  # of a temporary name that one process alone uses
ROOM = 1 << 16  # bytes; a disk with less is full
WAYS_OUT = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.EROFS: "make the folder writable",
    errno.EACCES: "make the folder writable",
    errno.EPERM: "make the folder writable",
    errno.EIO: "look at the disk",
}


@contextlib.contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A temporary name beside `path` for a file, or a folder that is not there, renamed to it at the end of the block.

    shared: other processes may write the same file at the same time, so that each needs a name of its own. Whatever
    ends the block early, what has the temporary name is removed and the old file stays. Raises OSError with file,
    reason and way out where the disk is full, read-only or broken.
    """
    temporary = own_name(path) if shared else path.with_name(path.name + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            error = error.__context__  # why torch could not write to an open file, which its own error lacks
        if isinstance(error, OSError) and error.filename in (None, temporary, str(temporary)):
            raise not_written(path, error.errno) from None
        raise


def own_name(path: Path) -> Path:
    """A temporary name beside `path` that no other process uses."""
    return path.with_name(f"{path.name}{OWN}{socket.gethostname()}-{os.getpid()}.tmp")


def remove_own(folder: Path) -> None:
    """Remove what killed processes have left below a folder under names of their own."""
    for path in list(folder.rglob(f"*{OWN}*.tmp")):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def not_written(path: Path, number: int | None) -> OSError:
    """The error of a file that could not be written, from the system's error number."""
    reason = os.strerror(number).lower() if number else "the disk refused it"
    way_out = WAYS_OUT.get(number or 0, "look at the folder")
    error = OSError(f"cannot write {path}: {reason}; {way_out} and give the same command again, it continues")
    error.errno = number
    return error


def refusal(folder: Path) -> int:
    """Why a library that gives no reason could not write in a folder: ENOSPC where the disk is full, else EIO."""
    return errno.ENOSPC if shutil.disk_usage(folder).free < ROOM else errno.EIO


def of_disk(folder: Path, error: BaseException) -> OSError | None:
    """The error with file and way out, for one that the disk gave while files were written below `folder`.

    None for another error, and for one that names its file itself.
    """
    if isinstance(error, OSError):
        bare = error.errno in WAYS_OUT and error.strerror and not error.filename
        return not_written(folder, error.errno) if bare else None
    full = isinstance(error, RuntimeError) and folder.is_dir() and refusal(folder) == errno.ENOSPC
    return not_written(folder, errno.ENOSPC) if full else None


def link(source: Path, target: Path) -> None:
    """The same file in another place, or a copy of it where the file system has no links."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def write_json(path: Path, value: Any) -> None:
    """Write a whole file or nothing, keys sorted."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def as_flac(samples: Any, rate: int) -> bytes:
    """Samples (N,), int16 or float in ±1, as 16-bit FLAC; written by Python, which reports a full disk."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a whole file of lines or nothing."""
    write_text(path, "".join(line + "\n" for line in lines))
