"""A connection on which an event loop reads rows: replies go straight from the socket into place.

redis-py opens it: address, TLS, password, database and the check of the history are its own and the
store's. Then its stream reader, which copies each reply twice and stops the socket every 128 kB,
gives way to a protocol that hands the socket the reply's own buffer.
"""

from __future__ import annotations

import asyncio
from typing import Any, Self, cast

from redis.exceptions import ConnectionError as LostConnection

from store.reply import RowsReply


class RowLine(asyncio.BufferedProtocol):
    """One connection, one question at a time. After anything but an answer it must be closed."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection  # redis-py's; it owns the transport
        self._transport = cast(asyncio.Transport, connection._writer.transport)
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
