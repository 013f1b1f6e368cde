"""The frame of every script: logging, errors in one line, exit statuses."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from distill import files
from distill.extras import explained
from distill.recipe import launch

log = logging.getLogger(__name__)


def log_to_console() -> None:
    """Time, level and message of everything from INFO up; on ranks but the first from WARNING up."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(message)s", datefmt="%H:%M:%S")
    if launch.rank():
        for handler in logging.getLogger().handlers:
            handler.setLevel(logging.WARNING)


class LogFile(logging.FileHandler):
    """A file with everything from INFO up; a full disk ends neither it nor the work."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave it to the console, where the record is, too."""


@contextlib.contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Append the log of this rank to log/train-<rank>.log, with date, host and process.

    After an error the file stays open, as the error itself is logged later, at the end of the process.
    """
    (folder / "log").mkdir(exist_ok=True)
    handler = LogFile(folder / "log" / f"train-{launch.rank()}.log", encoding="utf-8")
    where = socket.gethostname().replace("%", "%%")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s {where} %(process)d %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    log.info("rank %d of %s: %s", launch.rank(), os.environ.get("WORLD_SIZE", 1), shlex.join(sys.argv))
    yield
    logging.getLogger().removeHandler(handler)
    handler.close()


def run_script(main: Callable[[], None]) -> None:
    """Run a script's main: user errors become one line, an interruption a quiet exit, children end with it."""
    launch.end_cleanly()
    try:
        main()
        if group := sys.modules.get("distill.train.distributed"):  # where it is not loaded there is none
            group.leave()
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        if os.environ.get("DISTILL_TRACEBACK"):
            raise
        _log_error(error)
        sys.exit(1)
    except ImportError as error:
        message = explained(error, Path(sys.argv[0]).name) if error.name else str(error)  # ours explain themselves
        if not message or os.environ.get("DISTILL_TRACEBACK"):
            raise
        log.error("%s", message)
        sys.exit(1)
    except KeyboardInterrupt as interruption:
        sys.exit(getattr(interruption, "status", 130))
    finally:
        if "multiprocessing" in sys.modules:
            for child in sys.modules["multiprocessing"].active_children():
                child.terminate()
        launch.ending()


def _log_error(error: Exception) -> None:
    """One line; an error that all ranks share is logged by the first, one about a lost rank not at all."""
    if launch.another_ended(error):
        reason = str(error).strip().splitlines()[0]
        log.info("stopping, as another process of this stage has ended: %s", reason)
        return
    if launch.rank():
        try:
            time.sleep(3.0)  # the end of the first one ends this process meanwhile, if that has the same error
        except KeyboardInterrupt:
            return
    reason = str(error)
    if isinstance(error, OSError) and error.strerror:
        way_out = f"; {files.WAYS_OUT[error.errno]}" if error.errno in files.WAYS_OUT else ""
        reason = (f"{error.strerror}: {error.filename}" if error.filename else error.strerror) + way_out
    log.error("%s (DISTILL_TRACEBACK=1 shows where)", reason)
