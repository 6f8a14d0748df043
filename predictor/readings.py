"""What other parts of the serving process keep, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Final, get_args

from prometheus_client import CollectorRegistry

from aggregation.cache.reader import ItemCache
from predictor.breaker import State, StoreReader
from predictor.freshness import Freshness
from predictor.rank import Ranker
from predictor.record import LogEntry
from predictor.spool import SpoolCounts, SpoolWriter
from predictor.tallies import Labels, Reading
from predictor.watcher import Watcher

STATES: Final[tuple[State, ...]] = get_args(State)
Read = Callable[[], dict[Labels, float]]


class Readings:
    """Adds to a registry what is read when Prometheus asks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def by(self, name: str, about: str, labels: Labels, read: Read) -> None:
        """Values by labels."""
        self._registry.register(Reading(name, about, labels, read))

    def one(self, name: str, about: str, read: Callable[[], float]) -> None:
        """A value."""
        self.by(name, about, (), lambda: {(): read()})

    def ranker(self, ranker: Ranker) -> None:
        """Queues, admission, generations, and what lies behind them."""
        admission, generations = ranker.admission, ranker.generations
        self.one("encore_in_flight", "Requests being served", lambda: admission.in_flight)
        self.one(
            "encore_queue_seconds",
            "What the inference thread and the event loop still have to do for them",
            lambda: admission.wait_s,
        )
        self.one(
            "encore_loop_request_seconds",
            "Of the processor, what the event loop needs for a request that is served",
            lambda: admission.loop_s,
        )
        self.by(
            "encore_overload_refused_total",
            "Requests refused since they would have waited too long",
            ("reason",),
            lambda: {(reason,): count for reason, count in asdict(admission.refused).items()},
        )
        self.one(
            "encore_generation",
            "Number of the serving generation",
            lambda: generations.current.number,
        )
        self.one(
            "encore_plan_version",
            "Version of the serving plan",
            lambda: generations.current.plan.version,
        )
        self._reader(ranker.reader)
        if ranker.spool is not None:
            self._spool(ranker.spool)

    def freshness(self, freshness: Freshness) -> None:
        """How far the rows are that are served."""
        self.by(
            "encore_view_watermark_seconds",
            "Event time since 1970 that every partition of a view has stored",
            ("view",),
            lambda: {(view,): ms / 1000 for view, ms in freshness.watermarks_ms().items()},
        )

    def watcher(self, watcher: Watcher) -> None:
        """Publications."""
        self.one("encore_swaps_total", "Generations swapped in", lambda: watcher.swaps)
        self.one(
            "encore_publications_refused_total",
            "Plans and packages that are not served",
            lambda: watcher.refused,
        )
        self.one(
            "encore_plan_waiting",
            "1 while a published plan waits for its items to be cached",
            lambda: int(bool(watcher.waiting)),
        )

    def grpc(self, narrow: Callable[[], bool]) -> None:
        """narrow: as `GrpcServer.narrow`."""
        self.one(
            "encore_grpc_narrow",
            "1 while few calls are asked for: in an overload, in which the library resets the rest",
            lambda: int(narrow()),
        )

    def items(self, cache: ItemCache) -> None:
        """The item cache, as far as this process reads it."""
        counts = cache.counts
        self.by(
            "encore_cache_items_total",
            "Candidates: hit, of them aged (made anew of their rows); absent, known to have no"
            " rows; missed, read from the store",
            ("result",),
            lambda: {
                ("hit",): counts.hits,
                ("aged",): counts.aged,
                ("absent",): counts.absent,
                ("missed",): counts.missed,
            },
        )
        self.one("encore_cache_asked_total", "Requests to the cache", lambda: counts.requests)
        self.one(
            "encore_cache_unusable_total",
            "Requests that found no fresh cache",
            lambda: counts.unusable,
        )
        self.one(
            "encore_cache_retried_total",
            "Records read again since they were being written",
            lambda: counts.retried,
        )
        self.one("encore_cache_items", "Items in the cache", cache.items)

        def age() -> dict[Labels, float]:
            age_ms = cache.age_ms()
            return {} if age_ms is None else {(): age_ms / 1000}

        self.by(
            "encore_cache_age_seconds",
            "Since the cache was known to hold everything; missing without a cache",
            (),
            age,
        )

    def _reader(self, reader: StoreReader) -> None:
        self.by(
            "encore_breaker_state",
            "1 for the state in which the reads of the store are",
            ("state",),
            lambda: {(state,): float(state == reader.state) for state in STATES},
        )
        self.one(
            "encore_breaker_opened_total",
            "Times that the store was given up",
            lambda: reader.opened,
        )

    def _spool(self, spool: SpoolWriter[LogEntry]) -> None:
        counts: SpoolCounts = spool.counts
        self.one("encore_log_pending", "Rank-log records not yet on disk", spool.pending)
        self.by(
            "encore_log_records_total",
            "Rank-log records: logged, fsynced; dropped, no room; failed, no encoding",
            ("outcome",),
            lambda: {
                ("logged",): counts.logged,
                ("dropped",): counts.dropped,
                ("failed",): counts.failed,
            },
        )
        self.one("encore_log_disk_faults_total", "Failed spool writes", lambda: counts.faults)
