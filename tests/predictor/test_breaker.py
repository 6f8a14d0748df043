"""Reads behind the breaker: who waits, what they are told, and when it closes again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import pytest

from predictor.breaker import BreakerConfig, Read, StoreReader
from schemas.errors import StoreError, StoreTimeout
from schemas.status import Status
from schemas.stored import RowKeys, StoredRows
from store.memory import AsyncMemoryRowStore

GONE = StoreError("store", required="a connection", got="refused")
FAST = BreakerConfig(faults=3, timeout_s=60.0, pause_s=0.005, longest_pause_s=0.02)


class Moody(AsyncMemoryRowStore):
    """Answers, fails or hangs, as it is told; knows who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.mood: Exception | float = 0.0  # seconds to answer
        self.asked: list[Sequence[RowKeys]] = []
        self.reconnected = 0

    async def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        self.asked.append(keys)
        if isinstance(self.mood, Exception):
            raise self.mood
        await asyncio.sleep(self.mood)
        return StoredRows.of([each.view.encode() for each in keys])

    async def reconnect(self) -> None:
        self.reconnected += 1


def keys(*views: str) -> list[RowKeys]:
    return [RowKeys(view, 1, np.array([7])) for view in views]


Answer = tuple[list[bytes | None], Status | None]


async def ask(reader: StoreReader, view: str, limit_s: float) -> Answer:
    read = await reader.read(keys(view), limit_s)
    return list(read.rows), read.failed


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def settled(reader: StoreReader) -> None:
    deadline = time.monotonic() + 30
    while reader.state != "closed":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def test_rows_come_through() -> None:
    reader = StoreReader(Moody(), FAST)
    assert run(ask(reader, "a", 60.0)) == ([b"a"], None)


@pytest.mark.parametrize(
    ("mood", "status"),
    [
        (GONE, Status.STORE_ERROR),
        (StoreTimeout("store", required="an answer", got="none"), Status.TIMEOUT),
        (3600.0, Status.TIMEOUT),
    ],
)
def test_faults_in_a_row_open_it_and_a_probe_closes_it(
    mood: Exception | float, status: Status
) -> None:
    async def work() -> None:
        store = Moody()
        reader = StoreReader(store, FAST, store.reconnect)
        store.mood = mood
        asked = 0
        while reader.state == "closed":  # a time-out that the loop was late for does not count
            assert await ask(reader, "a", 0.03) == ([], status)
            asked += 1
        assert (reader.opened, reader.state) == (1, "open")
        assert asked >= 3
        asked = len(store.asked)
        for _ in range(100):  # none of them asks the store
            assert await ask(reader, "other", 3600.0) == ([], status)
        while len(store.asked) < asked + 3:  # probes go on, with the keys that failed
            await asyncio.sleep(0.001)
        assert {each.view for call in store.asked for each in call} == {"a"}
        store.mood = 0.0
        await settled(reader)
        assert store.reconnected >= 3
        assert await ask(reader, "b", 60.0) == ([b"b"], None)
        await reader.close()

    run(work())


def test_a_probe_is_on_behalf_of_no_request() -> None:
    """Its log lines would name the one that came first, long after that was answered."""
    request: ContextVar[str] = ContextVar("request", default="none")
    named: list[str] = []

    class Telling(Moody):
        async def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
            named.append(request.get())
            return await super().read_rows(keys)

    async def work() -> None:
        store = Telling()
        reader = StoreReader(store, FAST)
        store.mood = GONE
        request.set("a request")
        for _ in range(3):
            await reader.read(keys("a"), 60.0)
        store.mood = 0.0
        await settled(reader)
        assert named == ["a request"] * 3 + ["none"] * (len(named) - 3)
        assert len(named) > 3
        await reader.close()

    run(work())


def test_a_probe_that_fails_as_nobody_foresaw_is_not_the_last() -> None:
    """Closing a dead connection may raise what no read does."""

    async def work() -> None:
        store = Moody()

        async def reconnect() -> None:
            await store.reconnect()
            if store.reconnected < 3:
                raise OSError("no route")

        reader = StoreReader(store, FAST, reconnect)
        store.mood = GONE
        for _ in range(3):
            await reader.read(keys("a"), 60.0)
        store.mood = 0.0
        await settled(reader)
        assert store.reconnected == 3
        await reader.close()

    run(work())


