"""A store behind TLS and a password: `rediss://user:password@host:port/0?ssl_ca_certs=FILE`."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import StoreError
from schemas.row import seal
from schemas.stored import RowKeys
from store.base import Write
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from store.tracking import TrackedStore
from store.wire import StoreConfig
from tests.store.servers import OwnServer, own_server

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")

ROWS = 3_000
#: So many and so long that a reply is of many TLS records, some of which wait in the TLS layer
#: when the socket is empty.
IDS = np.arange(ROWS, dtype=np.int64)
FRONT_BYTES = 1_000
TIMEOUT_MS = 60_000


def key(number: int) -> str:
    return f"rows@1:{{{number}}}"


def row(number: int) -> bytes:
    return seal(number.to_bytes(8, "little") * (FRONT_BYTES // 8), 0, (1, number), newest_ms=0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(certificate, key) of 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    made = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-out", str(made[0]), "-keyout", str(made[1])]
    subprocess.run(command, check=True, capture_output=True)
    return made


@contextmanager
def tls_front(target: str, certificate: tuple[Path, Path]) -> Iterator[int]:
    """The port of a TLS server that hands everything on to `target`, host:port."""
    host, _, port = target.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(1 << 16):
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass  # one side is gone: so is the other
        finally:
            writer.close()

    async def link(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(link, "127.0.0.1", 0, ssl=context))

    async def end() -> None:
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asyncio.run_coroutine_threadsafe(end(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnServer]:
    """A store with a user who has a password."""
    with own_server(tmp_path_factory.mktemp("store")) as own:
        own.run("ACL", "SETUSER", "encore", "on", ">secret", "~*", "&*", "+@all")
        yield own


@pytest.fixture(scope="module")
def address(server: OwnServer, certificate: tuple[Path, Path]) -> Iterator[str]:
    with tls_front(server.server.address, certificate) as port:
        yield f"127.0.0.1:{port}/0?ssl_ca_certs={certificate[0]}"


def of(place: str) -> StoreConfig:
    return StoreConfig(f"rediss://{place}", TIMEOUT_MS, connect_timeout_ms=TIMEOUT_MS)


@pytest.fixture
def config(address: str) -> StoreConfig:
    return of(f"encore:secret@{address}")


def test_rows_are_written_and_read(config: StoreConfig) -> None:
    """By threads, by an event loop, and by the connection that is told of changes."""
    rows = [row(number) for number in range(ROWS)]
    with RedisRowStore(config) as store:
        writes = [Write(key(number), None, rows[number]) for number in range(ROWS)]
        assert all(store.compare_and_set(writes))
        for _ in range(3):
            assert list(store.read_rows([RowKeys("rows", 1, IDS)])) == rows

    async def read() -> list[bytes | None]:
        inner = AsyncRedisRowStore(config)
        try:
            for _ in range(3):
                found = list(await inner.read_rows([RowKeys("rows", 1, IDS)]))
            return found
        finally:
            await inner.close()

    assert asyncio.run(read()) == rows
    with TrackedStore(config) as tracked, RedisRowStore(config) as store:
        tracked.connect()
        tracked.track(["rows@1:{"])
        assert list(tracked.read_rows([RowKeys("rows", 1, IDS)])) == rows
        store.compare_and_set([Write(key(ROWS), None, row(ROWS))])
        assert tracked.changes(TIMEOUT_MS / 1000).keys == {key(ROWS).encode()}


def test_a_certificate_nobody_vouches_for_is_refused(address: str) -> None:
    with (
        RedisRowStore(of(f"encore:secret@{address.partition('?')[0]}")) as store,
        pytest.raises(StoreError, match="certificate verify failed"),
    ):
        store.read([key(1)])


def test_a_wrong_password_is_refused(address: str) -> None:
    with (
        RedisRowStore(of(f"encore:wrong@{address}")) as store,
        pytest.raises(StoreError, match="check user and password in the store's URL"),
    ):
        store.read([key(1)])
