"""A wire to a server that can go wrong: a TCP proxy in a thread of its own.

pass     everything goes through
slow     each piece of a reply is held for `hold_s`
swallow  nothing goes through, nothing is closed: a peer that is gone without a word. Links that
         were made before or meanwhile stay dead for good, as they do in life
tear     every link is reset in the middle of its next reply
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Literal

Mode = Literal["pass", "slow", "swallow", "tear"]

HOST: Final = "127.0.0.1"
_PIECE: Final = 1 << 16


class FaultWire:
    """Use `fault_wire`. mode may be set from any thread, and holds from the next piece on."""

    def __init__(self, target: int, hold_s: float) -> None:
        self.mode: Mode = "pass"
        self.port = 0
        self.links = 0
        self._target, self._hold_s = target, hold_s
        self._links: set[asyncio.Task[None]] = set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self.links += 1
        try:
            with suppress(OSError, asyncio.CancelledError):  # cancelled when the wire ends
                await self._link(reader, writer)
        finally:
            self._links.discard(task)
            writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._unless_swallowed()
        up_reader, up_writer = await asyncio.open_connection(HOST, self._target)
        there = asyncio.create_task(self._requests(reader, up_writer))
        back = asyncio.create_task(self._replies(up_reader, writer))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)
            up_writer.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE):
            await self._unless_swallowed()
            writer.write(piece)
            await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE):
            await self._unless_swallowed()
            if self.mode == "slow":
                await asyncio.sleep(self._hold_s)
            if self.mode == "tear":
                writer.write(piece[: len(piece) // 2])
                return
            writer.write(piece)
            await writer.drain()

    async def _unless_swallowed(self) -> None:
        if self.mode == "swallow":
            await asyncio.Event().wait()

    async def serve(self, ready: threading.Event, stop: asyncio.Event) -> None:
        """Until `stop`."""
        server = await asyncio.start_server(self._accept, HOST, 0)
        async with server:
            self.port = server.sockets[0].getsockname()[1]
            ready.set()
            await stop.wait()
            links = list(self._links)
            for task in links:
                task.cancel()
            await asyncio.gather(*links, return_exceptions=True)


@contextmanager
def fault_wire(target: int, hold_s: float) -> Iterator[FaultWire]:
    """A wire to a port of this machine; it ends with the block."""
    wire, ready = FaultWire(target, hold_s), threading.Event()
    loop, stop = asyncio.new_event_loop(), asyncio.Event()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(wire.serve(ready, stop))

    thread = threading.Thread(target=work, name="fault-wire")
    thread.start()
    try:
        ready.wait()
        yield wire
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
