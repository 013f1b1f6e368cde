"""Counters and histograms in Prometheus' text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STREAMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Metrics:
    """What a server counts; any thread may add."""

    def __init__(self, prefix: str = "distill_") -> None:
        self._prefix, self._lock = prefix, threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}
        self._values: dict[tuple[str, str], float] = defaultdict(float)
        self._buckets: dict[str, tuple[Sequence[float], list[int]]] = {}

    def counter(self, name: str, meaning: str) -> None:
        """Declare what only grows."""
        self._declare(name, "counter", meaning)

    def gauge(self, name: str, meaning: str) -> None:
        """Declare what goes up and down."""
        self._declare(name, "gauge", meaning)

    def histogram(self, name: str, meaning: str, edges: Sequence[float] = SECONDS) -> None:
        """Declare a distribution."""
        self._declare(name, "histogram", meaning)
        self._buckets[name] = edges, [0] * (len(edges) + 1)

    def _declare(self, name: str, kind: str, meaning: str) -> None:
        self._help[name] = kind, meaning
        if kind != "histogram":
            self._values[name, ""] = 0.0

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count; labels tell kinds of the same thing apart."""
        with self._lock:
            told = ",".join(f'{key}="{value}"' for key, value in sorted(labels.items()))
            self._values[name, told] += amount

    def observe(self, name: str, value: float) -> None:
        """One value of a distribution."""
        with self._lock:
            edges, counts = self._buckets[name]
            counts[bisect_left(edges, value)] += 1
            self._values[name + "_sum", ""] += value

    def value(self, name: str) -> float:
        """A counter or gauge, all labels together."""
        with self._lock:
            return sum(amount for (known, _), amount in self._values.items() if known == name)

    def text(self) -> str:
        """Everything, as GET /metrics gives it."""
        with self._lock:
            return "".join(self._lines(name) for name in self._help)

    def _lines(self, name: str) -> str:
        kind, meaning = self._help[name]
        full = self._prefix + name
        lines = [f"# HELP {full} {meaning}", f"# TYPE {full} {kind}"]
        if kind == "histogram":
            edges, counts = self._buckets[name]
            for i, edge in enumerate([*map(str, edges), "+Inf"]):
                lines.append(f'{full}_bucket{{le="{edge}"}} {sum(counts[: i + 1])}')
            lines += [f"{full}_sum {self._values[name + '_sum', '']:g}", f"{full}_count {sum(counts)}"]
        labelled = sorted(
            (told, x) for (known, told), x in self._values.items() if known == name and kind != "histogram"
        )
        if len(labelled) > 1:
            labelled = [(told, x) for told, x in labelled if told]
        lines += [f"{full}{{{told}}} {x:g}" if told else f"{full} {x:g}" for told, x in labelled]
        return "\n".join(lines) + "\n"
