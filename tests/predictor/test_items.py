"""The item cache in front of the store: what is asked of whom, and that answers are the same."""

from __future__ import annotations

import asyncio
import uuid
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregation.cache.memory import CacheMemory, now_ns
from aggregation.cache.reader import ItemCache, cache_path
from aggregation.cache.record import ItemCodec
from aggregation.cache.writer import CacheWriter
from aggregation.program import Assembled, ServiceProgram
from predictor.generation import Generations
from predictor.items import Asked, ask
from predictor.rank import AggregateReply, RankConfig, Ranker
from predictor.record import Query
from schemas.status import Status
from schemas.stored import StoredRows
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from store.wire import StoreConfig
from tests.patience import patient
from tests.predictor.support import ITEMS, NOW_MS, PLAN, USERS, DictStore, put_world, world
from tests.store.servers import OwnServer, own_server

PROGRAM = ServiceProgram(PLAN, "ranking")
STORED = world()
USER_VIEWS = {view.name for view in PROGRAM.user_views}
CANDIDATES = np.array(ITEMS, np.int64)
QUERY = Query(uuid.UUID(int=1), USERS[0], CANDIDATES, NOW_MS, NOW_MS, 5, 500.0)


@pytest.fixture
def cache(tmp_path: Path) -> ItemCache:
    """Of all candidates but two, for which it has no room."""
    codec = ItemCodec(PROGRAM)
    memory = CacheMemory.create(cache_path(tmp_path, codec), codec, len(ITEMS) - 2)
    writer = CacheWriter(memory)
    for ids in (CANDIDATES[2:], CANDIDATES[:2]):
        raw = [STORED.get(key) for key in PROGRAM.item_keys(ids)]
        writer.put(ids, raw, NOW_MS)
    writer.verified()
    writer.live(now_ns())
    return ItemCache(tmp_path, max_age_ms=600_000)


def rows_of(asked: Asked) -> StoredRows:
    return StoredRows.of([STORED.get(key) for key in names(asked)])


def names(asked: Asked) -> list[str]:
    return [name for keys in asked.row_keys() for name in keys.names()]


def assert_same(one: Assembled, other: Assembled) -> None:
    assert one.item_values.tobytes() == other.item_values.tobytes()
    assert one.user_values.tobytes() == other.user_values.tobytes()
    assert one.item_status.tolist() == other.item_status.tolist()
    assert one.item_fences.tolist() == other.item_fences.tolist()
    assert one.tensors.item_slots.tolist() == other.tensors.item_slots.tolist()
    assert one.newest_ms == other.newest_ms


def test_only_the_user_and_what_is_not_cached_is_read(cache: ItemCache) -> None:
    asked, plain = ask(PROGRAM, QUERY, cache), ask(PROGRAM, QUERY, None)
    assert asked.item_ids.tolist() == list(ITEMS[:2])
    assert len(names(asked)) == len(PROGRAM.user_views) + 2 * len(PROGRAM.item_views)
    assert len(names(plain)) == len(PROGRAM.keys(QUERY.user_id, CANDIDATES))
    assert_same(asked.assemble(rows_of(asked)), plain.assemble(rows_of(plain)))


def test_what_is_not_cached_comes_with_the_user_in_one_round_trip(
    cache: ItemCache, tmp_path: Path
) -> None:
    """As a store counts it that nobody else asks."""

    async def served(own: OwnServer) -> AggregateReply:
        async with AsyncRedisRowStore(StoreConfig(own.url, timeout_ms=30_000)) as store:
            await store.ping()
            ranker = Ranker(store, Generations(PLAN, "ranking"), None, RankConfig(), cache)
            own.run("CONFIG", "RESETSTAT")
            reply = await ranker.aggregate(replace(QUERY, timeout_ms=60_000.0))
            ranker.close()
        return reply

    with own_server(tmp_path / "store") as own:
        with RedisRowStore(patient(own.url)) as rows:
            put_world(rows)
        reply = asyncio.run(served(own))
        asked: Any = own.run("INFO", "commandstats")
    assert {name: each["calls"] for name, each in asked.items() if "get" in name} == {
        "cmdstat_mget": 1
    }
    assert not reply.degraded
    assert cache.counts.missed == 2
    plain = ask(PROGRAM, QUERY, None)
    assert_same(reply.assembled, plain.assemble(rows_of(plain)))


def test_what_a_request_saw_stays_as_it_was(cache: ItemCache, tmp_path: Path) -> None:
    """Until its record is encoded: whatever is served or cached after it."""
    asked = ask(PROGRAM, QUERY, cache)
    seen = asked.assemble(rows_of(asked))
    kept = deepcopy(seen)
    codec = ItemCodec(PROGRAM)
    memory = CacheMemory.open(cache_path(tmp_path, codec), codec, writable=True)
    assert memory is not None
    nothing = [None] * (len(PROGRAM.item_views) * len(CANDIDATES[2:]))
    CacheWriter(memory).put(CANDIDATES[2:], nothing, NOW_MS)
    for turn in range(20):
        other = replace(QUERY, user_id=USERS[turn % 3], candidate_ids=CANDIDATES[turn:][::-1])
        later = ask(PROGRAM, other, cache)
        assert not np.shares_memory(seen.item_values, later.assemble(rows_of(later)).item_values)
    assert_same(seen, kept)
    assert seen.user_status.tolist() == kept.user_status.tolist()
    gone = ask(PROGRAM, QUERY, cache)
    assert (gone.assemble(rows_of(gone)).item_status[2:] == Status.NOT_FOUND).all()


def test_items_are_served_although_the_store_is_not(cache: ItemCache) -> None:
    failed = ask(PROGRAM, QUERY, cache).assemble([], Status.TIMEOUT)
    assert set(failed.user_status.tolist()) == {Status.TIMEOUT}
    assert set(failed.item_status[:2].ravel().tolist()) == {Status.TIMEOUT}
    assert not (failed.item_status[2:] == Status.TIMEOUT).any()


def test_a_clock_of_ones_own_is_answered_from_the_store(cache: ItemCache, tmp_path: Path) -> None:
    asked = ask(PROGRAM, replace(QUERY, now_ms=NOW_MS - 1), cache)
    assert asked.found is None
    assert asked.item_ids.tolist() == list(ITEMS)
    assert cache.counts.requests == 0
    assert ask(PROGRAM, QUERY, ItemCache(tmp_path / "nothing")).found is None


def test_the_service_asks_the_cache_before_the_store(cache: ItemCache) -> None:
    async def served(items: ItemCache | None) -> AggregateReply:
        users = {key: row for key, row in STORED.items() if key.split("@")[0] in USER_VIEWS}
        store = DictStore(users if items else STORED)
        ranker = Ranker(store, Generations(PLAN, "ranking"), None, RankConfig(), items)
        reply = await ranker.aggregate(replace(QUERY, timeout_ms=60_000.0))
        ranker.close()
        return reply

    cached, stored = asyncio.run(served(cache)), asyncio.run(served(None))
    assert not cached.degraded
    one, other = cached.assembled, stored.assembled
    assert one.item_values[2:].tobytes() == other.item_values[2:].tobytes()
    assert one.tensors.item_slots[2:].tolist() == other.tensors.item_slots[2:].tolist()
    assert (one.item_status[:2] == Status.NOT_FOUND).all()
    assert cache.counts.requests == 1
