"""The load generator: when requests leave, and from when latency counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from bench.open_loop import (
    NO_REPLY,
    Answer,
    Measured,
    arrivals,
    drive,
    http_request,
    over_http,
    precise_loop,
)

STALL_S = 0.3
Serve = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stalls costs no reply."""
    monkeypatch.setattr("bench.open_loop.GRACE_S", 120.0)


def run(serve: Serve, requests: list[bytes], times_s: np.ndarray, connections: int) -> Measured:
    async def both() -> Measured:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while head := await reader.readuntil(b"\r\n\r\n"):
                    size = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                    await serve(await reader.readexactly(size), writer)
            except asyncio.IncompleteReadError:
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        async with server:
            return await over_http(
                server.sockets[0].getsockname()[:2], requests, times_s, connections
            )

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(both())


def reply(status: int, body: bytes) -> bytes:
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


def test_arrivals_are_poisson_and_repeatable() -> None:
    times = arrivals(1_000, 20, seed=3)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] < 20
    assert 19_000 < len(times) < 21_000
    gaps = np.diff(times)
    assert 0.9 < gaps.std() / gaps.mean() < 1.1  # exponential: both are equal
    np.testing.assert_array_equal(times, arrivals(1_000, 20, seed=3))


def test_a_stall_is_charged_to_all_that_should_have_left_meanwhile() -> None:
    stalled = False

    async def serve(body: bytes, writer: asyncio.StreamWriter) -> None:
        nonlocal stalled
        if not stalled:
            stalled = True
            await asyncio.sleep(STALL_S)
        writer.write(reply(200, body))

    times = np.linspace(0, 0.1, 11)
    requests = [http_request("/", b"%d" % index, "x") for index in range(3)]
    measured = run(serve, requests, times, connections=1)
    assert measured.status.tolist() == [200] * 11
    assert [answer.body for answer in measured.answers] == [b"%d" % (n % 3) for n in range(11)]
    assert (measured.latency_s + times >= STALL_S).all()
    assert measured.percentile_ms(100) >= STALL_S * 1000
    assert measured.percentile_ms(50, times == times[-1]) >= (STALL_S - 0.1) * 1000


def test_refusals_keep_their_status_and_broken_connections_are_no_reply() -> None:
    async def serve(body: bytes, writer: asyncio.StreamWriter) -> None:
        if body == b"refuse":
            writer.write(reply(503, b"busy"))
        elif body == b"break":
            writer.close()
        elif body == b"nonsense":
            writer.write(b"nonsense\r\n\r\n")
        else:
            writer.write(reply(200, b""))

    bodies = [b"refuse", b"break", b"nonsense", b"serve"]
    requests = [http_request("/", body, "x", x_header="1") for body in bodies]
    measured = run(serve, requests, np.arange(8) * 0.01, connections=8)
    assert measured.status.tolist() == [503, NO_REPLY, NO_REPLY, 200] * 2
    assert measured.answers[0].body == b"busy"
    assert np.isinf(measured.latency_s).tolist() == [False, True, True, False] * 2


def test_what_never_answers_is_given_up() -> None:
    async def ask(index: int) -> Answer:
        if index == 0:
            await asyncio.sleep(3600)
        return Answer(200, b"")

    measured = asyncio.run(drive(ask, np.zeros(3), grace_s=0.05))
    assert measured.status.tolist() == [NO_REPLY, 200, 200]
    assert (measured.late_s >= 0).all()
