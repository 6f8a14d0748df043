"""The serving process: one event loop, one inference thread, one spool thread.

`run_server` blocks until SIGTERM or SIGINT, then drains: it says that it is not ready, takes no new
connection, answers what is in flight, and writes the rank log to disk before it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
import uvicorn
import uvloop

from aggregation.cache.reader import ItemCache
from aggregation.native.library import path_in_use
from predictor.breaker import BreakerConfig, StoreReader
from predictor.cascade import CascadeConfig
from predictor.freshness import Freshness, FreshnessConfig
from predictor.front import Front
from predictor.generation import Generations
from predictor.grpc_server import GrpcServer
from predictor.http import create_app
from predictor.limits import Limits
from predictor.loop_lag import LoopLag
from predictor.metrics import Metrics
from predictor.rank import RankConfig, Ranker
from predictor.record import LogEntry, encode_entry
from predictor.service import Service
from predictor.spool import SpoolConfig, SpoolWriter
from predictor.watch import WatchRequests, open_observer
from predictor.watcher import WatchConfig, Watcher, read_plan
from schemas.cores import pin
from schemas.errors import LocalError, PlanError, StoreError
from schemas.plan import Plan
from store.base import AsyncRowStore
from store.redis_store import AsyncRedisRowStore
from store.wire import StoreConfig

log: Final = logging.getLogger(__name__)
#: A thread that waits for the interpreter lock asks for it after this long: with Python's 5 ms the
#: inference thread would wait that long for each of its steps beside a busy event loop.
SWITCH_INTERVAL_S: Final = 0.0005
#: Objects made before the collector looks at the young ones; how often it looks at older ones.
GC_THRESHOLDS: Final = (50_000, 20, 20)
#: Connections taken in one turn of the loop: libuv takes one for each socket that listens, and when
#: hundreds come at once (an overload, a failover) the last would wait for as many turns.
ACCEPTS: Final = 16
DRAIN_S: Final = 10
LOOK_EVERY_S: Final = 0.1
KEEP_ALIVE_S: Final = 75  # longer than clients keep idle connections, so that they close first


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


def run_server(config: ServeConfig, look: Callable[[], None] | None = None) -> None:
    """Serve until told to stop. Blocks the main thread.

    look: called on it every LOOK_EVERY_S, for who keeps something running beside; it takes no time.

    Raises LocalError where the address or the spool is taken, PlanError where no plan with the
    service is published in time, StoreError where the store does not answer at the start.
    """
    if config.core is not None:
        pin(config.core)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    torch.set_num_threads(1)
    with contextlib.ExitStack() as held:
        listeners = [held.enter_context(_listen(config, config.port))]
        if config.metrics_port is not None:
            listeners.append(held.enter_context(_listen(config, config.metrics_port)))
        if config.socket is not None:
            listeners.append(held.enter_context(socket.socket(socket.AF_UNIX)))
            listeners[-1].bind(str(config.socket))
        runner = held.enter_context(asyncio.Runner(loop_factory=uvloop.new_event_loop))
        runner.run(_run(config, listeners, look))


async def _run(
    config: ServeConfig, listeners: list[socket.socket], look: Callable[[], None] | None
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        if look is not None:
            looking = asyncio.create_task(_look_again(look), name="look")
            stack.push_async_callback(_cancelled, looking)
        service = await stack.enter_async_context(serving(config))
        server = _Server(
            uvicorn.Config(
                create_app(service),
                http=Front,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=DRAIN_S,
            )
        )

        calls = _Grpc(service, config)
        await calls.start()

        def stop() -> None:
            service.ready = False
            server.force_exit = server.should_exit  # told twice: answer nobody any more
            server.should_exit = True
            calls.stop(0 if server.force_exit else DRAIN_S)

        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        log.info("requests are computed by %s kernels", path_in_use())
        log.info("serving on http://%s:%d%s", *listeners[0].getsockname()[:2], _where(config.core))
        _spare_collector()
        await server.serve(sockets=[each for listener in listeners for each in repeated(listener)])
        await calls.stopped()


def _where(core: int | None) -> str:
    return "" if core is None else f", on core {core}"


async def _look_again(look: Callable[[], None]) -> None:
    """Until cancelled; a fault of one look is logged."""
    while True:
        try:
            look()
        except LocalError as error:
            log.error("%s", error)
        await asyncio.sleep(LOOK_EVERY_S)


def repeated(listener: socket.socket, times: int = ACCEPTS) -> list[socket.socket]:
    """The same socket under more file numbers; it ends when all of them are closed."""
    with listener:
        return [listener.dup() for _ in range(times)]


def _spare_collector() -> None:
    """What is loaded by now is no garbage: to look through all of it takes a tenth of a second, in
    which nobody is answered. Requests leave hardly anything that lets go of itself too late."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


