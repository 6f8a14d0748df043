"""The serving process: one event loop, one inference thread, one spool thread.

`run_server` blocks until SIGTERM or SIGINT, then drains: it says that it is not ready, takes no new
connection, answers what is in flight, and writes the rank log to disk before it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Final

import torch
import uvicorn
import uvloop

from aggregation.native.library import path_in_use
from predictor.assembly import ServeConfig, run_beside, serving
from predictor.front import Front
from predictor.grpc_server import GrpcServer
from predictor.http import create_app
from predictor.service import Service
from schemas.errors import LocalError
from store.cores import pin
from store.ending import call_when_asked, cancel_when_asked

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
        with contextlib.suppress(asyncio.CancelledError):  # told to stop before it served
            runner.run(_run(config, listeners, look))


async def _run(
    config: ServeConfig, listeners: list[socket.socket], look: Callable[[], None] | None
) -> None:
    cancel_when_asked()
    async with contextlib.AsyncExitStack() as stack:
        if look is not None:
            run_beside(stack, _look_again(look), "look")
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

        call_when_asked(stop)
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
