"""Rows whose stream lags: said so, with their values, in replies and in the rank log."""

from __future__ import annotations

import asyncio
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
from predictor.freshness import Freshness, FreshnessConfig, stale
from predictor.generation import Generations
from predictor.rank import RankConfig, Ranker
from predictor.record import LogEntry, encode_entry
from predictor.spool import SpoolConfig, SpoolWriter
from schemas.errors import StoreError
from schemas.ids import partition_of, partitions_of
from schemas.names import generation_group
from schemas.plan import ViewPlan
from schemas.ranklog import Degraded, decode_record
from schemas.spool import read_frames
from schemas.status import Status
from tests.predictor.support import ITEMS, NOW_MS, PLAN, USERS, DictStore, world
from tests.predictor.test_rank import query

VIEW = PLAN.view("user_activity")
CONFIG = FreshnessConfig(
    group="encore", item_group="encore.items", partitions=4, stale_after_ms=60_000
)
PROGRAM = ServiceProgram(PLAN, "ranking")
ITEM_VIEW = PLAN.view("video_activity")
ITEM_PARTITIONS = partitions_of(np.array(ITEMS, np.int64), CONFIG.partitions)
HERE = partition_of(USERS[0], CONFIG.partitions)


async def marked(
    store: DictStore,
    watermarks: dict[int, int],
    view: ViewPlan = VIEW,
    group: str = CONFIG.group,
) -> None:
    """The marks of a view's worker, by partition."""
    marks = {partition: (1, 10, time_ms) for partition, time_ms in watermarks.items()}
    await store.put_progress(view.source, generation_group(group, *view.key), marks)


def served(watermarks: dict[int, int], directory: Path, **changes: Any) -> Any:
    """A request served with these marks, and the record of it."""

    async def work() -> Any:
        store, generations = DictStore(world()), Generations(PLAN, "ranking")
        await marked(store, watermarks)
        freshness = Freshness(store, generations, CONFIG)
        await freshness.look()
        spool: SpoolWriter[LogEntry] = SpoolWriter(SpoolConfig(directory), encode_entry)
        ranker = Ranker(store, generations, spool, RankConfig(), freshness=freshness)
        reply = await ranker.rank(query(timeout_ms=60_000.0, **changes))
        aggregated = await ranker.aggregate(query(timeout_ms=60_000.0, **changes))
        ranker.close()
        spool.close()
        return reply, aggregated

    reply, aggregated = asyncio.run(work())
    [path] = directory.glob("*.spool")
    [payload] = read_frames(path.read_bytes())[0]
    return reply, aggregated, decode_record(payload)


def test_a_lagging_view_keeps_its_values_and_says_so(tmp_path: Path) -> None:
    fresh, _, _ = served({HERE: NOW_MS - 60_000}, tmp_path / "fresh")
    late, aggregated, record = served({HERE: NOW_MS - 60_001}, tmp_path / "late")
    index = [view.name for view in late.generation.program.user_views].index(VIEW.name)
    assert fresh.assembled.user_status[index] == Status.PRESENT
    assert fresh.ranking.degraded == Degraded.NO_MODEL
    assert late.assembled.user_status[index] == Status.STALE
    assert np.delete(late.assembled.user_status, index).tolist() == [Status.PRESENT]
    assert late.ranking.degraded == Degraded.NO_MODEL | Degraded.STALE_ROWS
    assert aggregated.degraded == Degraded.STALE_ROWS
    assert late.assembled.user_values.tobytes() == fresh.assembled.user_values.tobytes()
    assert record.user_status[index] == Status.STALE
    program = late.generation.program
    users = np.frombuffer(record.user_values, program.user_dtype)
    items = np.frombuffer(record.item_values, program.item_dtype)
    rebuilt, tensors = program.tensors(users, items), late.assembled.tensors
    np.testing.assert_array_equal(rebuilt.user_slots, tensors.user_slots)
    np.testing.assert_array_equal(rebuilt.item_slots, tensors.item_slots)


@pytest.mark.parametrize(
    "watermarks",
    [
        {},  # nothing was ever stored
        {partition: 0 for partition in range(4) if partition != HERE},  # of others
    ],
)
def test_what_nothing_is_known_of_does_not_lag(watermarks: dict[int, int], tmp_path: Path) -> None:
    reply, _, _ = served(watermarks, tmp_path)
    assert reply.ranking.degraded == Degraded.NO_MODEL


def test_a_row_that_is_not_there_is_not_stale(tmp_path: Path) -> None:
    unknown = next(n for n in range(1_000) if partition_of(n, 4) == HERE)
    reply, _, _ = served({HERE: 0}, tmp_path, user_id=unknown)
    assert (reply.assembled.user_status == Status.NOT_FOUND).all()
    failed = np.array([Status.TIMEOUT, Status.PRESENT], np.uint8)
    assert stale(failed, np.array([True, True])).tolist() == [Status.TIMEOUT, Status.STALE]


