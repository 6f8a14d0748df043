"""An item worker follows published and staged plans while it runs: on a real log, under load."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.ids import partitions_of
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY, STAGED_KEY, generation_group
from schemas.plan import Plan, ViewPlan, dump_plan
from schemas.staged import Staged, dump_staged
from store.memory import AsyncMemoryRowStore
from store.redis_store import AsyncRedisRowStore
from streams.admin import Admin, TopicFacts, ensure_topics
from streams.backfill import lacking
from streams.catching_up import nowhere
from streams.config import StreamConfig
from streams.folding import Folder
from streams.generations import NOTHING, recorded_floors
from streams.item_generations import ItemGenerations
from streams.origins import Origin, item_origin, log_of
from streams.producer import ActionProducer
from streams.servers import REAL_SERVERS
from streams.source import Source
from streams.source_table import Pair, PairStore, SourceTable
from tests.aggregation.plans import small_view
from tests.streams.support import (
    PARTITIONS,
    T0,
    Stack,
    make_stack,
    patient,
    running,
    some_actions,
    wait_until,
)
from tests.streams.test_catching_up import unstage
from tests.streams.test_item_worker import assert_item_rows, wait_items


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    """One item view, fed from the topic re-keyed by item."""
    made = make_stack(broker, valkey, tmp_path / "data", batch_actions=500)
    view = replace(made.view, entity="item", source=made.config.item_topic)
    ensure_topics(broker, made.config.topics)
    return replace(made, plan=replace(made.plan, views=(view,)))


@dataclass
class Sent:
    """Messages of one user each, with their places in the source."""

    messages: list[tuple[Any, int, int, int]] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)

    def send(self, producer: ActionProducer, count: int) -> None:
        for _ in range(count):
            part = some_actions(60, 9, len(self.messages))
            part = part[part["user"] == part["user"][0]]
            ((partition, end),) = producer.send(part, T0 + 20_000).items()
            self.messages.append((part, T0 + 20_000, partition, end - 1))
            self.ends[partition] = end

    def all(self) -> list[tuple[Any, int]]:
        return [(part, sent_ms) for part, sent_ms, _, _ in self.messages]

    def beyond(self, origin: Origin) -> list[tuple[Any, int]]:
        """What lies at or behind the bounds of each action's item."""
        found = []
        for part, sent_ms, partition, offset in self.messages:
            of = partitions_of(part["item"], PARTITIONS)
            bounds = np.array([origin.bounds[p].get(partition, 0) for p in range(PARTITIONS)])
            found.append((part[offset >= bounds[of]], sent_ms))
        return found


def set_key(stack: Stack, key: str, text: str) -> None:
    with stack.store() as store:
        version = int(store.get_text(PLAN_VERSION_KEY) or 0)
        assert store.compare_and_set_text(key, PLAN_VERSION_KEY, version, text)


def ask(stack: Stack, question: Any) -> Any:
    """Ask an async question of the store."""

    async def asked() -> Any:
        async with AsyncRedisRowStore(patient(stack.config.store_url)) as store:
            return await question(store)

    return asyncio.run(asked())


def has_floors(stack: Stack, view: ViewPlan) -> bool:
    place = stack.config.item_topic, stack.config.item_group
    return len(ask(stack, lambda store: recorded_floors(store, *place, view))) == PARTITIONS


def test_a_running_item_worker_takes_over_a_new_generation(stack: Stack) -> None:
    old, new = stack.view, replace(stack.view, generation=2)
    before, after = Sent(), Sent()
    topic = stack.config.topic
    with (
        stack.store() as store,
        ActionProducer(stack.config.bootstrap, topic, PARTITIONS) as producer,
        running("items", stack) as items,
    ):
        before.send(producer, 12)
        wait_items(stack, before.ends)
        set_key(stack, PLAN_KEY, dump_plan(Plan(2, 1, (new,), ())))
        wait_until(partial(has_floors, stack, new))
        after.send(producer, 12)
        wait_items(stack, after.ends)
        assert_item_rows(store, old, before.all())
        assert_item_rows(store, new, after.all())
        assert items.terminate() == 0
        set_key(stack, PLAN_KEY, dump_plan(Plan(3, 2, (), ())))


def begin(stack: Stack, view: ViewPlan) -> Origin:
    """The origin that a backfill records."""
    config = stack.config
    facts = ensure_topics(config.bootstrap, config.topics)

    async def origin(store: AsyncRedisRowStore) -> Origin:
        with Admin(config.bootstrap) as admin:
            source = await log_of(store, admin, facts[config.topic], 1_000)
            target = await log_of(store, admin, facts[config.item_topic], 1_000)
        return await item_origin(store, config, view, (source, target))

    found = ask(stack, origin)
    assert isinstance(found, Origin)
    return found


