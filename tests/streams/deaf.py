"""A broker that accepts connections and leaves questions unanswered: a gate in front of a real one.

Kafka's requests and replies are frames: int32 length, then for a request int16 api key. A broker
answers those of one connection in their order, so behind an unanswered one there is silence.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.chaos_gate import READ_BYTES, Gate
from encore.local import start_broker

METADATA = 3
FIND_COORDINATOR = 10
JOIN_GROUP = 11
SYNC_GROUP = 14
EVERYTHING = frozenset(range(256))


@dataclass(eq=False)
class DeafGate(Gate):
    """Forwards all requests up to the first of a `deaf` kind, connection by connection.

    deaf: api keys; may be changed while clients are connected. asked: how many came of each kind.
    """

    deaf: frozenset[int] = frozenset()
    asked: dict[int, int] = field(default_factory=dict)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replies: bool
    ) -> None:
        if replies:
            return await self._replies(reader, writer)
        silent = False
        while True:
            try:
                size = await reader.readexactly(4)
                frame = await reader.readexactly(struct.unpack(">i", size)[0])
            except asyncio.IncompleteReadError:
                raise ConnectionResetError from None
            (kind,) = struct.unpack_from(">h", frame)
            self.asked[kind] = self.asked.get(kind, 0) + 1
            silent = silent or kind in self.deaf
            if not silent:
                writer.write(size + frame)
                await writer.drain()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """What was on its way when all went silent does not arrive either."""
        while data := await reader.read(READ_BYTES):
            if self.deaf != EVERYTHING:
                writer.write(data)
                await writer.drain()
        raise ConnectionResetError


@contextmanager
def deaf_broker(directory: Path) -> Iterator[DeafGate]:
    """A broker of its own behind such a gate, which answers everything at first."""
    directory.mkdir(parents=True, exist_ok=True)
    with DeafGate() as gate:
        server = start_broker(directory, advertised=gate.address)
        gate.target = server.port
        try:
            yield gate
        finally:
            server.child.kill()