def test_those_that_wait_are_let_go_when_it_opens() -> None:
    async def work() -> None:
        store = Moody()
        reader = StoreReader(store, FAST)
        store.mood = 3600.0
        waiting = [asyncio.create_task(reader.read(keys("slow"), 3600.0)) for _ in range(5)]
        await asyncio.sleep(0)
        store.mood = GONE
        for _ in range(3):
            await reader.read(keys("a"), 3600.0)
        assert await asyncio.gather(*waiting) == [Read([], Status.TIMEOUT)] * 5
        assert reader.opened == 1
        await reader.close()

    run(work())


def test_a_success_in_between_keeps_it_closed() -> None:
    async def work() -> None:
        store = Moody()
        reader = StoreReader(store, FAST)
        for _ in range(4):
            store.mood = GONE
            for _ in range(2):
                assert (await reader.read(keys("a"), 60.0)).failed == Status.STORE_ERROR
            store.mood = 0.0
            assert (await reader.read(keys("a"), 60.0)).failed is None
        assert reader.opened == 0

    run(work())


def test_a_caller_in_a_hurry_says_nothing_of_the_store() -> None:
    async def work() -> None:
        store = Moody()
        reader = StoreReader(store, BreakerConfig(patience_s=0.02))
        store.mood = 3600.0
        for _ in range(10):
            assert (await reader.read(keys("a"), 0.001)).failed == Status.TIMEOUT
            assert (await reader.read(keys("a"), -1.0)).failed == Status.TIMEOUT
        assert reader.opened == 0

    run(work())


def test_a_loop_that_did_not_come_round_says_nothing_of_the_store() -> None:
    """The answers may lie there; and it shows that they do."""

    async def work() -> None:
        store = Moody()
        reader = StoreReader(store, FAST)
        store.mood = 3600.0
        waiting = [asyncio.create_task(reader.read(keys("a"), 0.1)) for _ in range(9)]
        await asyncio.sleep(0)
        time.sleep(0.2)  # what nobody should do here
        assert await asyncio.gather(*waiting) == [Read([], Status.TIMEOUT)] * 9
        assert reader.opened == 0

    run(work())


def test_who_waits_while_the_store_answers_others_says_nothing_of_it() -> None:
    """They wait for a connection, or for the event loop."""

    async def work() -> None:
        store = Moody()
        reader = StoreReader(store, FAST)
        store.mood = 3600.0
        waiting = [asyncio.create_task(reader.read(keys("a"), 0.1)) for _ in range(9)]
        await asyncio.sleep(0)
        store.mood = 0.0
        assert (await reader.read(keys("b"), 60.0)).failed is None
        assert await asyncio.gather(*waiting) == [Read([], Status.TIMEOUT)] * 9
        assert reader.opened == 0
        store.mood = 3600.0
        while reader.opened == 0:  # and when it answers nobody
            assert (await reader.read(keys("a"), 0.1)).failed == Status.TIMEOUT
        await reader.close()

    run(work())


def test_a_store_that_is_too_slow_does_not_pass_the_probe() -> None:
    async def work() -> None:
        store = Moody()
        config = BreakerConfig(faults=2, timeout_s=60.0, pause_s=0.005, longest_pause_s=0.01)
        reader = StoreReader(store, config)
        store.mood = 3600.0
        while reader.opened == 0:
            await reader.read(keys("a"), 0.05)
        store.mood = 0.5  # alive, and ten times too slow
        asked = len(store.asked)
        while len(store.asked) < asked + 3:
            assert reader.state != "closed"
            await asyncio.sleep(0.01)
        await reader.close()

    run(work())


def test_a_cancelled_caller_is_no_fault() -> None:
    async def work() -> None:
        store = Moody()
        reader = StoreReader(store, FAST)
        store.mood = 3600.0
        tasks = [asyncio.create_task(reader.read(keys("a"), 3600.0)) for _ in range(9)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in results)
        assert (reader.state, reader.opened) == ("closed", 0)

    run(work())
