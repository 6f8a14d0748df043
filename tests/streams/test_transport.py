"""Positions and fetches: what a rebalance overtakes is read again, from where it was to begin."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import faust
from faust.types import TP
from mode import Service
from yarl import URL

from streams.transport import ListConsumer, ListTransport, Marks

A = TP("a", 0)
COMMITTED, SAVED = 7, 3


class LogThread(Service):
    """The consumer's thread, of one partition whose records are their offsets."""

    def __init__(self) -> None:
        super().__init__()
        self.position = 5
        self.arrived = asyncio.Event()
        self.fetching = asyncio.Event()

    def assignment(self) -> set[TP]:
        return {A}

    async def getmany(self, active: Any, timeout: float) -> dict[TP, list[Any]]:
        """What lies at the position once something has arrived, and past it."""
        self.fetching.set()
        await self.arrived.wait()
        first, self.position = self.position, self.position + 1
        return {A: [SimpleNamespace(offset=first)]}

    async def seek_to_committed(self) -> dict[TP, int]:
        self.position = COMMITTED
        await asyncio.sleep(0)
        return {A: COMMITTED}

    async def seek_wait(self, positions: dict[TP, int]) -> None:
        self.position = positions[A]
        await asyncio.sleep(0)


class LogConsumer(ListConsumer):
    """Reads that."""

    def _new_consumer_thread(self) -> Any:
        return LogThread()


def consumer_and_log() -> tuple[LogConsumer, LogThread]:
    async def start_at(tps: frozenset[TP]) -> dict[TP, int]:
        await asyncio.sleep(0)
        return dict.fromkeys(tps, SAVED)

    async def nothing(*args: Any) -> None:
        """Of a rebalance, or with a message."""

    broker = [URL("kafka://127.0.0.1:1")]
    transport = ListTransport(broker, faust.App("positions", broker=broker, autodiscover=False))
    transport.configure(10, Marks(), start_at)
    consumer = LogConsumer(transport, nothing, nothing, nothing)
    thread: Any = consumer._thread
    return consumer, thread


def test_a_fetch_under_way_takes_nothing_from_behind_the_new_position() -> None:
    """It would be dropped, and the partition read on behind it: a hole."""

    async def read() -> tuple[dict[TP, list[Any]], dict[TP, list[Any]]]:
        consumer, thread = consumer_and_log()
        consumer.resume_flow()
        fetch = asyncio.create_task(consumer._getmany({A}, 1.0))
        await thread.fetching.wait()
        consumer.stop_flow()
        seek = asyncio.create_task(consumer.perform_seek())
        for _ in range(20):
            await asyncio.sleep(0)
        thread.arrived.set()
        overtaken = await fetch
        await seek
        consumer.resume_flow()
        return overtaken, await consumer._getmany({A}, 1.0)

    overtaken, after = asyncio.run(read())
    assert [each.offset for each in overtaken[A]] == [5]
    assert [each.offset for each in after[A]] == [SAVED]


def test_nothing_is_fetched_while_positions_are_sought() -> None:
    """The fetch was asked for before, and waits for its turn."""

    async def read() -> tuple[dict[TP, list[Any]], int]:
        consumer, thread = consumer_and_log()
        thread.arrived.set()
        consumer.stop_flow()
        seek = asyncio.create_task(consumer.perform_seek())
        await asyncio.sleep(0)
        fetched = await consumer._getmany({A}, 1.0)
        await seek
        return fetched, thread.position

    assert asyncio.run(read()) == ({}, SAVED)
