"""A call that was cancelled or timed out never hands its reply to another (redis-py 2624, 2665).

The row of entity n names n. Whatever is cancelled at whatever moment, on however few
connections: an answer is that of its own question.
"""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from schemas.errors import StoreError, StoreTimeout
from schemas.row import seal
from schemas.stored import RowKeys
from store.base import Write
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from store.wire import StoreConfig
from tests.store.servers import slow_wire

KEYS = 50
PREFIX = "cancellation"


ALL = RowKeys(PREFIX, 1, np.arange(KEYS))


def patient(url: str, connections: int) -> StoreConfig:
    return StoreConfig(url, 60_000, connect_timeout_ms=60_000, connections=connections)


def row(number: int) -> bytes:
    return seal(f"row {number} ".encode() * 60, 0, (1, number), newest_ms=0)


@pytest.fixture(autouse=True)
def filled(valkey: str) -> None:
    with RedisRowStore(patient(valkey, 1)) as store:
        store.compare_and_set([Write(key, None, row(n)) for n, key in enumerate(ALL.names())])


async def ask(store: AsyncRedisRowStore, draw: random.Random) -> bool:
    """Reads a few keys in one of both ways and checks the answer; True unless it timed out."""
    asked = [draw.randrange(KEYS) for _ in range(draw.randint(1, 5))]
    keys = ALL._replace(entity_ids=np.array(asked))
    try:
        together = draw.random() < 0.5
        values = await (store.read_rows([keys]) if together else store.read(keys.names()))
    except StoreTimeout:
        return False
    assert list(values) == [row(n) for n in asked]
    return True


@pytest.mark.parametrize("connections", [1, 3])
@pytest.mark.parametrize("longest_ms", [0, 4])
def test_cancelled_at_any_moment(valkey: str, connections: int, longest_ms: int) -> None:
    draw = random.Random(connections * 100 + longest_ms)

    async def run() -> None:
        async with (
            slow_wire(valkey, longest_ms / 1000) as url,
            AsyncRedisRowStore(patient(url, connections)) as store,
        ):
            cancelled = answered = 0
            for _ in range(150):
                tasks = [asyncio.create_task(ask(store, draw)) for _ in range(4)]
                await asyncio.sleep(draw.random() * (longest_ms + 1) / 1000)
                for task in tasks[1:]:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                for result in results:
                    if isinstance(result, asyncio.CancelledError):
                        cancelled += 1
                    elif isinstance(result, BaseException):
                        raise result
                    else:
                        answered += 1
            assert cancelled > 10
            assert answered >= 150
            assert all(await asyncio.gather(*(ask(store, draw) for _ in range(20))))

    asyncio.run(run())


def test_timed_out_at_any_moment(valkey: str) -> None:
    draw = random.Random(1)

    async def run() -> None:
        async with slow_wire(valkey, 0.004) as url:
            hurried = StoreConfig(url, timeout_ms=4, connections=2)
            async with AsyncRedisRowStore(hurried) as store:
                results = [await ask(store, draw) for _ in range(200)]
            assert not all(results)
            async with AsyncRedisRowStore(patient(url, 2)) as store:
                assert await ask(store, draw)

    asyncio.run(run())


def test_a_cancellation_is_never_swallowed(valkey: str) -> None:
    """Under a caller's own deadline the call ends as TimeoutError, not as a late answer."""

    async def run() -> None:
        async with slow_wire(valkey, 0.05) as url, AsyncRedisRowStore(patient(url, 16)) as store:
            await store.ping()
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.002):
                        await store.read(ALL.names())
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.002):
                        await store.read_rows([ALL])

    asyncio.run(run())


def test_a_compare_and_set_cut_short_lands_once_or_never(valkey: str) -> None:
    draw = random.Random(2)

    async def run() -> None:
        async with (
            slow_wire(valkey, 0.003) as url,
            AsyncRedisRowStore(patient(url, 1)) as store,
        ):
            for turn in range(40):
                keys = [f"{PREFIX}:cas:{valkey}:{turn}:{n}" for n in range(20)]
                writes = [Write(key, None, row(n)) for n, key in enumerate(keys)]
                task = asyncio.create_task(store.compare_and_set(writes))
                await asyncio.sleep(draw.random() * 0.004)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                found = await store.read(keys)
                assert all(value in (None, row(n)) for n, value in enumerate(found))
                landed = await store.compare_and_set(writes)
                assert await store.read(keys) == [write.value for write in writes]
                assert not any(
                    now for now, before in zip(landed, found, strict=True) if before is not None
                )

    asyncio.run(run())


def test_an_error_reply_leaves_the_rest_of_the_pipeline_in_step(valkey: str) -> None:
    with RedisRowStore(patient(valkey, 1)) as store:
        store.put_progress(f"{PREFIX}-wrong", "type", {0: (1, 1, 1)})
        wrong = f"encore:progress:{PREFIX}-wrong:type"
        writes = [Write(f"{PREFIX}:a", None, row(1)), Write(wrong, None, row(2))]
        with pytest.raises(StoreError, match="WRONGTYPE"):
            store.compare_and_set([*writes, Write(f"{PREFIX}:b", None, row(3))])
        assert store.read([f"{PREFIX}:a", f"{PREFIX}:b"]) == [row(1), row(3)]
