"""Servers for tests: one of your own to stop, fill and kill; a slow wire; one talking nonsense."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis

from encore.local import Server, start_store

STUCK_S = 60.0  # nobody waits that long, not on a machine that stalls either


@dataclass
class OwnServer:
    """A Valkey that only one test uses. `run(...)` sends it any command."""

    server: Server
    directory: Path

    @property
    def url(self) -> str:
        return f"redis://{self.server.address}/0"

    def run(self, *command: str | bytes | int) -> object:
        with redis.Redis.from_url(self.url) as client:
            return client.execute_command(*command)

    def pause(self) -> None:
        self.server.child.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self.server.child.signal(signal.SIGCONT)

    def kill(self) -> None:
        self.server.child.kill()

    def restart(self) -> None:
        self.server = start_store(self.directory, port=self.server.port)


@contextmanager
def own_server(directory: Path) -> Iterator[OwnServer]:
    own = OwnServer(start_store(directory), directory)
    try:
        yield own
    finally:
        own.kill()


@asynccontextmanager
async def slow_wire(target: str, longest_s: float, seed: int = 0) -> AsyncIterator[str]:
    """URL of a proxy that holds each piece of a reply back for up to `longest_s`."""
    host, port = target.removeprefix("redis://").removesuffix("/0").split(":")
    draw = random.Random(seed)
    links: set[asyncio.Task[None]] = set()
    ends: set[asyncio.StreamWriter] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hold: bool) -> None:
        while piece := await reader.read(2_048 if hold else 65_536):
            if hold:
                await asyncio.sleep(draw.random() * longest_s)
            writer.write(piece)
            await writer.drain()

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        ends.add(up_writer)
        up = asyncio.create_task(pump(reader, up_writer, False))
        down = asyncio.create_task(pump(up_reader, writer, True))
        try:
            await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (up, down):
                task.cancel()
            await asyncio.gather(up, down, return_exceptions=True)
            for end in (writer, up_writer):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.add(writer)
        links.add(asyncio.create_task(link(reader, writer)))

    proxy = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{proxy.sockets[0].getsockname()[1]}/0"
    finally:
        proxy.close()
        await asyncio.sleep(0.01)
        for task in links:
            task.cancel()
        await asyncio.gather(*links, return_exceptions=True)
        for end in ends:  # a link that was cancelled before it began, or at its end, closed none
            end.transport.abort()
        await asyncio.sleep(0)


@dataclass
class More:
    """What a server says once more on each connection: after the client has read the first, which
    it tells by `wanted`. hung_up: released once that is said and the connection closed."""

    said: bytes
    wanted: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    hung_up: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


@contextmanager
def speaking(reply: bytes, more: More | None = None) -> Iterator[str]:
    """URL of a server that answers every connection's first bytes with `reply`, then hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection, suppress(OSError):
                        connection.recv(65_536)
                        connection.sendall(reply)
                        if more is not None:
                            more.wanted.acquire(timeout=STUCK_S)
                            connection.sendall(more.said)
                    if more is not None:
                        more.hung_up.release()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
