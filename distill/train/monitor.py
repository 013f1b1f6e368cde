"""What a training shows: a progress bar with the time left, log lines, tensorboard; and facts about the run."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

log = logging.getLogger(__name__)


class Monitor:
    """Progress of the first process; silent on the others."""

    def __init__(self, folder: Path, title: str, total: int, done: int, enabled: bool) -> None:
        self.enabled, self.total = enabled, total
        self._means: dict[str, float] = {}
        self._writer = None
        terminal = sys.stderr.isatty()
        self._line_every = float("inf") if terminal else 30.0
        self._last_line = self._begin = time.monotonic()
        self._first = done
        self._bar = tqdm(total=total, initial=done, desc=title, unit="update", disable=not (enabled and terminal))
        if enabled:
            from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed here

            self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=done)

    def update(self, step: int, values: dict[str, float], rate: float) -> None:
        """Values of one update."""
        if not self.enabled:
            return
        for name, value in values.items():
            old = self._means.get(name, value)
            self._means[name] = 0.98 * old + 0.02 * value
        self._bar.set_postfix_str(" ".join(f"{k} {v:.3g}" for k, v in self._means.items()), refresh=False)
        self._bar.update(step - self._bar.n)
        if self._writer is not None and step % 10 == 0:
            for name, value in {**values, "lr": rate}.items():
                self._writer.add_scalar(f"train/{name}", value, step)
        if time.monotonic() - self._last_line > self._line_every:
            self._last_line = time.monotonic()
            log.info("update %d of %d (%s left): %s", step, self.total, self._left(step), self.summary())

    def valid(self, step: int, values: dict[str, float], epoch: int) -> None:
        """Values of a validation."""
        if not self.enabled:
            return
        text = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        log.info("epoch %d, update %d of %d: train %s | valid %s", epoch, step, self.total, self.summary(), text)
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"valid/{name}", value, step)

    def summary(self) -> str:
        """Running means in one line."""
        return " ".join(f"{name} {value:.4g}" for name, value in self._means.items())

    def mean(self, name: str) -> float:
        """Running mean of one value, NaN before the first update."""
        return self._means.get(name, float("nan"))

    def close(self) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()

    def _left(self, step: int) -> str:
        speed = (step - self._first) / max(1e-9, time.monotonic() - self._begin)
        seconds = int((self.total - step) / max(speed, 1e-9))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def hardware(device: torch.device) -> str:
    """The machine in a few words: GPU, or processor and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return f"{name}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def commit() -> str:
    """The checked-out commit, with + where files differ from it; "unknown" outside a git checkout."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
