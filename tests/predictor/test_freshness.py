"""Rows whose stream lags: said so, with their values, in replies and in the rank log."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregation.program import ServiceProgram
from predictor.freshness import Freshness, FreshnessConfig, stale
from predictor.generation import Generations
from predictor.rank import RankConfig, Ranker
from predictor.record import LogEntry, encode_entry
from predictor.spool import SpoolConfig, SpoolWriter
from schemas.errors import StoreError
from schemas.ids import partition_of
from schemas.names import generation_group
from schemas.ranklog import Degraded, decode_record
from schemas.spool import read_frames
from schemas.status import Status
from tests.predictor.support import NOW_MS, PLAN, USERS, DictStore, world
from tests.predictor.test_rank import query

VIEW = PLAN.view("user_activity")
CONFIG = FreshnessConfig(group="encore", partitions=4, stale_after_ms=60_000)
HERE = partition_of(USERS[0], CONFIG.partitions)


async def marked(store: DictStore, watermarks: dict[int, int]) -> None:
    """The worker's marks, by partition."""
    group = generation_group(CONFIG.group, VIEW.name, VIEW.generation)
    marks = {partition: (1, 10, time_ms) for partition, time_ms in watermarks.items()}
    await store.put_progress(VIEW.source, group, marks)


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


def test_looks_follow_the_marks_and_the_plan_and_outlive_faults() -> None:
    async def work() -> None:
        store, generations = DictStore(world()), Generations(PLAN, "ranking")
        freshness = Freshness(store, generations, replace(CONFIG, poll_s=0.001))

        def lags() -> bool:
            program = generations.current.program
            return bool(freshness.lags(program, USERS[0], NOW_MS).any())

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
            raise StoreError("store", required="a server", got="none")

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
    async def work() -> tuple[dict[str, int], int]:
        store = DictStore({})
        config = replace(CONFIG, stale_after_ms=0)
        freshness = Freshness(store, Generations(PLAN, "ranking"), config)
        assert freshness.watermarks_ms() == {}
        await marked(store, {0: NOW_MS - 5, 1: NOW_MS - 90_000_000})
        await freshness.look()
        lags = freshness.lags(ServiceProgram(PLAN, "ranking"), USERS[0], NOW_MS)
        return freshness.watermarks_ms(), int(lags.sum())

    assert asyncio.run(work()) == ({VIEW.name: NOW_MS - 90_000_000}, 0)
