"""Signals that ask a training to end: noticed at once, obeyed between two updates."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

SAME_REQUEST = 3.0  # seconds: a launcher and a terminal both pass the same Ctrl-C on


@dataclass
class Asked:
    """Which signal asked to end, 0: none; at: when (monotonic seconds)."""

    signal: int = 0
    at: float = 0.0

    @property
    def status(self) -> int:
        """Exit status of a process that was asked to end; as of SIGTERM where another rank was."""
        return 128 + (self.signal or signal.SIGTERM)


@contextlib.contextmanager
def noticing() -> Iterator[Asked]:
    """Note SIGTERM and SIGINT instead of ending; a second Ctrl-C some seconds later ends at once."""
    asked = Asked()

    def notice(number: int, frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and asked.signal and now - asked.at > SAME_REQUEST:
            raise KeyboardInterrupt
        asked.signal, asked.at = asked.signal or number, asked.at or now

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, notice)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
