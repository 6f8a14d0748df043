"""What serving processes are told of item views: the time that their rows have reached."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np

from schemas.actions import ACTION
from schemas.errors import StoreError
from schemas.names import generation_group
from schemas.rekeyed import SOURCE, SOURCE_RANGE, RekeyedBatch
from store.memory import AsyncMemoryRowStore
from streams.item_marks import TELL_S, ItemMarks
from streams.messages import ActionRun
from streams.rekey import rekey
from streams.servers import REAL_SERVERS
from streams.source_table import Pair, SourceTable, dump_pair, parse_pair
from tests.streams.support import PARTITIONS, T0, some_actions

PLACE = "actions.by-item", "encore.items"
KEY = "video_activity", 3


def batch(sent_ms: int, *covered: int, at: int = 0) -> RekeyedBatch:
    """An empty message of these source partitions' offset `at`."""
    covers = np.zeros(len(covered), SOURCE_RANGE)
    covers["partition"], covers["first"], covers["next"] = covered, at, at + 1
    covers["epoch"] = 1
    return RekeyedBatch(sent_ms, np.zeros(0, ACTION), np.zeros(0, SOURCE), covers)


def test_a_table_has_reached_what_its_last_source_partition_has() -> None:
    table = SourceTable()
    assert table.watermark_ms == 0
    table.admit(batch(50, 0, 1), "test")
    table.admit(batch(90, 1, at=1), "test")
    table.admit(batch(0, 0, 1, at=0), "test")
    assert table.watermark_ms == 50
    table.admit(batch(40, 0, at=1), "test")
    assert table.watermark_ms == 50, "time does not go back"
    table.admit(batch(95, 0, at=2), "test")
    assert table.watermark_ms == 90
    pair = parse_pair(dump_pair(Pair(1, 7, table, 2), 3), "key")
    assert pair.table.sent_ms == {0: 95, 1: 90}
    assert pair.table == SourceTable(dict(table.reached)), "which says what is folded, not when"


def test_a_message_has_reached_what_each_of_its_ranges_has() -> None:
    actions = some_actions(90, 20)
    covers = np.zeros(3, SOURCE_RANGE)
    covers["partition"], covers["next"] = range(3), 30
    partition = np.repeat(np.arange(2, dtype=np.int32), 45)  # none of the third
    offset, index = np.tile(np.arange(45), 2), np.zeros(90, np.int32)
    sent_ms = T0 + np.where(partition == 0, 500 + offset, offset)
    run = ActionRun(actions, partition, offset, index, sent_ms)
    assert {each.sent_ms for each in rekey(run, covers, 1, PARTITIONS)} == {T0 + 44}


class Clock:
    now_s = 10.0

    def __call__(self) -> float:
        return self.now_s


def test_marks_are_told_now_and_then_and_only_what_is_new() -> None:
    async def work() -> None:
        store, clock = AsyncMemoryRowStore(), Clock()
        puts: list[Any] = []
        real = store.put_progress

        async def put(topic: str, group: str, progress: Any) -> None:
            puts.append(dict(progress))
            if len(puts) == 2:
                raise StoreError("store", required="a server", got="none")
            await real(topic, group, progress)

        store.put_progress = put  # type: ignore[method-assign]
        marks = ItemMarks(store, PLACE, replace(REAL_SERVERS, clock_s=clock))
        pairs = {
            0: Pair(1, 5, SourceTable({0: (1, 9)}, {0: T0}), 1),
            1: Pair(1, 6, SourceTable(), 1),
        }
        await marks.tell({KEY: pairs})
        pairs[0].next_offset, pairs[0].table.sent_ms[0] = 8, T0 + 7
        await marks.tell({KEY: pairs})
        assert puts == [{0: (1, 5, T0)}], "nothing is known of the other; a moment ago"
        for _ in range(3):
            clock.now_s += TELL_S
            await marks.tell({KEY: pairs})
        assert puts[1:] == [{0: (1, 8, T0 + 7)}] * 2, "told again after a fault, then not"
        pairs[1].table.sent_ms[0] = T0 + 1
        await marks.tell({KEY: pairs}, now=True)
        held = await store.get_progress(PLACE[0], generation_group(PLACE[1], *KEY))
        assert {at: mark.watermark_ms for at, mark in held.items()} == {0: T0 + 7, 1: T0 + 1}

    asyncio.run(work())