class _Grpc:
    """The gRPC side of a process, if it has one."""

    def __init__(self, service: Service, config: ServeConfig) -> None:
        self._host = config.host
        self._server: GrpcServer | None = None
        if config.grpc_port is not None:
            self._server = GrpcServer(
                service, config.host, config.grpc_port, share_port=config.share_ports
            )
            server = self._server
            service.observer.metrics.readings.grpc(lambda: server.narrow)
        self._stops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        if self._server is not None:
            await self._server.start()
            log.info("serving on grpc://%s:%d", self._host, self._server.port)

    def stop(self, grace_s: float) -> None:
        """Begin to stop; a second call may shorten the grace."""
        if self._server is not None:
            self._stops.append(asyncio.create_task(self._server.stop(grace_s)))

    async def stopped(self) -> None:
        if self._server is not None and not self._stops:
            self.stop(DRAIN_S)
        await asyncio.gather(*self._stops)


class _Server(uvicorn.Server):
    """uvicorn without its signal handling, which ends the process before the spool is closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the handlers alone."""
        yield


@contextlib.asynccontextmanager
async def serving(config: ServeConfig) -> AsyncIterator[Service]:
    """A service that works inside the block; the rank log is on disk behind it. Raises as
    `run_server` does."""
    async with contextlib.AsyncExitStack() as stack:
        store = AsyncRedisRowStore(config.store)
        stack.push_async_callback(store.close)
        generations = Generations(await _first_plan(store, config.plan_wait_s), config.service)
        spool: SpoolWriter[LogEntry] | None = None
        if config.spool is not None:
            spool = SpoolWriter(config.spool, encode_entry)
            stack.push_async_callback(asyncio.to_thread, spool.close)
        rank_config = RankConfig(config.cascade, config.limits.in_flight)
        timeout_s = config.store.timeout_ms / 1000
        reader = StoreReader(store, BreakerConfig(timeout_s=timeout_s), store.reconnect)
        stack.push_async_callback(reader.close)
        items = None
        if config.item_cache is not None:
            items = ItemCache(config.item_cache, config.item_cache_max_age_ms)
            stack.callback(items.close)
        freshness = None
        if config.freshness is not None:
            freshness = Freshness(store, generations, config.freshness)
            looking = asyncio.create_task(freshness.run(), name="freshness")
            stack.push_async_callback(_cancelled, looking)
        ranker = Ranker(reader, generations, spool, rank_config, items, freshness)
        stack.callback(ranker.close)
        watching = WatchConfig(config.packages, config.poll_s)
        watcher = Watcher(generations, store, watching, items)
        await watcher.look(polite=False)  # models that are there before the first request serve it
        task = asyncio.create_task(watcher.run(), name="watcher")
        stack.push_async_callback(_cancelled, task)
        metrics = Metrics()
        metrics.readings.ranker(ranker)
        metrics.readings.watcher(watcher)
        if items is not None:
            metrics.readings.items(items)
        if freshness is not None:
            metrics.readings.freshness(freshness)
        observer = open_observer(metrics, config.watch, config.version)
        stack.push_async_callback(asyncio.to_thread, observer.close)
        store.told = ranker.admission.took_to_read
        lag = ranker.admission.lag = LoopLag()

        def looked(late_s: float) -> None:
            metrics.observe_loop(late_s)
            ranker.admission.used_by_loop(time.thread_time())

        looping = asyncio.create_task(lag.run(looked), name="loop lag")
        stack.push_async_callback(_cancelled, looping)
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


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _listen(config: ServeConfig, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if config.share_ports:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((config.host, port))
    except OSError as error:
        listener.close()
        raise LocalError(
            f"http {config.host}:{port}",
            required="an address nobody listens on",
            got=error.strerror or type(error).__name__,
            do="choose another http_port or metrics_port, or stop the server that has it",
        ) from None
    return listener
