"""`encore stream metrics`: what `encore stream status` knows, for Prometheus.

One process tells of all workers, sinks and shippers, wherever they run: their positions and what
they say of themselves lie in the store, the ends of the logs in the broker. So a worker needs no
port of its own, and one that is gone is seen by what it does not do any more.

The status is read every few seconds, not when Prometheus asks; `encore_stream_status_age_seconds`
says how old it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest

from encore.serving_page import METRICS_PATH, serving_pages, text_page
from predictor.tallies import Labels, Reading
from schemas.errors import EncoreError
from store.redis_store import AsyncRedisRowStore
from streams.config import StreamConfig
from streams.status import Line, StreamStatus, read_status

log: Final = logging.getLogger(__name__)
READ_EVERY_S: Final = 5.0
_PLACE: Final = ("does", "topic", "partition")


@dataclass(slots=True)
class StreamMetrics:
    """The last status that could be read. clock_s: seconds since the epoch."""

    clock_s: Callable[[], float] = time.time
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    _status: StreamStatus | None = None
    _read_s: float = 0.0
    _failures: int = 0

    def __post_init__(self) -> None:
        self._of_lines(
            "encore_stream_lag_messages", "Messages not stored yet", lambda line: line.lag
        )
        self._of_lines(
            "encore_stream_end_offset", "The offset after the last record", lambda line: line.end
        )
        self._of_lines("encore_stream_epoch", "Number of the log", lambda line: line.epoch)
        self._of_lines(
            "encore_stream_owned",
            "1 where a process has the partition",
            lambda line: bool(line.owner),
        )
        self._of_lines(
            "encore_stream_watermark_seconds",
            "Event time that is stored, since 1970; missing where nothing is",
            lambda line: line.watermark_ms / 1000 if line.watermark_ms else None,
        )
        self._reading(
            "encore_stream_actions_total",
            "Actions since a process took the partition, by what became of them",
            (*_PLACE, "outcome"),
            self._outcomes,
        )
        self._reading("encore_stream_aside_messages", "In side topics", ("topic",), self._aside)
        self._reading(
            "encore_spool_unshipped_bytes", "Rank log not in Kafka yet", (), self._unshipped
        )
        self._reading(
            "encore_stream_status_age_seconds", "Since the status was read", (), self._age
        )
        self._reading(
            "encore_stream_status_failures_total",
            "Times that it could not be read",
            (),
            lambda: {(): self._failures},
        )

    def take(self, status: StreamStatus) -> None:
        """Show this one from now on."""
        self._status, self._read_s = status, self.clock_s()

    def failed(self) -> None:
        """The status could not be read: the last one stays, and its age grows."""
        self._failures += 1

    # --- series -----------------------------------------------------------------------------

    def _reading(
        self, name: str, about: str, labels: Labels, read: Callable[[], dict[Labels, float]]
    ) -> None:
        self.registry.register(Reading(name, about, labels, read))

    def _of_lines(self, name: str, about: str, value: Callable[[Line], float | None]) -> None:
        def read() -> dict[Labels, float]:
            found = {_place(line): value(line) for line in self._lines()}
            return {place: each for place, each in found.items() if each is not None}

        self._reading(name, about, _PLACE, read)

    def _lines(self) -> tuple[Line, ...]:
        return () if self._status is None else self._status.lines

    def _outcomes(self) -> dict[Labels, float]:
        """What was folded is what was seen, less what went aside."""
        return {
            (*_place(line), outcome): count
            for line in self._lines()
            if line.does != "re-keying"
            for outcome, count in asdict(line.counts).items()
        }

    def _aside(self) -> dict[Labels, float]:
        return {} if self._status is None else {(k,): v for k, v in self._status.aside.items()}

    def _unshipped(self) -> dict[Labels, float]:
        return {} if self._status is None else {(): self._status.unshipped_bytes}

    def _age(self) -> dict[Labels, float]:
        return {} if self._status is None else {(): self.clock_s() - self._read_s}


def _place(line: Line) -> Labels:
    return line.does, line.topic, str(line.partition)


async def tell(config: StreamConfig, host: str, port: int) -> None:
    """Read the status again and again and answer `GET /metrics`, until cancelled.

    port: 0 takes a free one (logged). Raises LocalError where the address is taken.
    """
    metrics = StreamMetrics()
    pages = {METRICS_PATH: lambda: text_page(generate_latest(metrics.registry).decode())}
    with serving_pages(host, port, pages, "stream_metrics_port") as taken:
        log.info("metrics of the streams on http://%s:%d%s", host, taken, METRICS_PATH)
        async with AsyncRedisRowStore(config.store_url) as store:
            while True:
                await _read(config, store, metrics)
                await asyncio.sleep(READ_EVERY_S)


async def _read(config: StreamConfig, store: AsyncRedisRowStore, metrics: StreamMetrics) -> None:
    try:
        metrics.take(await read_status(config, store, int(metrics.clock_s() * 1000)))
    except EncoreError as error:
        metrics.failed()
        log.warning("stream metrics: %s", error)
