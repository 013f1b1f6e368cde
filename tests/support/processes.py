"""Processes that tests start."""

from __future__ import annotations

import time
from pathlib import Path


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends within some seconds; one that no parent has waited for yet has ended."""
    state, end = Path(f"/proc/{pid}/stat"), time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False
