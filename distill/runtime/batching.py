"""Many streams through one model: whatever chunks are ready go through one forward.

As with sessions, torch or ONNX Runtime makes no difference to the caller; with the latter, torch is not imported.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill.runtime.session import Facts

log = logging.getLogger(__name__)
RUNTIMES = ("torch", "onnx", "int8")


@dataclass
class Piece:
    """What one stream gives to a forward: its state, samples (n,), and whether they are its last."""

    state: Any
    wave: np.ndarray
    final: bool


class BatchRunner(Protocol):
    """Runs the model of many streams."""

    facts: Facts

    def open(self) -> Any:
        """State of a stream that has heard nothing."""

    def needs(self, begun: bool) -> int:
        """Samples of a stream's next chunk; begun: it is not the first."""

    def step(self, pieces: Sequence[Piece]) -> list[tuple[np.ndarray, Any]]:
        """Chunks of any streams, `needs` samples or, of final ones, fewer -> log-probabilities (T, V), new states.

        Where it raises, the same pieces may be given again, all or some of them.
        """


def open_batches(folder: Path, runtime: str = "", output: str = "main", threads: int = 1) -> BatchRunner:
    """The runner for an experiment's folder.

    runtime: torch (the last checkpoint), onnx or int8 (what stage 12 exported); empty: onnx, which is faster,
    unless the export is missing or older than the checkpoint. Raises FileNotFoundError or ValueError.
    """
    if runtime and runtime not in RUNTIMES:
        raise ValueError(f"runtime '{runtime}' is not known; expected {', '.join(RUNTIMES)}")
    if (runtime or preferred(folder)) == "torch":
        from distill.runtime.torch_runner import open_torch_batches

        return open_torch_batches(folder, output, threads)
    from distill.runtime.onnx_runner import open_onnx_batches

    return open_onnx_batches(folder, output, runtime == "int8", threads)


def preferred(folder: Path) -> str:
    """onnx where there is an export that is up to date, else torch, and the log says why."""
    exported, epochs = folder / "export" / "export.json", list(folder.glob("epoch-*.pt"))
    if (folder / "export.json").is_file() or (exported.is_file() and not epochs):
        return "onnx"  # an export folder alone
    if not epochs:
        return "torch"  # which says what is missing
    if not exported.is_file():
        log.info("%s has no export; the checkpoint is run by torch, which is slower (stage 12 exports)", folder)
        return "torch"
    if exported.stat().st_mtime < max(path.stat().st_mtime for path in epochs):
        log.warning("%s/export is older than the checkpoint, which torch runs; stage 12 exports it anew", folder)
        return "torch"
    return "onnx"
