"""The light gRPC client against gRPC's own server: replies, statuses, windows, lost connections."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from bench.open_loop import NO_REPLY, Measured
from bench.open_loop_grpc import GrpcPool, call, over_grpc

METHOD = "test.Service/Say"
Handle = Callable[[bytes, Any], Awaitable[bytes]]
Drive = Callable[[tuple[str, int]], Awaitable[Any]]


@pytest.fixture(autouse=True)
def grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stalls costs no reply."""
    monkeypatch.setattr("bench.open_loop.GRACE_S", 120.0)


def serve(handle: Handle, drive: Drive) -> Any:
    """What `drive` finds on a server that answers by `handle`."""

    async def both() -> Any:
        server = grpc.aio.server()
        method = grpc.unary_unary_rpc_method_handler(handle)
        handlers = grpc.method_handlers_generic_handler("test.Service", {"Say": method})
        server.add_generic_rpc_handlers((handlers,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            return await drive(("127.0.0.1", port))
        finally:
            await server.stop(0)

    return asyncio.run(both())


async def double(message: bytes, _: Any) -> bytes:
    return message * 2


def run(handle: Handle, messages: list[bytes], count: int, timeout_ms: float = 60_000) -> Measured:
    calls = [call(METHOD, message, "localhost", timeout_ms) for message in messages]
    times = np.linspace(0, 0.05, count)
    measured = serve(handle, lambda address: over_grpc(address, calls, times))
    assert isinstance(measured, Measured)
    return measured


def test_each_call_gets_its_own_reply() -> None:
    messages = [b"%d;" % number for number in range(100)]
    measured = run(double, messages, 300)
    assert set(measured.status) == {200}
    bodies = [answer.body for answer in measured.answers]
    assert bodies == [messages[at % 100] * 2 for at in range(300)]
    assert np.isfinite(measured.latency_s).all()


def test_messages_larger_than_every_window_pass() -> None:
    """A request of 60 kB fills the connection's first window, a reply of 3 MB takes many frames."""
    measured = run(double, [bytes(60_000)], 50)
    assert {len(answer.body) for answer in measured.answers} == {120_000}

    async def large(_: bytes, __: Any) -> bytes:
        return bytes(3_000_000)

    assert {len(answer.body) for answer in run(large, [b"?"], 5).answers} == {3_000_000}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 503),
        (grpc.StatusCode.INVALID_ARGUMENT, 400),
        (grpc.StatusCode.INTERNAL, 500),
    ],
)
def test_a_refusal_is_told_by_its_status(code: grpc.StatusCode, status: int) -> None:
    async def refuse(_: bytes, context: Any) -> bytes:
        await context.abort(code, "no: ünable" * 30, (("grpc-status-details-bin", bytes(500)),))
        raise AssertionError

    measured = run(refuse, [b"?"], 20)
    assert [(answer.status, answer.body) for answer in measured.answers] == [(status, b"")] * 20


def test_the_deadline_reaches_the_server() -> None:
    seen: list[float] = []

    async def look(_: bytes, context: Any) -> bytes:
        seen.append(context.time_remaining())
        return b""

    run(look, [b"?"], 3, timeout_ms=30_000)
    assert len(seen) == 3
    assert all(0 < left_s <= 30 for left_s in seen)


def test_a_connection_that_breaks_fails_its_calls() -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(24)
        writer.write(struct.pack(">BHBBI", 0, 8, 7, 0, 0) + bytes(8))  # GOAWAY
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        closed.set()

    closed = asyncio.Event()

    async def go() -> Measured:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()[:2]
            calls = [call(METHOD, b"?", "x", 60_000)]
            measured = await over_grpc(address, calls, np.zeros(5), connections=1)
            await closed.wait()
            return measured

    assert set(asyncio.run(go()).status) == {NO_REPLY}


def test_a_call_given_up_leaves_the_others_alone() -> None:
    async def slow_first(message: bytes, _: Any) -> bytes:
        if message == b"slow":
            await asyncio.sleep(60)
        return message

    async def go(address: tuple[str, int]) -> list[bytes]:
        async with GrpcPool(*address, 1) as pool:
            slow = asyncio.create_task(pool.ask(call(METHOD, b"slow", "x", 60_000)))
            await asyncio.sleep(0)
            slow.cancel()
            return [(await pool.ask(call(METHOD, b"%d" % n, "x", 60_000))).body for n in range(9)]

    assert serve(slow_first, go) == [b"%d" % n for n in range(9)]
