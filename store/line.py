"""Connections on which rows are read: replies go straight from the socket into place.

redis-py opens them: address, TLS, password, database and the check of the history are its own and
the store's. In an event loop its stream reader, which copies each reply twice and stops the socket
every 128 kB, then gives way to a protocol that hands the socket the reply's own buffer. For threads
its pool gives way to a list: what it does at every call takes as long as the server does.
"""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Self, cast

from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import RedisError

from store.reply import RowsReply
from store.tcp import since_received_s, tcp_socket


class RowLine(asyncio.BufferedProtocol):
    """One connection, one question at a time. After anything but an answer it must be closed.

    took_s: from the last question until its answer was there: not until the event loop saw it.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection  # redis-py's; it owns the transport
        self._transport = cast(asyncio.Transport, connection._writer.transport)
        self._socket = tcp_socket(self._transport)
        self._asked_s = self.took_s = 0.0
        self._reply: RowsReply | None = None
        self._answered: asyncio.Future[None] | None = None
        self.open = True

    @classmethod
    async def opened(cls, connection: Any) -> Self:
        """connection: one of redis-py's that nobody else uses. Raises its errors."""
        try:
            await connection.connect()
            line = cls(connection)
            line._transport.set_protocol(line)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return line

    async def ask(self, question: bytes, reply: RowsReply) -> None:
        """Returns when the reply is complete. Raises redis-py's ConnectionError where it is lost,
        and what `RowsReply.add` does."""
        if not self.open:
            raise LostConnection("closed by the server")
        self._reply = reply
        self._answered = asyncio.get_running_loop().create_future()
        try:
            self._asked_s = time.monotonic()
            self._transport.write(question)
            await self._answered
        finally:
            self._reply = self._answered = None

    def close(self) -> None:
        """At once, with whatever is still under way."""
        self.open = False
        self._transport.abort()
        self._connection._close()

    # --- what the transport calls -------------------------------------------------------------

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go. What nobody asked for is looked at by `buffer_updated`."""
        return memoryview(bytearray(1)) if self._reply is None else self._reply.room()

    def buffer_updated(self, nbytes: int) -> None:
        """Some have come."""
        if self._reply is None or self._answered is None or self._answered.done():
            self.close()  # an answer to no question: nothing here can be told apart any more
            return
        try:
            self._reply.add(nbytes)
        except Exception as error:
            self._answered.set_exception(error)
            return
        if self._reply.complete:
            seen_s = time.monotonic() - since_received_s(self._socket)
            self.took_s = max(seen_s - self._asked_s, 0.0)
            self._answered.set_result(None)

    def eof_received(self) -> None:
        """The server hung up; the transport closes itself."""
        self.open = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more comes."""
        self.close()
        if self._answered is not None and not self._answered.done():
            lost = exc or LostConnection("closed by the server")
            self._answered.set_exception(lost)


class BlockingLine:
    """One connection, one question at a time. After anything but an answer it must be closed.

    connection: one of redis-py's that is open and that nobody else uses.
    """

    def __init__(self, connection: Any) -> None:
        self._connection, self._socket = connection, connection._sock
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def quiet(self) -> bool:
        """Whether nothing has come since the last answer, neither bytes nor the end: an answer to
        no question would be taken for the next one's. TLS may have had something to say itself."""
        return not self._poll.poll(0) or not self._connection.can_read(0)

    def ask(self, question: bytes, reply: RowsReply) -> None:
        """Returns when the reply is complete. Raises what the socket raises, redis-py's
        ConnectionError where the server hung up, and what `RowsReply.add` does."""
        self._socket.sendall(question)
        while not reply.complete:
            count = self._socket.recv_into(reply.room())
            if count == 0:
                raise LostConnection("closed by the server")
            reply.add(count)

    def close(self) -> None:
        """At once, with whatever is still under way."""
        self._connection.disconnect()


class BlockingLines:
    """Lines that threads share, as many as ask at once. make: a connection of redis-py's, not yet
    open."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._idle: list[BlockingLine] = []
        self._hung_up = 0  # how often all of them were closed
        self._lock = threading.Lock()

    def ask(self, question: bytes, reply: RowsReply) -> None:
        """As `BlockingLine.ask`, on one that is free. Raises what opening one does, too."""
        hung_up, line = self._hung_up, self._free()
        try:
            line.ask(question, reply)
        except BaseException:
            line.close()
            raise
        with self._lock:
            kept = hung_up == self._hung_up
            if kept:
                self._idle.append(line)
        if not kept:
            line.close()

    def hang_up(self) -> None:
        """Close them all, those in use when their question is answered."""
        with self._lock:
            self._hung_up += 1
            idle, self._idle = self._idle, []
        for line in idle:
            line.close()

    def _free(self) -> BlockingLine:
        """The one that was used last, or a new one."""
        while True:
            try:
                line = self._idle.pop()
            except IndexError:
                break
            if self._is_quiet(line):
                return line
            line.close()
        connection = self._make()
        try:
            connection.connect()
            return BlockingLine(connection)
        except BaseException:
            connection.disconnect()
            raise

    @staticmethod
    def _is_quiet(line: BlockingLine) -> bool:
        try:
            return line.quiet()
        except (RedisError, OSError):
            return False