def test_a_filled_generation_whose_log_is_lost_takes_nothing_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own pair is of log 1, the stream is in log 2: what lies between is nowhere."""
    config = StreamConfig("nowhere:1", "nowhere", Path("."), topic="t", group="g", partitions=2)
    view = replace(small_view(), entity="item", source=config.item_topic, generation=2)
    store = AsyncMemoryRowStore()
    facts = TopicFacts(config.item_topic, "id-2", 2)

    async def scenario() -> None:
        name = generation_group(config.item_group, view.name, 2)
        own = PairStore(store, config.item_topic, name, 100)
        await own.save(0, Pair(1, 8, SourceTable(), 0))
        await own.save(1, Pair(2, 8, SourceTable(), 0))
        source = Source(Nobody(), facts, 2, 100)
        made = ItemGenerations(config, REAL_SERVERS, store, source)
        pairs = {p: Pair(2, 8, SourceTable({0: (1, 9)}), 3) for p in range(2)}
        await made.begin([view], pairs)
        assert made.floors == {view.key: {0: NOTHING}}
        assert [len(made.folded(p)) for p in range(2)] == [0, 1]
        folder = Folder(store, (view,), 2, nowhere, 100)
        assert not await made.step(pairs, folder)

    asyncio.run(scenario())
    assert "lacks what lies from offset 8 on in epoch 1 of t.by-item/0" in caplog.text


def test_a_generation_that_joined_lacks_what_an_older_plan_moved_past() -> None:
    """Whoever joined it died before the partition's pair named it; another folded on without it."""
    config = StreamConfig("nowhere:1", "nowhere", Path("."), topic="t", group="g", partitions=2)
    view = replace(small_view(), entity="item", source=config.item_topic, generation=2)
    store, facts = AsyncMemoryRowStore(), TopicFacts(config.item_topic, "id-2", 2)

    async def begun(next_offset: int) -> ItemGenerations:
        made = ItemGenerations(config, REAL_SERVERS, store, Source(Nobody(), facts, 2, 100))
        await made.begin([view], {0: Pair(2, next_offset, SourceTable({0: (1, 9)}), 3)})
        return made

    async def scenario() -> None:
        assert (await begun(8)).folded(0) == {view.key}
        passed = await begun(11)
        assert passed.folded(0) == set()
        assert passed.floors == {view.key: {0: NOTHING}}, "until it has been caught up from 8 on"
        name = generation_group(config.item_group, view.name, 2)
        own = await PairStore(store, config.item_topic, name, 100).load(0)
        assert (own.next_offset, own.table.reached) == (8, {0: (1, 9)})
        floors = await recorded_floors(store, config.item_topic, config.item_group, view)
        assert floors == {0: (2, 8)}

    asyncio.run(scenario())


class Nobody:
    """A `streams.servers.TopicAdmin` of a topic that is as it was."""

    def describe(self, topic: str) -> TopicFacts | None:
        return TopicFacts(topic, "id-2", 2)

    def ensure_topics(self, topics: Mapping[str, int]) -> dict[str, TopicFacts]:
        raise AssertionError

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.kill
@pytest.mark.slow
def test_a_filled_generation_of_items_is_caught_up_under_load(stack: Stack) -> None:
    """From the floors' source tables on, each action once, through a SIGKILL."""
    new, sent, stop = replace(stack.view, generation=2), Sent(), threading.Event()
    producer = ActionProducer(stack.config.bootstrap, stack.config.topic, PARTITIONS)

    def load() -> None:
        while not stop.wait(0.01):
            sent.send(producer, 2)

    def ready() -> bool:
        found = ask(stack, lambda store: lacking(stack.config, new, store))
        return all(at >= end for at, end in found.values())

    with stack.store() as store, producer:
        thread = threading.Thread(target=load)
        try:
            with running("items", stack) as items:
                sent.send(producer, 20)
                wait_items(stack, sent.ends)
                thread.start()
                origin = begin(stack, new)
                wait_until(lambda: len(sent.messages) > 60)
                filled = Staged("filled", Plan(2, 1, (new,), ()), {new.name: 2})
                set_key(stack, STAGED_KEY, dump_staged(filled))
                wait_until(lambda: f"{new.name}@2" in items.text())
                items.kill()
            with running("items", stack) as again:
                wait_until(ready)
                stop.set()
                thread.join()
                wait_items(stack, sent.ends)
                wait_until(ready)
                assert again.terminate() == 0
        finally:
            stop.set()
            unstage(stack)
        assert_item_rows(store, stack.view, sent.all())
        lacks = sum(len(part) for part, _ in sent.beyond(origin))
        assert 0 < lacks < sum(len(part) for part, _ in sent.all())
        assert_item_rows(store, new, sent.beyond(origin))
