"""Lock files with host, process and start time of their holder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

log = logging.getLogger(__name__)
POLL, SOON = 0.25, 2.0  # seconds between two looks at a lock, and of waiting that are not worth a word


@dataclass(frozen=True)
class Holder:
    """A process: host, id, start time (ids are reused), and when it took the lock."""

    host: str
    pid: int
    started: str
    since: str

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def alive(self) -> bool:
        """True while this host runs the process; for a holder that is `here`."""
        return self.started != "" and started(self.pid) == self.started


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep `folder`.lock during the block; a lock left by a dead process of this host is taken over.

    Where another process has it, waits for it or raises RuntimeError naming host, process and time. A lock of another
    host is never taken over, as its process cannot be checked from here.
    """
    path = folder.with_name(folder.name + ".lock")
    own = Holder(socket.gethostname(), os.getpid(), started(os.getpid()), time.strftime("%Y-%m-%d %H:%M:%S"))
    waiting = 0.0
    while True:
        try:
            with _one_at_a_time(path.parent):
                free(path, folder)
                _create(path, own)
            break
        except RuntimeError as taken:
            if not wait:
                raise
            if waiting == SOON:
                log.info("waiting: %s", taken)
            waiting += POLL
            time.sleep(POLL)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if read(path) == own:
                path.unlink(missing_ok=True)


def free(path: Path, folder: Path) -> None:
    """Remove the lock of a dead process; RuntimeError if it may still run."""
    try:
        holder = read(path)
    except FileNotFoundError:
        return
    if holder is None:
        log.warning("%s names no process (cut short?): taken over", path)
    elif not holder.here:
        raise RuntimeError(
            f"process {holder.pid} on {holder.host} is writing {folder}, since {holder.since}, and this is"
            f" {socket.gethostname()}; wait for it, or remove {path} if it is gone"
        )
    elif holder.alive:
        raise RuntimeError(
            f"process {holder.pid} is writing {folder} (on {holder.host}, since {holder.since}); wait for it or stop it"
        )
    path.unlink(missing_ok=True)


def _create(path: Path, own: Holder) -> None:
    """Create the lock together with its content; only a power failure leaves one without content."""
    temporary = path.with_name(f"{path.name}.{own.host}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(asdict(own), file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with path.open("x", encoding="utf-8") as file:
                json.dump(asdict(own), file)
    except FileExistsError:
        raise RuntimeError(f"another process took {path} at this moment; wait for it or stop it") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read(path: Path) -> Holder | None:
    """The holder of a lock, None if the file names none; FileNotFoundError without a file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, int):  # the format of earlier versions
            return Holder(socket.gethostname(), content, started(content), "an unknown time")
        return Holder(str(content["host"]), int(content["pid"]), str(content["started"]), str(content["since"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def started(pid: int) -> str:
    """Start time of a process of this host, in the system's units; empty if there is none or a zombie."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _started_by_ps(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else f"{boot}/{fields[19]}"


def _started_by_ps(pid: int) -> str:
    done = subprocess.run(["ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, text=True)
    state, _, start = done.stdout.strip().partition(" ")
    return "" if state.startswith("Z") else start.strip()


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Mutual exclusion on this host while a lock is taken over, where the file system supports it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
