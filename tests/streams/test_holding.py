"""What an idle process looks at in the store, and what it never takes for a loss."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import pytest
from faust.types import TP

from schemas.errors import HistoryError, StoreError, StoreTimeout, StreamError
from schemas.names import PLAN_VERSION_KEY
from store.base import Progress
from store.memory import AsyncMemoryRowStore, Image, MemoryRowStore
from streams.following import PlanFollower
from streams.holding import WATCH_S, Holding
from streams.positions import Positions
from streams.source_table import Pair, PairStore, SourceTable

TPS = [TP("t", 0), TP("t", 1)]
PATIENCE_MS = 100


class SlowStore(AsyncMemoryRowStore):
    """What happens before the next answer of a kind arrives, or in its place."""

    def __init__(self, rows: MemoryRowStore) -> None:
        super().__init__(rows)
        self.meanwhile: dict[str, Callable[[], Awaitable[None]]] = {}

    async def check_history(self) -> None:
        await super().check_history()
        await self._late("history")

    async def get_progress(self, topic: str, group: str) -> dict[int, Progress]:
        found = await super().get_progress(topic, group)
        await self._late("marks")
        return found

    async def get_text(self, key: str) -> str | None:
        found = await super().get_text(key)
        await self._late("table")
        return found

    async def _late(self, kind: str) -> None:
        happen = self.meanwhile.pop(kind, None)
        if happen is not None:
            await happen()


class Process:
    """A process that reads partitions 0 and 1 of the log 1 and has tables of both."""

    def __init__(self, rows: MemoryRowStore) -> None:
        self.rows, self.now_s = rows, 0.0
        self.store = SlowStore(rows)
        self.positions = Positions(self.store, "t", "g", 1)
        self.tables = PairStore(self.store, "t.by-item", "g", PATIENCE_MS)
        self.pairs = {p: Pair(1, 0, SourceTable(), 0) for p in (0, 1)}

    async def begin(self) -> None:
        await self.store.begin_history()
        marks = await self.positions.marks()
        self.positions.begin(TPS, marks, marks)
        self.pairs = {p: await self.tables.load(p) for p in (0, 1)}
        self.holding = Holding(
            self.store,
            lambda: self.now_s,
            self.positions.check,
            lambda: self.tables.check(self.pairs),
        )

    async def store_up_to(self, *offsets: int) -> None:
        upto = dict(zip(TPS, offsets, strict=False))
        await self.positions.store(upto, PATIENCE_MS)
        for partition, offset in enumerate(offsets):
            self.pairs[partition].next_offset = offset
            await self.tables.save(partition, self.pairs[partition])

    async def look(self) -> None:
        self.now_s += WATCH_S
        await self.holding.watch()


def of_one_process(scene: Callable[[Process], Awaitable[None]]) -> None:
    async def run() -> None:
        process = Process(MemoryRowStore())
        await process.begin()
        await process.store_up_to(5, 7)
        await process.look()
        await scene(process)

    asyncio.run(run())


# --- losses ----------------------------------------------------------------------------------


def test_a_flushed_store() -> None:
    async def scene(process: Process) -> None:
        process.rows.flush()
        with pytest.raises(HistoryError, match="its history: needs"):
            await process.look()

    of_one_process(scene)


def test_a_flushed_store_that_another_process_began_anew_in() -> None:
    async def scene(process: Process) -> None:
        process.rows.flush()
        successor = Process(process.rows)
        await successor.begin()
        await successor.store_up_to(9, 9)
        with pytest.raises(HistoryError, match="its history: needs"):
            await process.look()

    of_one_process(scene)


def test_marks_that_were_put_back() -> None:
    async def scene(process: Process) -> None:
        before = process.rows.image()
        await process.store_up_to(8)
        process.rows.go_back(before)
        with pytest.raises(StreamError, match=r"t/0: needs the mark 8 of log 1.*store went back"):
            await process.look()

    of_one_process(scene)


def test_tables_that_were_put_back_behind_their_marks() -> None:
    async def scene(process: Process) -> None:
        before = process.rows.image()
        await process.store_up_to(8)
        process.rows.go_back(replace(before, progress=process.rows.image().progress))
        with pytest.raises(StreamError, match=r"by-item/0: needs the version 2.*store went back"):
            await process.look()

    of_one_process(scene)


def test_a_mark_that_was_read_and_never_written_is_missed_as_well() -> None:
    async def scene(process: Process) -> None:
        successor = Process(process.rows)
        await successor.begin()
        await successor.look()
        process.rows.go_back(Image())
        with pytest.raises(StreamError, match=r"t/0: needs the mark 5 .* got None: the store went"):
            await successor.look()
        with pytest.raises(StreamError, match="the store went back"):
            await successor.positions.store({TPS[1]: 9}, PATIENCE_MS)

    of_one_process(scene)


def test_a_plan_of_another_history_is_not_taken_over() -> None:
    async def scene(process: Process) -> None:
        process.rows.put_text(PLAN_VERSION_KEY, "3")
        follower = PlanFollower(process.store, "user", "t", clock_s=lambda: 0.0)
        follower._version = "2"
        process.rows.flush()
        with pytest.raises(HistoryError):
            await follower.look_now_and_then()
        assert follower.views == ()

    of_one_process(scene)


# --- no losses -------------------------------------------------------------------------------


def test_who_took_the_partitions_over_raises_no_alarm() -> None:
    """Also in a later log, and though this process was not told yet."""

    async def scene(process: Process) -> None:
        successor = Process(process.rows)
        await successor.begin()
        await successor.store_up_to(8, 12)
        await process.look()
        process.rows.put_progress("t", "g", {0: (2, 1, 0)})
        await process.look()
        with pytest.raises(StreamError, match="the broker lost its log"):
            await process.positions.store({TPS[0]: 9}, PATIENCE_MS)

    of_one_process(scene)


def test_partitions_that_were_given_away_are_not_looked_for() -> None:
    async def scene(process: Process) -> None:
        process.positions.begin([], {}, {0: 5, 1: 7})
        process.pairs = {}
        process.rows.go_back(Image())
        await process.look()

    of_one_process(scene)


KINDS = ["history", "marks", "table"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_while_it_looks_is_no_loss(kind: str) -> None:
    async def scene(process: Process) -> None:
        for offset in range(8, 28):
            process.store.meanwhile[kind] = partial(process.store_up_to, offset, offset)
            await process.look()
            assert not process.store.meanwhile
            assert await process.positions.marks() == {0: offset, 1: offset}

    of_one_process(scene)


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_is_away_is_no_loss(kind: str) -> None:
    """Whichever of the questions it does not answer; the next look sees what is there."""

    async def unheard() -> None:
        raise StoreTimeout("store", required="an answer within 5 ms", got="none")

    async def scene(process: Process) -> None:
        for _ in range(9):
            process.store.meanwhile[kind] = unheard
            await process.look()
            assert not process.store.meanwhile
        process.rows.fail_next(StoreError("store", required="a connection", got="none"))
        await process.look()
        await process.look()
        process.rows.flush()
        with pytest.raises(HistoryError):
            await process.look()

    of_one_process(scene)


def test_it_looks_every_few_seconds() -> None:
    async def scene(process: Process) -> None:
        process.rows.flush()
        process.now_s += WATCH_S / 2
        await process.holding.watch()
        process.now_s += WATCH_S / 2
        with pytest.raises(HistoryError):
            await process.holding.watch()

    assert 1 <= WATCH_S <= 5
    of_one_process(scene)
