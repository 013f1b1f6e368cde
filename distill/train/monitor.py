"""Progress of a training: a bar with the time left, log lines, curves.tsv, tensorboard.

A line of curves.tsv: update, name of the value, value. A continued training leaves out what came after its checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import resource
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from distill.files import write_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
NAME = "curves.tsv"
COLUMNS = "update\tname\tvalue"


class Curves:
    """Values over updates in curves.tsv and for tensorboard; a full disk ends the curves, not the training."""

    def __init__(self, folder: Path, done: int) -> None:
        """done: updates of the checkpoint that the training continues from; what was written after it is dropped."""
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

        self.folder, self._hook = folder, threading.excepthook
        threading.excepthook = self._other_thread  # the writer's own thread would print where it failed
        self._writer: SummaryWriter | None = None
        with self._ending_with_room():
            path = folder / NAME
            rows = path.read_text(encoding="utf-8").splitlines()[1:] if path.is_file() else []
            fields = (row.split("\t") for row in rows)  # a kill may have cut the last one
            kept = ["\t".join(some) for some in fields if len(some) == 3 and some[0].isdigit() and int(some[0]) <= done]
            write_lines(path, [COLUMNS, *kept])
            self._file = path.open("a", encoding="utf-8")
            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def add(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """A point of each value."""
        with self._ending_with_room():
            if self._writer is not None:
                self._file.writelines(f"{step}\t{prefix}/{name}\t{value:.6g}\n" for name, value in values.items())
                self._file.flush()
                for name, value in values.items():
                    self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def picture(self, name: str, drawing: Figure, step: int) -> None:
        """A picture, for tensorboard alone."""
        with self._ending_with_room():
            if self._writer is not None:
                self._writer.add_figure(name, drawing, step)

    def close(self) -> None:
        with self._ending_with_room():
            if self._writer is not None:
                self._file.close()
                self._writer.close()
        threading.excepthook = self._hook

    @contextlib.contextmanager
    def _ending_with_room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            log.warning("no more curves in %s: %s", self.folder, error.strerror or error)

    def _other_thread(self, failed: threading.ExceptHookArgs) -> None:
        if not issubclass(failed.exc_type, OSError) or not type(failed.thread).__module__.startswith("tensorboard"):
            self._hook(failed)


class Monitor:
    """Progress of a training: lines on every rank, bar and curves on the first."""

    def __init__(self, folder: Path, title: str, total: int, done: int, first: bool) -> None:
        self.total = total
        self._means: dict[str, float] = {}  # of an update's values
        self._pace: dict[str, float] = {}  # of its seconds of audio, and those it took
        terminal = first and sys.stderr.isatty()
        self._line_every = float("inf") if terminal else 30.0
        self._last_line = self._last_update = self._begin = time.monotonic()
        self._first = done
        self._bar = tqdm(total=total, initial=done, desc=title, unit="update", disable=not terminal)
        self.curves = Curves(folder, done) if first else None

    def update(self, step: int, values: Mapping[str, float], rate: float, audio: float) -> None:
        """Values of one update, its learning rate, its seconds of audio over all ranks."""
        now = time.monotonic()
        _average(self._means, values)
        _average(self._pace, {"audio": audio, "took": now - self._last_update})
        self._last_update, speed = now, self._pace["audio"] / max(self._pace["took"], 1e-9)
        self._bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in self._means.items()), refresh=False)
        self._bar.update(step - self._bar.n)
        if self.curves is not None and step % 10 == 0:
            of_audio = {"audio_per_second": speed} if audio else {}
            self.curves.add("train", {**values, "lr": rate, **of_audio, "memory_gb": peak_memory()}, step)
        if now - self._last_line > self._line_every:
            self._last_line = now
            left = timedelta(seconds=int((self.total - step) * (now - self._begin) / (step - self._first)))
            pace = f"{left} left" + (f", {speed:.0f} h of audio an hour" if audio else "")
            log.info("update %d of %d (%s): lr %.3g %s", step, self.total, pace, rate, _line(self._means))

    def valid(self, step: int, values: Mapping[str, float], epoch: int) -> None:
        """Values of a validation."""
        train, valid = _line(self._means), _line(values)
        log.info("epoch %d, update %d of %d: train %s | valid %s", epoch, step, self.total, train, valid)
        if self.curves is not None:
            self.curves.add("valid", values, step)
        self._last_update = time.monotonic()

    def close(self) -> None:
        self._bar.close()
        if self.curves is not None:
            self.curves.close()


def peak_memory() -> float:
    """Most memory that was in use at once so far, in GB: of the GPU where one is used, else of this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _average(means: dict[str, float], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        means[name] = 0.98 * means.get(name, value) + 0.02 * value


def _line(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())
