"""Signals that end a training: recorded at once, acted on between two updates."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

SAME_REQUEST = 3.0  # seconds: a launcher and a terminal both pass the same Ctrl-C on


@dataclass
class EndRequest:
    """The signal received, 0: none; at: its time (monotonic seconds)."""

    signal: int = 0
    at: float = 0.0

    @property
    def status(self) -> int:
        """Exit status of the process; that of SIGTERM where another rank got the signal."""
        return 128 + (self.signal or signal.SIGTERM)


@contextlib.contextmanager
def deferred_signals() -> Iterator[EndRequest]:
    """Record SIGTERM and SIGINT instead of ending; a second Ctrl-C some seconds later ends at once."""
    request = EndRequest()

    def record(number: int, frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and request.signal and now - request.at > SAME_REQUEST:
            raise KeyboardInterrupt
        request.signal, request.at = request.signal or number, request.at or now

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, record)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
