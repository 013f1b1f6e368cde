"""Progress of a training: a bar with the time left, log lines, tensorboard."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

from tqdm import tqdm

log = logging.getLogger(__name__)


class Curves:
    """Values over updates for tensorboard; a full disk ends the curves, not the training."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

        self.folder, self._hook = folder, threading.excepthook
        threading.excepthook = self._other_thread  # the writer's own thread would print where it failed
        self._writer: SummaryWriter | None = None
        with self._ending_with_room():
            self._writer = SummaryWriter(str(folder), purge_step=step)

    def add(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        """A point of each value."""
        with self._ending_with_room():
            for name, value in values.items():
                if self._writer is not None:
                    self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        with self._ending_with_room():
            if self._writer is not None:
                self._writer.close()
        threading.excepthook = self._hook

    @contextlib.contextmanager
    def _ending_with_room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            log.warning("no more curves for tensorboard in %s: %s", self.folder, error.strerror or error)

    def _other_thread(self, failed: threading.ExceptHookArgs) -> None:
        if not issubclass(failed.exc_type, OSError) or not type(failed.thread).__module__.startswith("tensorboard"):
            self._hook(failed)


class Monitor:
    """Progress of the first process; silent on the others."""

    def __init__(self, folder: Path, title: str, total: int, done: int, enabled: bool) -> None:
        self.enabled, self.total = enabled, total
        self._means: dict[str, float] = {}
        terminal = sys.stderr.isatty()
        self._line_every = float("inf") if terminal else 30.0
        self._last_line = self._begin = time.monotonic()
        self._first = done
        self._bar = tqdm(total=total, initial=done, desc=title, unit="update", disable=not (enabled and terminal))
        self._curves = Curves(folder / "tensorboard", done) if enabled else None

    def update(self, step: int, values: dict[str, float], rate: float) -> None:
        """Values of one update."""
        if not self.enabled:
            return
        for name, value in values.items():
            old = self._means.get(name, value)
            self._means[name] = 0.98 * old + 0.02 * value
        self._bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in self._means.items()), refresh=False)
        self._bar.update(step - self._bar.n)
        if self._curves is not None and step % 10 == 0:
            self._curves.add("train", {**values, "lr": rate}, step)
        if time.monotonic() - self._last_line > self._line_every:
            self._last_line = time.monotonic()
            left = timedelta(seconds=int((self.total - step) * (self._last_line - self._begin) / (step - self._first)))
            log.info("update %d of %d (%s left): %s", step, self.total, left, _line(self._means))

    def valid(self, step: int, values: dict[str, float], epoch: int) -> None:
        """Values of a validation."""
        if not self.enabled:
            return
        train, valid = _line(self._means), _line(values)
        log.info("epoch %d, update %d of %d: train %s | valid %s", epoch, step, self.total, train, valid)
        if self._curves is not None:
            self._curves.add("valid", values, step)

    def close(self) -> None:
        self._bar.close()
        if self._curves is not None:
            self._curves.close()


def _line(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())
