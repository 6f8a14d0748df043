"""What a caller sees when the server is gone, stopped, full, foreign or told to forget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import StoreError, StoreTimeout
from schemas.row import fence_bytes, seal
from schemas.stored import RowKeys
from store.base import Write
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from store.wire import StoreConfig
from tests.store.servers import STUCK_S, More, OwnServer, own_server, speaking

TIMEOUT_MS = 150  # where it is what is tested; nothing else has so little


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnServer]:
    with own_server(tmp_path) as server:
        yield server


KEYS = RowKeys("absent", 1, np.array([1, 2]))


def config(url: str, timeout_ms: int = 30_000) -> StoreConfig:
    return StoreConfig(url, timeout_ms=timeout_ms, connect_timeout_ms=timeout_ms, connections=2)


def answer(ask: Callable[[], object]) -> object:
    """The first one that comes in time."""
    ends = time.monotonic() + STUCK_S
    while time.monotonic() < ends:
        with suppress(StoreTimeout):
            return ask()
    pytest.fail("no answer in time")


async def reads(store: AsyncRedisRowStore) -> None:
    """Until it answers all questions in time, on whatever connection."""
    ends = time.monotonic() + STUCK_S
    while time.monotonic() < ends:
        with suppress(StoreTimeout):
            await store.ping()
            assert await store.read(["a"]) == [None]
            assert list(await store.read_rows([KEYS])) == [None, None]
            return
    pytest.fail("no answer in time")


def clients(own: OwnServer) -> int:
    """How many connections the server has."""
    listed = own.run("CLIENT", "LIST")
    assert isinstance(listed, bytes)
    return len(listed.splitlines())


def row(offset: int, front: bytes = b"front") -> bytes:
    return seal(front, 0, (1, offset), newest_ms=0)


class TestStopped:
    """SIGSTOP: the kernel still accepts connections and bytes, nobody answers."""

    @pytest.mark.parametrize("connected", [True, False])
    def test_blocking(self, own: OwnServer, connected: bool) -> None:
        with RedisRowStore(config(own.url, TIMEOUT_MS)) as store:
            if connected:
                answer(store.ping)
            own.pause()
            started = time.monotonic()
            with pytest.raises(StoreTimeout, match=f"needs an answer within {TIMEOUT_MS} ms"):
                store.read(["a"])
            with pytest.raises(StoreTimeout, match=f"needs an answer within {TIMEOUT_MS} ms"):
                store.read_rows([KEYS])
            with pytest.raises(StoreTimeout):
                store.compare_and_set([Write("a", None, row(1))])
            assert time.monotonic() - started < STUCK_S
            own.go_on()
            assert answer(lambda: store.get_text("b")) is None

    @pytest.mark.parametrize("connected", [True, False])
    def test_async_with_more_calls_than_connections(self, own: OwnServer, connected: bool) -> None:
        async def run() -> None:
            async with AsyncRedisRowStore(config(own.url, TIMEOUT_MS)) as store:
                if connected:
                    await reads(store)
                own.pause()
                started = time.monotonic()
                calls = [store.read([f"{n}"]) for n in range(4)]
                others = [store.read_rows([KEYS]) for n in range(4)]
                results = await asyncio.gather(*calls, *others, return_exceptions=True)
                assert {type(result) for result in results} == {StoreTimeout}
                assert time.monotonic() - started < STUCK_S
                own.go_on()
                await reads(store)

        asyncio.run(run())

    def test_what_timed_out_may_have_landed(self, own: OwnServer) -> None:
        with RedisRowStore(config(own.url)) as patient:
            patient.compare_and_set([Write("a", None, row(1))])
            with RedisRowStore(config(own.url, TIMEOUT_MS)) as store:
                own.pause()
                with pytest.raises(StoreTimeout):
                    store.compare_and_set([Write("a", fence_bytes(1, 1), row(2))])
            own.go_on()
            assert patient.read(["a"]) in ([row(1)], [row(2)])


class TestGone:
    def test_blocking(self, own: OwnServer) -> None:
        with RedisRowStore(config(own.url)) as store:
            store.compare_and_set([Write("a", None, row(1))])
            own.kill()
            for _ in range(2):
                with pytest.raises(StoreError, match="needs a connection") as caught:
                    store.read(["a"])
                assert not isinstance(caught.value, StoreTimeout)
                assert "start the server" in str(caught.value)
                with pytest.raises(StoreError, match="needs a connection"):
                    store.read_rows([KEYS])
            own.restart()
            assert list(store.read_rows([KEYS])) == [None, None]
            assert store.read(["a"]) in ([row(1)], [None])  # its file may lag by a second
            assert all(store.compare_and_set([Write("b", None, row(1))]))

    def test_async(self, own: OwnServer) -> None:
        async def run() -> None:
            async with AsyncRedisRowStore(config(own.url)) as store:
                await store.ping()
                await store.read_rows([KEYS])
                own.kill()
                for _ in range(2):
                    for call in (store.read(["a"]), store.read_rows([KEYS])):
                        with pytest.raises(StoreError, match="needs a connection") as caught:
                            await call
                        assert not isinstance(caught.value, StoreTimeout)
                own.restart()
                assert list(await store.read_rows([KEYS])) == [None, None]
                assert await store.compare_and_set([Write("b", None, row(1))]) == [True]

        asyncio.run(run())

    @pytest.mark.parametrize(
        "reply",
        [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*2\r\n$3\r\nabc\r\n$9\r\nhal", b"$-7\r\n"],
    )
    def test_something_else_listens_there(self, reply: bytes) -> None:
        async def run(url: str) -> None:
            async with AsyncRedisRowStore(config(url)) as store:
                with pytest.raises(StoreError):
                    await store.read(["a", "b"])
                with pytest.raises(StoreError):
                    await store.read_rows([KEYS])

        with speaking(reply) as url:
            with RedisRowStore(config(url)) as store:
                with pytest.raises(StoreError):
                    store.read(["a", "b"])
                with pytest.raises(StoreError):
                    store.read_rows([KEYS])
            asyncio.run(run(url))

    def test_connections_that_nobody_uses_are_closed_when_asked(self, own: OwnServer) -> None:
        async def run() -> None:
            async with AsyncRedisRowStore(config(own.url)) as store:
                await store.ping()
                await store.read_rows([KEYS])
                opened = clients(own)
                await store.reconnect()
                ends = time.monotonic() + 30
                while clients(own) != opened - 2:
                    assert time.monotonic() < ends
                    await asyncio.sleep(0.01)
                assert list(await store.read_rows([KEYS])) == [None, None]

        asyncio.run(run())

    @pytest.mark.parametrize("url", ["", "127.0.0.1:6379", "http://127.0.0.1", "redis://h:port/0"])
    def test_a_url_that_is_none(self, url: str) -> None:
        for kind in (RedisRowStore, AsyncRedisRowStore):
            with pytest.raises(StoreError, match=r"store\.url: needs redis://"):
                kind(url)

    def test_the_password_is_never_shown(self, own: OwnServer) -> None:
        own.run("CONFIG", "SET", "requirepass", "right")
        url = own.url.replace("redis://", "redis://:wr0ng@")
        with RedisRowStore(config(url)) as store, pytest.raises(StoreError) as caught:
            store.ping()
        assert "check user and password" in str(caught.value)
        assert "wr0ng" not in str(caught.value)
        assert "wr0ng" not in StoreConfig(url).place


class TestForgetful:
    """The server may drop its scripts at any moment; no caller notices."""

    def test_blocking(self, own: OwnServer) -> None:
        with RedisRowStore(config(own.url)) as store:
            for offset in range(3):
                own.run("SCRIPT", "FLUSH")
                fence = fence_bytes(1, offset - 1) if offset else None
                writes = [Write(f"{n}", fence, row(offset)) for n in range(20)]
                assert store.compare_and_set(writes) == [True] * 20
            own.run("SCRIPT", "FLUSH")
            assert store.epoch_of("topic", "id") == 1
            own.run("SCRIPT", "FLUSH")
            store.put_progress("topic", "group", {0: (1, 2, 3)})
            own.run("SCRIPT", "FLUSH")
            assert store.compare_and_set_text("plan", "plan:version", 0, "text")

    def test_async(self, own: OwnServer) -> None:
        async def run() -> None:
            async with AsyncRedisRowStore(config(own.url)) as store:
                for offset in range(3):
                    own.run("SCRIPT", "FLUSH")
                    fence = fence_bytes(1, offset - 1) if offset else None
                    writes = [Write(f"{n}", fence, row(offset)) for n in range(20)]
                    assert await store.compare_and_set(writes) == [True] * 20

        asyncio.run(run())


class TestForeignKeys:
    def test_another_type_is_read_as_absent_and_refused_when_written(self, own: OwnServer) -> None:
        own.run("RPUSH", "list", "element")
        with RedisRowStore(config(own.url)) as store:
            assert store.read(["list"]) == [None]  # MGET says so
            for fence in (None, fence_bytes(1, 1)):
                good, bad = Write("good", None, row(1)), Write("list", fence, row(1))
                with pytest.raises(StoreError, match=r"compare_and_set\[list\].*WRONGTYPE"):
                    store.compare_and_set([good, bad])
            assert store.read(["good"]) == [row(1)]
            with pytest.raises(StoreError, match="WRONGTYPE"):
                store.get_text("list")
            assert own.run("LLEN", "list") == 1

    def test_a_value_too_short_for_a_fence_is_never_taken_for_absent(self, own: OwnServer) -> None:
        for value in (b"", b"x", b"x" * 13, b"x" * 23):
            own.run("SET", "short", value)
            with RedisRowStore(config(own.url)) as store:
                assert store.compare_and_set([Write("short", None, row(1))]) == [False]
                assert store.read(["short"]) == [value]

    def test_a_giant_value(self, own: OwnServer) -> None:
        giant = bytes(64 << 20)
        own.run("SET", "giant@1:{1}", giant)
        with RedisRowStore(config(own.url)) as store:
            assert store.read(["giant@1:{1}", "a"]) == [giant, None]
            assert list(store.read_rows([RowKeys("giant", 1, np.array([1, 2]))])) == [giant, None]
        asyncio.run(self._giant_in_no_time(own.url))

    async def _giant_in_no_time(self, url: str) -> None:
        giant = RowKeys("giant", 1, np.array([1]))
        hurried = StoreConfig(url, timeout_ms=5, connections=1)
        async with AsyncRedisRowStore(hurried) as store:
            for call in (store.read(giant.names()), store.read_rows([giant])):
                with pytest.raises(StoreTimeout):
                    await call
        async with AsyncRedisRowStore(StoreConfig(url, timeout_ms=30_000, connections=1)) as store:
            for call in (store.read(giant.names()), store.read_rows([giant])):
                reading = asyncio.ensure_future(call)
                await asyncio.sleep(0.01)
                reading.cancel()
                assert await store.read(["a"]) == [None]
                assert list(await store.read_rows([KEYS])) == [None, None]

    def test_what_nobody_asked_for_ends_the_connection(self) -> None:
        """Else it would be taken for the answer to the next question."""

        async def run(url: str) -> None:
            async with AsyncRedisRowStore(config(url)) as store:
                for _ in range(3):
                    assert list(await store.read_rows([KEYS])) == [b"x", b"y"]
                    more.wanted.release()
                    assert await asyncio.to_thread(more.hung_up.acquire, timeout=STUCK_S)
                    await asyncio.sleep(0.01)  # the event loop sees what lies there

        more = More(b"$5\r\nextra\r\n")
        with speaking(b"*2\r\n$1\r\nx\r\n$1\r\ny\r\n", more) as url:
            asyncio.run(run(url))

    def test_a_malformed_progress_field_is_named(self, own: OwnServer) -> None:
        own.run("HSET", "encore:progress:topic:group", "3", "one,two")
        with (
            RedisRowStore(config(own.url)) as store,
            pytest.raises(StoreError, match=r"encore:progress:topic:group\[3\]: needs"),
        ):
            store.get_progress("topic", "group")


class TestFull:
    def test_a_full_server_refuses_and_keeps_its_rows(self, own: OwnServer) -> None:
        with RedisRowStore(config(own.url)) as store:
            store.compare_and_set([Write("a", None, row(1))])
            own.run("CONFIG", "SET", "maxmemory", "1")
            assert list(store.read_rows([KEYS])) == [None, None]
            with pytest.raises(StoreError, match="raise its maxmemory"):
                store.compare_and_set([Write("a", fence_bytes(1, 1), row(2))])
            assert store.read(["a"]) == [row(1)]

    def test_a_server_that_may_evict_is_refused(self, own: OwnServer) -> None:
        own.run("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        with (
            RedisRowStore(config(own.url)) as store,
            pytest.raises(StoreError, match=r"needs noeviction.*got allkeys-lru"),
        ):
            store.check_policy()