@pytest.mark.parametrize(
    "fault",
    [StoreError("store", required="a server", got="none"), KeyError("nobody foresaw this")],
)
def test_looks_follow_the_marks_and_the_plan_and_outlive_faults(fault: Exception) -> None:
    async def work() -> None:
        store, generations = DictStore(world()), Generations(PLAN, "ranking")
        freshness = Freshness(store, generations, replace(CONFIG, poll_s=0.001))

        whole = read_whole()

        def lags() -> bool:
            return Status.STALE in freshness.judged(whole, PROGRAM, query()).user_status.tolist()

        async def until(expected: bool) -> None:
            async with asyncio.timeout(30):
                while lags() != expected:
                    await asyncio.sleep(0.001)

        await marked(store, {HERE: 1})
        task = asyncio.create_task(freshness.run())
        await until(True)
        real, answers, failed = store.get_progress, asyncio.Event(), asyncio.Event()

        async def fail(topic: str, group: str) -> Any:
            if answers.is_set():
                return await real(topic, group)
            failed.set()
            raise fault

        store.get_progress = fail  # type: ignore[method-assign]
        await failed.wait()
        await marked(store, {HERE: NOW_MS})
        await asyncio.sleep(0.01)
        assert lags()
        answers.set()
        await until(False)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(work())


def test_a_view_is_as_fresh_as_its_last_partition() -> None:
    async def work() -> dict[str, int]:
        store = DictStore({})
        config = replace(CONFIG, stale_after_ms=0)
        freshness = Freshness(store, Generations(PLAN, "ranking"), config)
        assert freshness.watermarks_ms() == {}
        await marked(store, {0: NOW_MS - 5, 1: NOW_MS - 90_000_000})
        await freshness.look()
        whole = read_whole()
        assert freshness.judged(whole, PROGRAM, query()) is whole
        await marked(store, {2: 7}, ITEM_VIEW, CONFIG.item_group)
        await freshness.look()
        return freshness.watermarks_ms()

    assert asyncio.run(work()) == {VIEW.name: NOW_MS - 90_000_000, ITEM_VIEW.name: 7}


# --- items ----------------------------------------------------------------------------------


def item_status(watermarks: dict[int, int], items: ItemCache | None, **asked: Any) -> Any:
    """(N, Vi) of a request served with these marks of the item view, and what it is degraded by."""

    async def work() -> Any:
        store, generations = DictStore(world()), Generations(PLAN, "ranking")
        await marked(store, watermarks, ITEM_VIEW, CONFIG.item_group)
        freshness = Freshness(store, generations, CONFIG)
        await freshness.look()
        ranker = Ranker(store, generations, None, RankConfig(), items, freshness)
        given: dict[str, Any] = {"timeout_ms": 60_000.0, "received_ms": NOW_MS}
        reply = await ranker.aggregate(query(**given, **asked))
        ranker.close()
        return reply.assembled.item_status, reply.degraded

    return asyncio.run(work())


@pytest.mark.parametrize("cached", [False, True])
def test_items_of_a_partition_that_lags_are_stale(cached: bool, tmp_path: Path) -> None:
    """As the store gives them, and out of the item cache."""
    cache = cache_of(tmp_path) if cached else None
    index = [view.name for view in PROGRAM.item_views].index(ITEM_VIEW.name)
    late = int(ITEM_PARTITIONS[0])
    theirs = np.isin(ITEM_PARTITIONS, late)
    marks = dict.fromkeys(range(4), NOW_MS - 60_000)
    status, degraded = item_status(marks, cache)
    assert (status == Status.PRESENT).all()
    assert not degraded
    status, degraded = item_status(marks | {late: NOW_MS - 60_001}, cache)
    assert (status[:, index] == Status.STALE).tolist() == theirs.tolist()
    assert 0 < theirs.sum() < len(ITEMS)
    assert (np.delete(status, index, axis=1) == Status.PRESENT).all()
    assert degraded == Degraded.STALE_ROWS
    status, degraded = item_status({}, cache)
    assert (status == Status.PRESENT).all()
    if cache is not None:
        assert cache.counts.requests == 3
        assert (cache.counts.missed, cache.counts.unusable) == (0, 0)


def test_an_item_that_has_no_row_is_not_stale() -> None:
    unknown = np.arange(1, 9, dtype=np.int64)
    status, degraded = item_status(dict.fromkeys(range(4), 0), None, candidate_ids=unknown)
    assert (status == Status.NOT_FOUND).all()
    assert not degraded


def cache_of(directory: Path) -> ItemCache:
    """A live cache of all items."""
    codec, stored, ids = ItemCodec(PROGRAM), world(), np.array(ITEMS, np.int64)
    memory = CacheMemory.create(cache_path(directory, codec), codec, len(ITEMS))
    writer = CacheWriter(memory)
    writer.put(ids, [stored.get(key) for key in PROGRAM.item_keys(ids)], NOW_MS)
    writer.verified()
    writer.live(now_ns())
    return ItemCache(directory, max_age_ms=600_000)


def read_whole() -> Assembled:
    """What `query()` gets where nothing lags."""
    stored, ids = world(), np.array(ITEMS, np.int64)
    raw = [stored.get(key) for key in PROGRAM.keys(USERS[0], ids)]
    return PROGRAM.assemble(raw, USERS[0], ids, NOW_MS)
