"""What the service counts, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from predictor.rank import Ranker
from predictor.watcher import Watcher
from schemas.ranklog import Degraded

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)


class Metrics:
    """One registry a service, so that two services of one process do not share counts."""

    def __init__(self, ranker: Ranker, watcher: Watcher) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "encore_requests_total",
            "Requests by model and HTTP status",
            ("model", "status"),
            registry=self.registry,
        )
        self.degraded = Counter(
            "encore_degraded_total", "Replies by degradation", ("reason",), registry=self.registry
        )
        self.seconds = Histogram(
            "encore_request_seconds",
            "From the body's last byte to the reply's first",
            ("model",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._gauge("encore_in_flight", "Requests being served", lambda: ranker.in_flight)
        self._gauge(
            "encore_generation",
            "Number of the serving generation",
            lambda: ranker.generations.current.number,
        )
        self._gauge(
            "encore_refused_publications", "Plans and packages refused", lambda: watcher.refused
        )
        if (spool := ranker.spool) is not None:
            counts = spool.counts
            self._gauge("encore_log_pending", "Rank-log records not yet on disk", spool.pending)
            self._gauge("encore_log_logged", "Rank-log records fsynced", lambda: counts.logged)
            self._gauge("encore_log_dropped", "Rank-log records dropped", lambda: counts.dropped)
            self._gauge("encore_log_failed", "Records that had no encoding", lambda: counts.failed)
            self._gauge("encore_log_disk_faults", "Failed spool writes", lambda: counts.faults)

    def _gauge(self, name: str, help_text: str, read: Callable[[], int]) -> None:
        Gauge(name, help_text, registry=self.registry).set_function(read)

    def count_degraded(self, flags: Degraded) -> None:
        """Count each reason of one reply."""
        for flag in flags:
            self.degraded.labels(str(flag.name).lower()).inc()

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
