"""Open-loop load: requests leave at Poisson times, whatever has become of those before them.

Latency counts from the time at which a request was meant to leave, so a generator, a connection or
a server that is late makes the figures worse and never hides itself (coordinated omission). The
generator is light, since it shares its cores with the server: requests are encoded beforehand,
replies are kept as bytes and judged after the run.

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        measured = runner.run(over_http(target, requests, arrivals(rate_per_s, seconds, seed)))

Symbols: n requests.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import httptools
import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

NO_REPLY: Final = 0  # the status of a request whose connection broke, or that got no reply in time
GRACE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Answer:
    """status: the HTTP status, or the protocol's own number. body: not looked at during a run."""

    status: int
    body: bytes


#: Sends request i and returns its answer; raises OSError or EOFError where the connection broke.
Ask = Callable[[int], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What became of n requests, in the order in which they were meant to leave.

    intended_s: (n,) since the start. late_s: (n,) by how much the generator sent later than that.
    latency_s: (n,) from the intended time to the reply's last byte, infinite where none came.
    answers: NO_REPLY where none came. began_s: the start, by time.perf_counter.
    """

    intended_s: F64
    late_s: F64
    latency_s: F64
    answers: Sequence[Answer]
    began_s: float = 0.0

    @property
    def status(self) -> NDArray[np.int64]:
        """The statuses, (n,)."""
        return np.array([each.status for each in self.answers], np.int64)

    def percentile_ms(self, percent: float, of: NDArray[np.bool_] | None = None) -> float:
        """A percentile of the latency in ms, of all requests or of the chosen ones, (n,) bool."""
        chosen = self.latency_s if of is None else self.latency_s[of]
        return float(np.percentile(chosen, percent, method="higher")) * 1000


def arrivals(rate_per_s: float, seconds: float, seed: int) -> F64:
    """Times of a Poisson process in [0, seconds), ascending."""
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate_per_s * seconds)
    return np.sort(rng.random(count)) * seconds


def precise_loop() -> asyncio.AbstractEventLoop:
    """A loop that wakes within microseconds of a timer, where epoll and libuv take whole ms.

    It cannot watch file numbers of 1,024 and more: keep to 512 connections.
    """
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


async def drive(ask: Ask, times_s: F64, grace_s: float | None = None) -> Measured:
    """Send request i at times_s[i] after the start, (n,) ascending, and wait for all replies.

    A reply that has not come `grace_s` (None: GRACE_S) after the last request was sent is given up.
    """
    n, clock = len(times_s), time.perf_counter
    late_s, latency_s = np.zeros(n), np.full(n, np.inf)
    answers = [Answer(NO_REPLY, b"")] * n
    start = clock() + 0.01

    async def one(index: int, intended: float) -> None:
        try:
            answers[index] = await ask(index)
        except (OSError, EOFError):
            return
        latency_s[index] = clock() - intended

    tasks = set()
    for index, offset in enumerate(times_s.tolist()):
        intended = start + offset
        if (ahead := intended - clock()) > 0:
            await asyncio.sleep(ahead)
        elif index % 32 == 0:
            await asyncio.sleep(0)  # behind: replies must be read all the same
        late_s[index] = clock() - intended
        task = asyncio.create_task(one(index, intended))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        _, missing = await asyncio.wait(tasks, timeout=GRACE_S if grace_s is None else grace_s)
        for task in missing:
            task.cancel()
        await asyncio.gather(*missing, return_exceptions=True)
    return Measured(times_s, late_s, latency_s, answers, start)


# --- HTTP/1.1 -------------------------------------------------------------------------------


def http_request(
    path: str, body: bytes, host: str, content_type: str = "application/json", **headers: str
) -> bytes:
    """A POST as bytes; an underscore in a header's name stands for a hyphen."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: {content_type}\r\n"
        f"content-length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode() + body


class HttpPool:
    """Keep-alive connections with one request each at a time; opens more as load needs them.

    Use as an async context manager. connections: most at once; beyond, requests wait here, and
    their latency says so.
    """

    def __init__(self, host: str, port: int, connections: int = 512) -> None:
        self._host, self._port = host, port
        self._free: list[_Connection] = []
        self._room = asyncio.Semaphore(connections)

    async def ask(self, request: bytes) -> Answer:
        """Send the bytes of one request. Raises OSError, EOFError where the connection breaks."""
        async with self._room:
            connection = await self._take()
            answer = await connection.ask(request)  # broken, cancelled: it is not put back
            if connection.open:
                self._free.append(connection)
            return answer

    async def open(self, count: int) -> None:
        """Open so many connections beforehand."""
        self._free += [await self._connect() for _ in range(count)]

    async def _take(self) -> _Connection:
        while self._free:
            if (connection := self._free.pop()).open:
                return connection
        return await self._connect()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._free:
            connection.close()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One connection; httptools calls the methods `on_…`."""

    def __init__(self) -> None:
        self.open = False
        self._transport: asyncio.Transport | None = None
        self._parser: Any = None
        self._reply: asyncio.Future[Answer] | None = None
        self._parts: list[bytes] = []

    async def ask(self, request: bytes) -> Answer:
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self._parts = []
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._reply
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, AttributeError) as error:
            self.close()
            self._fail(EOFError(f"not HTTP: {error}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._fail(EOFError("the server closed the connection"))

    def on_body(self, part: bytes) -> None:
        self._parts.append(part)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.close()
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(Answer(self._parser.get_status_code(), b"".join(self._parts)))

    def _fail(self, error: EOFError) -> None:
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)


async def over_http(
    address: tuple[str, int], requests: Sequence[bytes], times_s: F64, connections: int = 512
) -> Measured:
    """Drive a server with requests (taken in turn) at these times over keep-alive connections."""
    async with HttpPool(*address, connections) as pool:
        await pool.open(min(8, connections))
        return await drive(lambda index: pool.ask(requests[index % len(requests)]), times_s)
