"""What one serving process consists of, put together and taken apart again.

    store ── generations ── freshness ─┐
    spool, reader, item cache ─────────┴─ ranker ── watcher ── observer ── service

Parts are opened from left to right and closed in the reverse order, so that each finds what it
works with until it has ended itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aggregation.cache.reader import ItemCache
from predictor.admission import Admission
from predictor.breaker import BreakerConfig, StoreReader
from predictor.cascade import CascadeConfig
from predictor.freshness import Freshness, FreshnessConfig
from predictor.generation import Generations
from predictor.limits import Limits
from predictor.loop_lag import LoopLag
from predictor.metrics import Metrics
from predictor.rank import RankConfig, Ranker
from predictor.record import LogEntry, encode_entry
from predictor.service import Service
from predictor.spool import SpoolConfig, SpoolWriter
from predictor.watch import WatchRequests, open_observer
from predictor.watcher import WatchConfig, Watcher, read_plan
from schemas.errors import PlanError, StoreError
from schemas.plan import Plan
from store.base import AsyncRowStore
from store.redis_store import AsyncRedisRowStore
from store.wire import StoreConfig


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """Everything a serving process is told.

    port, grpc_port: 0 takes a free one (logged); grpc_port None serves HTTP alone. share_ports:
    other processes listen on them, too. metrics_port: where HTTP is answered as well. socket: a
    Unix socket where it is, too, for who looks after it. core: all threads run on this one; None:
    anywhere. packages: None serves no models. spool: None logs nothing. timeout_ms: a request's
    time unless it says otherwise. allow_now_ms: take a request's clock (replays only). plan_wait_s:
    how long to wait at the start for a published plan. item_cache: the directory of the cache that
    `encore cache` keeps, None reads all items from the store; its max_age_ms: see `ItemCache`.
    freshness: None follows no marks.
    """

    store: StoreConfig
    service: str
    host: str = "127.0.0.1"
    port: int = 8080
    grpc_port: int | None = None
    metrics_port: int | None = None
    share_ports: bool = False
    socket: Path | None = None
    core: int | None = None
    packages: Path | None = None
    spool: SpoolConfig | None = None
    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    limits: Limits = field(default_factory=Limits)
    page_size: int = 20
    timeout_ms: float = 500.0
    allow_now_ms: bool = False
    poll_s: float = 0.5
    plan_wait_s: float = 10.0
    version: str = "0.1.0"
    watch: WatchRequests = field(default_factory=WatchRequests)
    item_cache: Path | None = None
    item_cache_max_age_ms: float = 1_000.0
    freshness: FreshnessConfig | None = None


@asynccontextmanager
async def serving(config: ServeConfig) -> AsyncIterator[Service]:
    """A service that works inside the block; the rank log is on disk behind it.

    Raises LocalError where the spool is taken, PlanError where no plan with the service is
    published in time, StoreError where the store does not answer.
    """
    async with AsyncExitStack() as stack:
        store = AsyncRedisRowStore(config.store)
        stack.push_async_callback(store.close)
        generations = Generations(await _first_plan(store, config.plan_wait_s), config.service)
        spool = _open_spool(config, stack)
        reader = _open_reader(config, store, stack)
        items = _open_items(config, stack)
        freshness = _open_freshness(config, store, generations, stack)
        rank_config = RankConfig(config.cascade, config.limits.in_flight)
        ranker = Ranker(reader, generations, spool, rank_config, items, freshness)
        stack.callback(ranker.close)
        watcher = Watcher(generations, store, WatchConfig(config.packages, config.poll_s), items)
        await watcher.look(polite=False)  # models that are there before the first request serve it
        run_beside(stack, watcher.run(), "watcher")
        metrics = _metrics(ranker, watcher, items, freshness)
        observer = open_observer(metrics, config.watch, config.version)
        stack.push_async_callback(asyncio.to_thread, observer.close)
        store.on_rows_read = ranker.admission.took_to_read
        _probe_loop(ranker.admission, metrics, stack)
        service = Service(
            ranker=ranker,
            watcher=watcher,
            observer=observer,
            store=store,
            version=config.version,
            limits=config.limits,
            page_size=config.page_size,
            timeout_ms=config.timeout_ms,
            allow_now_ms=config.allow_now_ms,
            shares_ports=config.share_ports,
        )
        try:
            yield service
        finally:
            service.ready = False


def run_beside(stack: AsyncExitStack, work: Coroutine[Any, Any, None], name: str) -> None:
    """Run `work` as a task that is cancelled, and waited for, when the stack unwinds."""
    stack.push_async_callback(_cancelled, asyncio.create_task(work, name=name))


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def _first_plan(store: AsyncRowStore, wait_s: float) -> Plan:
    """The published plan, waited for while there is none."""
    deadline = asyncio.get_running_loop().time() + wait_s
    while True:
        try:
            return await read_plan(store)
        except (PlanError, StoreError):
            if asyncio.get_running_loop().time() >= deadline:
                raise
        await asyncio.sleep(0.1)


def _open_spool(config: ServeConfig, stack: AsyncExitStack) -> SpoolWriter[LogEntry] | None:
    if config.spool is None:
        return None
    spool = SpoolWriter(config.spool, encode_entry)
    stack.push_async_callback(asyncio.to_thread, spool.close)
    return spool


def _open_reader(
    config: ServeConfig, store: AsyncRedisRowStore, stack: AsyncExitStack
) -> StoreReader:
    breaker = BreakerConfig(timeout_s=config.store.timeout_ms / 1000)
    reader = StoreReader(store, breaker, store.reconnect)
    stack.push_async_callback(reader.close)
    return reader


def _open_items(config: ServeConfig, stack: AsyncExitStack) -> ItemCache | None:
    if config.item_cache is None:
        return None
    items = ItemCache(config.item_cache, config.item_cache_max_age_ms)
    stack.callback(items.close)
    return items


def _open_freshness(
    config: ServeConfig, store: AsyncRowStore, generations: Generations, stack: AsyncExitStack
) -> Freshness | None:
    if config.freshness is None:
        return None
    freshness = Freshness(store, generations, config.freshness)
    run_beside(stack, freshness.run(), "freshness")
    return freshness


def _metrics(
    ranker: Ranker, watcher: Watcher, items: ItemCache | None, freshness: Freshness | None
) -> Metrics:
    """Counts of requests, and what these parts keep themselves."""
    metrics = Metrics()
    metrics.readings.ranker(ranker)
    metrics.readings.watcher(watcher)
    if items is not None:
        metrics.readings.items(items)
    if freshness is not None:
        metrics.readings.freshness(freshness)
    return metrics


def _probe_loop(admission: Admission, metrics: Metrics, stack: AsyncExitStack) -> None:
    """Tell admission and metrics how late the event loop is."""
    lag = admission.lag = LoopLag()

    def looked(late_s: float) -> None:
        metrics.observe_loop(late_s)
        admission.used_by_loop(time.thread_time())

    run_beside(stack, lag.run(looked), "loop lag")
