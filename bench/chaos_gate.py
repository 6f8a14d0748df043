"""A gate between all clients and the broker: connections through it are cut as a crash cuts them.

The embedded broker keeps its log in memory, so it cannot be killed and come back with it. What its
clients see of a broker that does can be had all the same: every connection ends at one moment, some
in the middle of a reply, nobody is let in for a while, and then the same topics are there with the
same ids, offsets and data. The broker advertises the gate's address, so no client goes around it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar

from encore.local import HOST, free_port

READ_BYTES: Final = 65_536
#: So long replies that are on their way may still be cut in their middle.
CUT_S: Final = 0.02
ANSWER_S: Final = 60.0

T = TypeVar("T")


@dataclass(slots=True)
class GateCounts:
    """cuts: how often all were cut. connections: that were. halved: replies that came in part."""

    cuts: int = 0
    connections: int = 0
    halved: int = 0


@dataclass(eq=False)
class Gate:
    """Forwards to a port of this machine, and can be shut. `with Gate() as gate: …`.

    port: where it listens. target: the broker's port, set once it is known.
    """

    target: int = 0
    port: int = field(default_factory=free_port)
    counts: GateCounts = field(default_factory=GateCounts)
    _cutting: bool = False
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"{HOST}:{self.port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            self._thread.join()
        self._loop.close()

    def open(self) -> None:
        """Let clients in."""
        self._do(self._open())

    def cut(self) -> None:
        """End every connection and let nobody in."""
        self._do(self._cut())

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(ANSWER_S)

    async def _open(self) -> None:
        self._cutting = False
        self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
        self._server, self._cutting = None, True
        await asyncio.sleep(CUT_S)
        self.counts.cuts += 1
        self.counts.connections += len(self._writers) // 2
        for writer in self._writers:
            writer.transport.abort()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        if serving:
            await asyncio.wait(serving, timeout=ANSWER_S / 2)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until either side ends."""
        try:
            from_broker, to_broker = await asyncio.open_connection(HOST, self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, to_broker}
        self._writers |= pair
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, to_broker, False))
                both.create_task(self._pump(from_broker, writer, True))
        except* OSError:
            pass
        finally:
            self._writers -= pair
            for each in pair:
                each.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replies: bool
    ) -> None:
        """One direction. Raises ConnectionError when the sender ends."""
        while data := await reader.read(READ_BYTES):
            if replies and self._cutting and len(data) > 1:
                self.counts.halved += 1
                writer.write(data[: len(data) // 2])
                await writer.drain()
                break
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError
