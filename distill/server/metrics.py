"""What a server measures, for Prometheus; any thread may count."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STREAMS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

disable_created_metrics()


class Metrics:
    """The metrics of one server, in a registry of its own; their names begin with distill_."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        options: Any = {"namespace": "distill", "registry": self._registry}
        self.streams_open = Gauge("streams_open", "Open streams.", **options)
        self.streams = Counter("streams_total", "Streams that were opened.", ["protocol"], **options)
        self.refused = Counter("streams_refused_total", "Streams closed by the server.", ["reason"], **options)
        self.words = Counter("words_total", "Words of final results.", **options)
        self.audio_seconds = Counter("audio_seconds_total", "Recognised audio.", **options)
        self.batch_streams = Histogram("batch_streams", "Streams in a forward.", buckets=STREAMS, **options)
        self.forward_seconds = Histogram("forward_seconds", "Time of a forward.", buckets=SECONDS, **options)
        self.search_seconds = Histogram(
            "search_seconds", "Time of the searches after a forward.", buckets=SECONDS, **options
        )
        self.partial_delay_seconds = Histogram(
            "partial_delay_seconds", "From a chunk's last sample to its result, inside the server.",
            buckets=SECONDS, **options,
        )  # fmt: skip

    def text(self) -> str:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry).decode()
