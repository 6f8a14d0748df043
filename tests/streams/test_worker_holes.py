"""A hole in what was fetched: what lies before it is folded, and marked."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faust.types import TP

from schemas.errors import NotHeldError
from schemas.names import PLAN_KEY
from schemas.plan import dump_plan
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams.admin import TopicFacts
from streams.app import Fetched
from streams.config import StreamConfig
from streams.item_worker import HOLE_S, ItemWorker
from streams.rekey import rekey_group
from streams.servers import Servers
from streams.transport import Marks
from streams.worker import Worker
from tests.streams.support import (
    T0,
    assert_rows_equal_oracle,
    batch_record,
    own_plan,
    some_actions,
    user_of,
)
from tests.streams.test_gaps import Broker

TOPIC = "holes"
CONFIG = StreamConfig("nowhere:1", "memory://", Path("unused"), topic=TOPIC, partitions=2)
HERE, THERE = TP(TOPIC, 0), TP(TOPIC, 1)


async def send(
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: dict[str, bytes],
    partition: int | None = None,
) -> None:
    """Late actions go aside, too."""


@pytest.mark.parametrize("batch_actions", [1, 60_000])
def test_what_lies_before_a_hole_is_folded(batch_actions: int) -> None:
    """Of all partitions that were fetched with it. So the mark lies at the hole, from where a
    rebuild gets the next worker over it."""
    store, plan = MemoryRowStore(), own_plan(TOPIC)
    store.put_text(PLAN_KEY, dump_plan(plan))
    config = replace(CONFIG, batch_actions=batch_actions)
    parts = [some_actions(20, 1, seed) for seed in range(6)]
    for seed, part in enumerate(parts):
        part["user"] = user_of(seed % 2)
    lists = [
        Fetched(THERE, (batch_record(parts[1], T0 + 20_000, 0, 1),)),
        Fetched(
            HERE,
            tuple(
                batch_record(parts[each], T0 + 20_000, at) for each, at in ((0, 0), (2, 1), (4, 5))
            ),
        ),
    ]

    async def run() -> None:
        servers = Servers(
            open_store=lambda _: AsyncMemoryRowStore(store), open_admin=lambda _: Broker(TOPIC)
        )
        worker = Worker(config, servers)
        await worker.open(send, Marks())
        await worker.start_at(frozenset({HERE, THERE}))
        with pytest.raises(
            NotHeldError, match=r"3 messages are missing, offsets 2 to 4; .*rebuild"
        ):
            await worker.handle(lists)
        await worker.close()

    asyncio.run(run())
    marks = store.get_progress(TOPIC, config.group)
    assert {partition: mark.next_offset for partition, mark in marks.items()} == {0: 2, 1: 1}
    sent = [(parts[each], T0 + 20_000) for each in (0, 1, 2)]
    assert_rows_equal_oracle(store, plan.views[0], sent)


class Topics(Broker):
    """The source and the re-keyed topic."""

    def describe(self, topic: str) -> TopicFacts:
        return replace(self.facts, name=topic)

    def ensure_topics(self, topics: Any) -> dict[str, TopicFacts]:
        return {topic: self.describe(topic) for topic in topics}


def test_an_item_worker_goes_on_folding_before_it_ends_at_a_hole() -> None:
    """From when it comes to the hole: until then it may have waited long for its group to form, and
    what was re-keyed before has to be folded, or no rebuild begins."""
    store, plan, now_s = MemoryRowStore(), own_plan(TOPIC), [0.0]
    view = replace(plan.views[0], entity="item", source=CONFIG.item_topic)
    store.put_text(PLAN_KEY, dump_plan(replace(plan, views=(view,))))
    parts = [some_actions(20, 1, seed) for seed in range(2)]
    for part in parts:
        part["user"] = user_of(0)
    records = [batch_record(part, T0, at) for part, at in zip(parts, (0, 5), strict=True)]

    async def run() -> None:
        servers = Servers(
            open_store=lambda _: AsyncMemoryRowStore(store),
            open_admin=lambda _: Topics(TOPIC),
            clock_s=lambda: now_s[0],
        )
        worker = ItemWorker(CONFIG, servers)
        await worker.open(send, Marks())
        await worker.start_at(frozenset({HERE, THERE}))
        now_s[0] += 10 * HOLE_S
        await worker.handle([Fetched(HERE, tuple(records))])
        now_s[0] += 0.9 * HOLE_S
        await worker.idle()
        now_s[0] += 0.2 * HOLE_S
        says = r"4 messages are missing, offsets 1 to 4; .*all item views"
        with pytest.raises(NotHeldError, match=says):
            await worker.idle()
        await worker.close()

    asyncio.run(run())
    marks = store.get_progress(TOPIC, rekey_group(CONFIG.item_group, 1))
    assert {partition: mark.next_offset for partition, mark in marks.items()} == {0: 1}
