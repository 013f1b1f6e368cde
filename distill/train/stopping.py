"""Signals that end a training: recorded at once, acted on between two updates. The standard library alone."""

from __future__ import annotations

import contextlib
import os
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

    def agreed(self, warned: bool, ended: bool) -> int:
        """The signal that all ranks end by, 0: none. warned: one of them got SIGUSR1, ended: one got any signal."""
        if warned:
            return signal.SIGUSR1
        return (self.signal or signal.SIGTERM) if ended else 0


def exit_status(number: int) -> int:
    """Exit status of a process that a signal ended: 75 (EX_TEMPFAIL, to be queued again) for SIGUSR1."""
    return os.EX_TEMPFAIL if number == signal.SIGUSR1 else 128 + number


@contextlib.contextmanager
def deferred_signals() -> Iterator[EndRequest]:
    """Record SIGTERM, SIGINT and SIGUSR1 instead of ending; a second Ctrl-C some seconds later ends at once."""
    request = EndRequest()

    def record(number: int, frame: object) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and request.signal and now - request.at > SAME_REQUEST:
            raise KeyboardInterrupt
        request.signal, request.at = request.signal or number, request.at or now

    before = {}
    if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, record)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
