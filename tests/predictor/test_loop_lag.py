"""How late a loop is: by a probe that came late, and by one that has not come yet."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

import uvloop

from predictor.loop_lag import LoopLag
from predictor.server import repeated


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def watched(during: Callable[[LoopLag, Clock, list[float]], object]) -> LoopLag:
    """Run the probe by a clock of its own; `during` is called after its first look."""

    async def go() -> LoopLag:
        clock, told = Clock(), list[float]()
        lag = LoopLag(clock, every_s=0.001)
        assert lag() == 0
        probe = asyncio.create_task(lag.run(told.append))
        while not told:
            clock.now_s += 0.001
            await asyncio.sleep(0.001)
        during(lag, clock, told)
        probe.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await probe
        return lag

    return asyncio.run(go())


def test_a_probe_that_is_overdue_tells_how_long_the_loop_has_been_busy() -> None:
    def busy(lag: LoopLag, clock: Clock, told: list[float]) -> None:
        before = len(told)
        clock.now_s += 0.5
        assert 0.4 < lag() <= 0.5
        clock.now_s += 0.25
        assert 0.7 < lag() <= 0.75
        assert len(told) == before

    watched(busy)


def test_nobody_is_late_who_is_not_looked_at() -> None:
    assert watched(lambda *_: None)() == 0


def test_the_last_look_counts_until_the_next() -> None:
    async def go() -> tuple[float, list[float]]:
        lag, told = LoopLag(every_s=0.001), list[float]()
        probe = asyncio.create_task(lag.run(told.append))
        while not told:
            await asyncio.sleep(0.001)
        time.sleep(0.2)  # what nobody should do here
        looks = len(told)
        while len(told) == looks:
            await asyncio.sleep(0)
        found = lag()
        probe.cancel()
        return found, told

    found, told = asyncio.run(go())
    assert found >= told[-1] >= 0.15


def test_a_listener_under_several_numbers_takes_as_many_connections_a_turn() -> None:
    """A turn of libuv's loop takes one connection for each of them."""
    count, times = 160, 16

    async def go() -> int:
        loop, turns = asyncio.get_running_loop(), 0
        taken: list[asyncio.BaseTransport] = []

        class Taken(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                taken.append(transport)

        listener = socket.create_server(("127.0.0.1", 0), backlog=count)
        address = listener.getsockname()
        with contextlib.ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(socket.create_connection(address))
            servers = [
                await loop.create_server(Taken, sock=each, backlog=count)
                for each in repeated(listener, times)
            ]
            assert listener.fileno() == -1
            while len(taken) < count:
                turns += 1
                await asyncio.sleep(0)
            for transport in taken:
                transport.close()
            for server in servers:
                server.close()
                await server.wait_closed()
        return turns

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        turns = runner.run(go())
    assert turns < count / 2
