"""Unary gRPC calls for `bench.open_loop`: just enough of HTTP/2 to be light.

A gRPC library of Python takes about as long to make a call as the server takes to answer it, on
cores that both share. A call here is two frames that were encoded beforehand: HEADERS with literal
fields alone, so that they depend on no state of the connection, and DATA. Of what comes back the
messages are kept as bytes and `grpc-status` is looked for in the trailers, whose fields no server
can compress by reference since it is told of a header table of no size.

Sources: RFC 9113 (HTTP/2), RFC 7541 (HPACK), gRPC over HTTP/2.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from bench.open_loop import F64, Answer, Measured, drive

_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER_TABLE_SIZE, _INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 1, 4, 5
_LARGEST: Final = (1 << 31) - 1
_FIRST_WINDOW: Final = 65_535
_MESSAGE_PREFIX: Final = 5  # compressed or not, and the length
_STATUS: Final = re.compile(rb"grpc-status.(\d+)", re.S)
#: gRPC's status → HTTP's, so that both protocols are judged alike.
#: 1: the server reset a call that waited behind too many others, before it began.
_HTTP_STATUS: Final = {0: 200, 1: 503, 3: 400, 4: 504, 5: 404, 8: 503, 14: 503}


@dataclass(frozen=True, slots=True)
class Call:
    """One call's header block and its DATA payload."""

    head: bytes
    body: bytes


def call(method: str, message: bytes, authority: str, timeout_ms: float) -> Call:
    """A call of `package.Service/Method` with a serialised message and a deadline."""
    fields = (
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        (b"grpc-timeout", b"%dm" % timeout_ms),
    )
    head = b"\x83\x86"  # :method POST, :scheme http of HPACK's static table
    head += b"\x04" + _text(f"/{method}".encode()) + b"\x01" + _text(authority.encode())
    head += b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)
    return Call(head, struct.pack(">BI", 0, len(message)) + message)


async def over_grpc(
    address: tuple[str, int], calls: Sequence[Call], times_s: F64, connections: int = 4
) -> Measured:
    """Drive a server with calls (taken in turn) at these times; streams share the connections."""
    async with GrpcPool(*address, connections) as pool:
        return await drive(lambda index: pool.ask(calls[index % len(calls)]), times_s)


class GrpcPool:
    """Connections that take calls in turn. Use as an async context manager."""

    def __init__(self, host: str, port: int, connections: int = 4) -> None:
        self._host, self._port, self._count = host, port, connections
        self._connections: list[_Connection] = []
        self._next = 0

    async def ask(self, call: Call) -> Answer:
        """Make a call. Raises EOFError where its connection breaks."""
        self._next += 1
        return await self._connections[self._next % self._count].ask(call)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for _ in range(self._count):
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
            self._connections.append(connection)
        return self

    async def __aexit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        await asyncio.sleep(0)


@dataclass(slots=True)
class _Stream:
    reply: asyncio.Future[Answer]
    parts: list[bytes] = field(default_factory=list)
    trailers: bytes = b""


class _Connection(asyncio.Protocol):
    """One connection with many streams."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, _Stream] = {}
        self._last_stream = -1
        self._buffer = bytearray()
        self._window = _FIRST_WINDOW  # bytes of DATA that the server takes
        self._waiting: deque[tuple[int, Call]] = deque()
        self._received = 0

    async def ask(self, call: Call) -> Answer:
        if self._transport is None:
            raise EOFError("the server closed the connection")
        self._last_stream += 2
        number = self._last_stream
        self._streams[number] = _Stream(asyncio.get_running_loop().create_future())
        self._waiting.append((number, call))
        self._send_waiting()
        try:
            return await self._streams[number].reply
        finally:
            self._streams.pop(number, None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # --- what asyncio calls -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        settings = struct.pack(
            ">HIHIHI",
            *(_HEADER_TABLE_SIZE, 0, _INITIAL_WINDOW_SIZE, _LARGEST, _MAX_FRAME_SIZE, 1 << 20),
        )
        opened = struct.pack(">I", _LARGEST - _FIRST_WINDOW)
        transport.write(
            _PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW_UPDATE, 0, 0, opened)
        )

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= 9:
            high, low, kind, flags, number = struct.unpack_from(">BHBBI", buffer, at)
            end = at + 9 + (high << 16 | low)
            if end > len(buffer):
                break
            self._take(kind, flags, number & _LARGEST, bytes(buffer[at + 9 : end]))
            at = end
        del buffer[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for stream in self._streams.values():
            if not stream.reply.done():
                stream.reply.set_exception(EOFError("the server closed the connection"))

    # --- frames -----------------------------------------------------------------------------

    def _take(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind in (_DATA, _HEADERS, _RST_STREAM):
            self._take_part(kind, flags, number, payload)
        elif kind == _WINDOW_UPDATE and number == 0:
            self._window += struct.unpack(">I", payload)[0] & _LARGEST
            self._send_waiting()
        elif kind == _SETTINGS and not flags & _ACK:
            self._write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload))
        elif kind == _GOAWAY:
            self.close()

    def _take_part(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Part of a reply. DATA counts against the connection's window even of a stream that was
        given up."""
        if kind == _DATA:
            self._received += len(payload)
            if self._received > 1 << 29:
                self._write(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", self._received)))
                self._received = 0
        stream = self._streams.get(number)
        if stream is None or stream.reply.done():
            return
        if kind == _DATA:
            stream.parts.append(payload)
        elif kind == _HEADERS:
            stream.trailers = payload
        if kind == _RST_STREAM or flags & _END_STREAM:
            found = _STATUS.search(stream.trailers)
            status = _HTTP_STATUS.get(int(found[1]), 500) if found else 500
            stream.reply.set_result(Answer(status, b"".join(stream.parts)[_MESSAGE_PREFIX:]))

    def _send_waiting(self) -> None:
        """What the connection's window lets through, in order."""
        while self._waiting and len(self._waiting[0][1].body) <= self._window:
            number, call = self._waiting.popleft()
            self._window -= len(call.body)
            self._write(
                _frame(_HEADERS, _END_HEADERS, number, call.head)
                + _frame(_DATA, _END_STREAM, number, call.body)
            )

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return struct.pack(">BHBBI", size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def _text(value: bytes) -> bytes:
    """HPACK's string literal, not Huffman coded, shorter than 127 bytes."""
    assert len(value) < 127
    return bytes((len(value),)) + value
