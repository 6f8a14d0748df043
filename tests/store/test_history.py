"""A restart, a failover, a wipe: another history, to which nobody of the old one may write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path

import numpy as np
import pytest

from schemas.errors import HistoryError, SettingsError, StoreError, StoreTimeout
from schemas.stored import RowKeys
from store.memory import AsyncMemoryRowStore, Image, MemoryRowStore
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from store.wire import Disks, StoreConfig
from tests.store.servers import STUCK_S, OwnServer, own_server
from tests.streams.support import wait_until


def patient(server: OwnServer) -> StoreConfig:
    """Whatever else the disk does: a confirmation has its time."""
    return StoreConfig(server.url, timeout_ms=60_000, connect_timeout_ms=60_000)


def begin(store: RedisRowStore) -> None:
    """Of one that has little time: as soon as the machine lets it."""

    def began() -> bool:
        with suppress(StoreTimeout):
            return bool(store.begin_history())
        return False

    wait_until(began)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[OwnServer]:
    with own_server(tmp_path) as own:
        yield own


def test_a_restart_is_another_history(server: OwnServer) -> None:
    with RedisRowStore(patient(server)) as store, RedisRowStore(patient(server)) as reader:
        name = store.begin_history()
        store.put_text("a", "durable")
        store.confirm()
        server.kill()
        server.restart()
        for _ in range(2):
            with pytest.raises(HistoryError, match="its history: needs"):
                store.put_text("a", "on top of a gap")
        with pytest.raises(HistoryError):
            store.confirm()
        assert reader.get_text("a") == "durable"
        assert reader.begin_history() not in ("", name)
        reader.confirm()


def test_a_restart_is_another_history_for_the_event_loop(server: OwnServer) -> None:
    async def run() -> None:
        async with AsyncRedisRowStore(patient(server)) as store:
            await store.begin_history()
            await store.put_text("a", "durable")
            await store.confirm()
            server.kill()
            server.restart()
            with pytest.raises(HistoryError):
                await store.read_rows([RowKeys("a", 1, np.array([1]))])
            calls = [store.put_text("a", "on top of a gap") for _ in range(20)]
            told = await asyncio.gather(*calls, return_exceptions=True)
            dead, *others = told  # the one connection that was open
            assert type(dead) in (StoreError, HistoryError)
            assert {type(each) for each in others} == {HistoryError}
            with pytest.raises(HistoryError):
                await store.confirm()

    asyncio.run(run())
    with RedisRowStore(patient(server)) as store:
        assert store.get_text("a") == "durable"


def test_a_replica_that_takes_over_is_another_history(server: OwnServer, tmp_path: Path) -> None:
    """The client stays connected: what it is told then comes with the next confirmation."""
    with own_server(tmp_path / "replica") as other, RedisRowStore(patient(server)) as store:
        store.begin_history()
        store.confirm()
        server.run("REPLICAOF", "127.0.0.1", other.server.port)
        server.run("REPLICAOF", "NO", "ONE")
        with pytest.raises(HistoryError, match="another life"):
            store.confirm()


def test_a_wipe_shows_at_the_next_confirmation(server: OwnServer) -> None:
    with RedisRowStore(patient(server)) as store:
        store.begin_history()
        store.confirm()
        server.run("FLUSHALL")
        with pytest.raises(HistoryError, match="no marker"):
            store.confirm()


def test_a_wipe_shows_when_it_is_asked_for(server: OwnServer) -> None:
    """Without a file as well, and once another has begun anew in what the wipe left."""
    server.run("CONFIG", "SET", "appendonly", "no")
    with RedisRowStore(patient(server)) as store, RedisRowStore(patient(server)) as other:
        store.begin_history()
        store.check_history()
        server.run("FLUSHALL")
        with pytest.raises(HistoryError, match="got no marker: it restarted, failed over or was"):
            store.check_history()
        store.put_text("a", "the connection goes on")
        other.begin_history()
        other.check_history()
        with pytest.raises(HistoryError, match="its history: needs"):
            store.check_history()


def test_a_wipe_shows_on_the_event_loop_too(server: OwnServer) -> None:
    async def run() -> None:
        async with AsyncRedisRowStore(patient(server)) as store:
            await store.begin_history()
            await store.check_history()
            server.run("FLUSHALL")
            with pytest.raises(HistoryError, match="got no marker"):
                await store.check_history()

    asyncio.run(run())


def test_a_script_that_the_server_forgot_confirms_nothing_by_itself(server: OwnServer) -> None:
    with RedisRowStore(patient(server)) as store:
        store.begin_history()
        server.run("SCRIPT", "FLUSH")
        store.compare_and_set([])
        store.confirm()


def test_without_an_append_only_file_nothing_is_confirmed(server: OwnServer) -> None:
    server.run("CONFIG", "SET", "appendonly", "no")
    with RedisRowStore(patient(server)) as store:
        store.begin_history()
        with pytest.raises(StoreError, match=r"confirm: needs WAITAOF, .* appendonly is disabled"):
            store.confirm()


def test_the_disk_of_a_replica_confirms_in_place_of_the_store_s_own(
    server: OwnServer, tmp_path: Path
) -> None:
    """The store forks for no file then. What was confirmed, the replica has when it takes over."""
    server.run("CONFIG", "SET", "appendonly", "no")
    config = replace(patient(server), disks=Disks(own=False, replicas=1))
    hasty = replace(config, timeout_ms=2_000)
    with own_server(tmp_path / "replica") as replica:
        with RedisRowStore(hasty) as store:
            begin(store)
            assert "of 1 replicas to confirm" in unconfirmed(store, "got 0 and 0")
        server.run("CONFIG", "SET", "repl-diskless-sync-delay", "0")
        replica.run("REPLICAOF", "127.0.0.1", server.server.port)
        with RedisRowStore(config) as store:
            wait_until(lambda: store.facts().replicas == 1)
            name = store.begin_history()
            store.put_text("a", "durable")
            store.confirm()
        server.kill()
        replica.kill()
        replica.restart()
        with RedisRowStore(patient(replica)) as store:
            assert store.get_text("a") == "durable"
            assert store.begin_history() not in ("", name)


def test_a_replica_without_a_file_confirms_nothing(server: OwnServer, tmp_path: Path) -> None:
    with own_server(tmp_path / "replica") as replica:
        replica.run("CONFIG", "SET", "appendonly", "no")
        server.run("CONFIG", "SET", "repl-diskless-sync-delay", "0")
        replica.run("REPLICAOF", "127.0.0.1", server.server.port)
        with RedisRowStore(patient(server)) as store:
            wait_until(lambda: store.facts().replicas == 1)
        both = StoreConfig(server.url, timeout_ms=2_000, disks=Disks(replicas=1))
        with RedisRowStore(both) as store:
            begin(store)
            told = unconfirmed(store, "got 1 and 0")
            assert "the store's disk and the disks of 1 replicas" in told


def unconfirmed(store: RedisRowStore, got: str) -> str:
    """What is told once that many disks have confirmed, which are too few. Until then a slow disk
    or machine may have less to tell; it never confirms."""
    told = [""]

    def so_many() -> bool:
        with pytest.raises(StoreTimeout) as caught:
            store.confirm()
        told.append(str(caught.value))
        return got in told[-1]

    wait_until(so_many)
    return told[-1]


@pytest.mark.parametrize("disks", [(False, 0), (True, -1)])
def test_somebody_s_disk_confirms(disks: tuple[bool, int]) -> None:
    with pytest.raises(SettingsError, match=r"own disk, or those of 1 replica and more"):
        Disks(*disks)


def test_the_memory_double_goes_back_to_what_was_confirmed() -> None:
    rows = MemoryRowStore()
    mine = AsyncMemoryRowStore(rows)

    async def run() -> None:
        await mine.begin_history()
        await mine.put_text("a", "durable")
        await mine.put_progress("t", "g", {0: (1, 5, 0)})
        await mine.confirm()
        await mine.put_text("a", "lost")
        await mine.put_progress("t", "g", {0: (1, 9, 0)})
        rows.restore(rows.confirmed)
        with pytest.raises(HistoryError):
            await mine.read(["a"])

    asyncio.run(run())
    assert (rows.get_text("a"), rows.get_progress("t", "g")[0].next_offset) == ("durable", 5)
    rows.restore(Image())
    assert rows.get_text("a") is None


def test_the_memory_double_is_flushed_under_its_clients() -> None:
    rows = MemoryRowStore()
    mine = AsyncMemoryRowStore(rows)

    async def run() -> None:
        for store in (mine, AsyncMemoryRowStore(rows)):
            await store.begin_history()
            await store.put_text("a", "there")
            held = rows.image()
            rows.flush()
            assert await store.get_text("a") is None
            for ask in (store.check_history, store.confirm):
                with pytest.raises(HistoryError):
                    await ask()
            rows.go_back(held)
            assert await store.get_text("a") == "there"
        rows.begin_history()
        rows.flush()
        for told in (rows.check_history, rows.confirm):
            with pytest.raises(HistoryError):
                told()

    asyncio.run(run())


async def in_time(*asks: Callable[[], Awaitable[object]]) -> None:
    """One ask after the other, the last one again and again, until one does not time out."""
    ends = time.monotonic() + STUCK_S
    for ask in chain(asks, repeat(asks[-1])):
        with suppress(StoreTimeout):
            await ask()
            return
        assert time.monotonic() < ends


def test_a_connection_that_was_cut_short_at_its_beginning_is_not_used(server: OwnServer) -> None:
    """It was never found to be of the history, and answers to its first questions may come yet."""

    async def run() -> None:
        hurried = StoreConfig(server.url, timeout_ms=3_000, connections=1)
        async with AsyncRedisRowStore(hurried) as store:
            await in_time(store.begin_history)
            await in_time(lambda: store.put_text("a", "durable"))
            await in_time(store.confirm)
            server.kill()
            server.restart()
            with pytest.raises(StoreError):
                await store.ping()  # the connection that was open
            server.pause()
            with pytest.raises(StoreTimeout):
                await store.put_text("a", "on top of a gap")
            late = asyncio.create_task(store.put_text("a", "on top of a gap"))
            await asyncio.sleep(0.05)
            server.go_on()
            with pytest.raises(HistoryError):
                await in_time(lambda: late, lambda: store.put_text("a", "on top of a gap"))

    asyncio.run(run())
    with RedisRowStore(patient(server)) as reader:
        assert reader.get_text("a") == "durable"
