from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from faust.types import TP

from schemas.errors import HistoryError, StoreTimeout
from store.memory import AsyncMemoryRowStore, Image, MemoryRowStore
from streams.config import StreamConfig
from streams.durability import Confirmations, open_confirmations
from streams.transport import Marks

HERE, THERE = TP("t", 0), TP("t", 1)


class SlowDisk(AsyncMemoryRowStore):
    """Confirms when it is let."""

    def __init__(self, store: MemoryRowStore | None = None) -> None:
        super().__init__(store)
        self.asked = 0
        self.let = asyncio.Event()

    async def confirm(self) -> None:
        self.asked += 1
        await self.let.wait()
        await super().confirm()


def test_one_request_in_flight_and_each_for_all_that_was_stored_when_it_began() -> None:
    async def run() -> None:
        disk, marks = SlowDisk(), Marks()
        await disk.begin_history()
        confirmations = Confirmations(disk, marks, 1_000)
        confirmations.stored({HERE: 5})
        await asyncio.sleep(0)
        confirmations.stored({HERE: 7})
        confirmations.stored({HERE: 9, THERE: 2})
        await asyncio.sleep(0)
        assert (disk.asked, marks.get(HERE), marks.get(THERE)) == (1, None, None)
        disk.let.set()
        await confirmations.settle()
        assert (disk.asked, marks.get(HERE), marks.get(THERE)) == (2, 9, 2)

    asyncio.run(run())


def test_what_was_stored_after_the_request_began_is_not_confirmed_by_it() -> None:
    async def run() -> None:
        disk, marks = SlowDisk(), Marks()
        await disk.begin_history()
        confirmations = Confirmations(disk, marks, 1_000)
        confirmations.stored({HERE: 5})
        await asyncio.sleep(0)
        confirmations.stored({HERE: 7})
        disk.let.set()
        while marks.get(HERE) is None:
            await asyncio.sleep(0)
        assert marks.get(HERE) == 5
        await confirmations.settle()

    asyncio.run(run())


def test_a_slow_disk_is_asked_again_and_another_history_is_told() -> None:
    async def run() -> None:
        rows, marks = MemoryRowStore(), Marks()
        store = AsyncMemoryRowStore(rows)
        await store.begin_history()
        confirmations = Confirmations(store, marks, 1_000)
        rows.fail_next(StoreTimeout("disk", required="an answer", got="none"))
        confirmations.stored({HERE: 5})
        await confirmations.settle()
        assert marks.get(HERE) == 5
        rows.restore(Image())
        confirmations.stored({HERE: 6})
        for _ in range(50):
            await asyncio.sleep(0)
        with pytest.raises(HistoryError):
            confirmations.stored({HERE: 7})
        assert marks.get(HERE) == 5

    asyncio.run(run())


def test_a_partition_that_was_lost_meanwhile_is_not_committed() -> None:
    async def run() -> None:
        disk, marks = SlowDisk(), Marks()
        await disk.begin_history()
        confirmations = Confirmations(disk, marks, 1_000)
        confirmations.stored({HERE: 5, THERE: 6})
        await asyncio.sleep(0)
        marks.forget([HERE])
        disk.let.set()
        await confirmations.settle()
        assert (marks.get(HERE), marks.get(THERE)) == (None, 6)
        marks.own([HERE])
        confirmations.stored({HERE: 8})
        await confirmations.settle()
        assert marks.get(HERE) == 8

    asyncio.run(run())


def test_answered_is_enough_where_a_setting_says_so(tmp_path: Path) -> None:
    async def run() -> None:
        disk, marks = SlowDisk(), Marks()
        config = replace(StreamConfig("b:1", "redis://s", tmp_path), durability="answered")
        confirmations = await open_confirmations(disk, marks, config)
        confirmations.stored({HERE: 5})
        assert (disk.asked, marks.get(HERE)) == (0, 5)

    asyncio.run(run())
