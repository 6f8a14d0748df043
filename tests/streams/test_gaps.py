"""What a generation lacks for good: recorded, told, and never switched to."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from aiokafka.structs import ConsumerRecord

from schemas.errors import NotHeldError, StreamError
from schemas.names import PLAN_KEY, STAGED_KEY, generation_group
from schemas.plan import Plan, ViewPlan, dump_plan
from schemas.staged import Staged, dump_staged
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams.admin import TopicFacts
from streams.backfill import wait_caught_up
from streams.catching_up import CatchUp, nowhere
from streams.config import StreamConfig
from streams.folding import Folder
from streams.gaps import END, Gap, known_gaps, parse_gaps, record_gaps, recorded_gaps
from streams.generations import Generations
from streams.item_generations import ItemGenerations
from streams.servers import Servers
from streams.source import Source
from streams.source_table import Pair, PairStore, SourceTable
from tests.aggregation.plans import small_view

CONFIG = StreamConfig(
    "nowhere:1", "memory://", Path("unused"), group="g", topic="t", partitions=2, patience_ms=100
)
VIEW = replace(small_view(), name="v", source="t")
ITEMS = replace(VIEW, name="i", entity="item", source=CONFIG.item_topic)
READER, ITEM_READER = ("t", "g"), (CONFIG.item_topic, CONFIG.item_group)


class Emptied:
    """A log that holds nothing of what is asked for."""

    async def read(
        self, topic: str, partition: int, first: int, before: int
    ) -> tuple[ConsumerRecord, ...]:
        raise NotHeldError(topic, required=f"{first}", got="none")

    async def close(self) -> None:
        """There is no connection."""


class Broker:
    """Says which log there is."""

    def __init__(self, topic: str, topic_id: str = "log-1") -> None:
        self.facts = TopicFacts(topic, topic_id, 2)

    def describe(self, topic: str) -> TopicFacts:
        return self.facts

    def ensure_topics(self, topics: object) -> dict[str, TopicFacts]:
        return {self.facts.name: self.facts}

    def close(self) -> None:
        """There is no connection."""


def generations(store: MemoryRowStore, epoch: int = 1) -> Generations:
    return Generations(AsyncMemoryRowStore(store), "t", "g", epoch, 100)


def gaps_of(store: MemoryRowStore, view: ViewPlan) -> dict[int, tuple[Gap, ...]]:
    reader = READER if view.entity == "user" else ITEM_READER
    return asyncio.run(recorded_gaps(AsyncMemoryRowStore(store), reader, view))


def servers() -> Servers:
    return Servers(open_reader=lambda config: Emptied())


def test_gaps_add_up_and_are_read_again() -> None:
    store = MemoryRowStore()

    def add(**gaps: Gap) -> None:
        found = {int(name[1:]): gap for name, gap in gaps.items()}
        asyncio.run(record_gaps(AsyncMemoryRowStore(store), READER, VIEW, found))

    add(p0=Gap(1, 5, 9), p1=Gap(1, 0, 3))
    add(p0=Gap(1, 5, 12))
    add(p0=Gap(2, 5, 6))
    assert gaps_of(store, VIEW) == {0: (Gap(1, 5, 12), Gap(2, 5, 6)), 1: (Gap(1, 0, 3),)}
    add(p0=Gap(1, 5, END))
    add(p0=Gap(1, 5, 40))
    assert gaps_of(store, VIEW)[0] == (Gap(1, 5, END), Gap(2, 5, 6))
    held = gaps_of(store, VIEW)[0]
    assert [held[0].holds(1, 4), held[0].holds(1, 99), held[1].holds(2, 6)] == [False, True, False]
    with pytest.raises(StreamError, match=r"needs gaps, .* got '\[1\]'; rebuild the view"):
        parse_gaps("[1]", "gaps")


def test_gaps_that_others_record_at_once() -> None:
    class Contended(MemoryRowStore):
        def compare_and_set_text(self, *what: object) -> bool:
            return False

    store = AsyncMemoryRowStore(Contended())
    with pytest.raises(StreamError, match=r"gaps of v@1: needs to be recorded, got another writer"):
        asyncio.run(record_gaps(store, READER, VIEW, {0: Gap(1, 0, 1)}))


def test_what_a_lost_log_took_from_a_lagging_generation_is_told() -> None:
    """Behind the group's own mark when the log was lost: another generation has it."""
    store = MemoryRowStore()
    other = replace(VIEW, name="other")
    asyncio.run(generations(store).begin([VIEW, other], (0, 1), {0: 30}))
    for view, offset in ((VIEW, 30), (other, 40)):
        store.put_progress("t", generation_group("g", view.name, 1), {0: (1, offset, 0)})
    store.put_progress("t", "g", {0: (1, 40, 0), 1: (1, 0, 0)})
    asyncio.run(generations(store, epoch=2).begin([VIEW, other], (0, 1), {}))
    assert gaps_of(store, VIEW) == {0: (Gap(1, 30, 40),)}
    assert gaps_of(store, other) == {}
    store.put_progress("t", "g", {0: (2, 7, 0)})
    asyncio.run(generations(store, epoch=3).begin([other], (0,), {}))
    assert gaps_of(store, other) == {0: (Gap(1, 40, END),)}, "and all of the second log"


def user_source(admin: Broker) -> Source:
    return Source(admin, TopicFacts("t", "log-1", 2), 1, 100)


def test_a_span_that_left_the_topic_holds_nobody_up() -> None:
    """The generation goes on behind it, and says so."""
    store = MemoryRowStore()
    store.put_progress("t", generation_group("g", VIEW.name, 1), {0: (1, 12, 0)})

    async def step(admin: Broker) -> bool:
        held = AsyncMemoryRowStore(store)
        folded = generations(store)
        await folded.begin([VIEW], (0,), {0: 40})
        stream = Folder(held, (VIEW,), 1, nowhere, 100)
        catch_up = CatchUp(CONFIG, servers(), user_source(admin), folded)
        arrived = await catch_up.step({0: 40}, stream)
        assert folded.lagging() == []
        return arrived

    with pytest.raises(StreamError, match="the broker lost its log"):
        asyncio.run(step(Broker("t", "log-2")))
    assert gaps_of(store, VIEW) == {}, "of the log that is gone, not of this one"
    assert asyncio.run(step(Broker("t")))
    assert gaps_of(store, VIEW) == {0: (Gap(1, 12, 40),)}


def test_an_item_generation_takes_nothing_more_where_its_log_ends() -> None:
    store, new = MemoryRowStore(), replace(ITEMS, generation=2)

    async def take_up(epoch: int) -> ItemGenerations:
        held = AsyncMemoryRowStore(store)
        name = generation_group(CONFIG.item_group, new.name, 2)
        own = PairStore(held, CONFIG.item_topic, name, 100)
        if (await own.load(0)).version == 0:
            await own.save(0, Pair(1, 12, SourceTable(), 0))
        facts = TopicFacts(CONFIG.item_topic, "log-1", 2)
        target = Source(Broker(CONFIG.item_topic), facts, epoch, 100)
        folded = ItemGenerations(CONFIG, servers(), held, target)
        folded_there = SourceTable({0: (1, 40)})
        pairs = {0: Pair(epoch, 40, folded_there, 1, frozenset({ITEMS.key}))}
        await folded.begin([ITEMS, new], pairs)
        await folded.step(pairs, Folder(held, (ITEMS, new), epoch, nowhere, 100))
        return folded

    folded = asyncio.run(take_up(1))
    assert gaps_of(store, new) == {0: (Gap(1, 12, 40),)}
    assert folded.folded(0) == frozenset({ITEMS.key})
    assert set(folded.floors) == {new.key}
    asyncio.run(take_up(2))
    assert gaps_of(store, new) == {0: (Gap(1, 12, END),)}, "of a log that was lost"


def test_what_was_filled_from_a_newer_log_on_is_not_said_to_be_folded_in_a_lost_one() -> None:
    """Also where the table of its floor is that of the lost log's end."""
    new, table = replace(ITEMS, generation=2), SourceTable({0: (1, 40)})

    async def take_up() -> None:
        held = AsyncMemoryRowStore()
        name = generation_group(CONFIG.item_group, "i", 2)
        own = PairStore(held, CONFIG.item_topic, name, 100)
        await own.save(0, Pair(2, 0, table, 0))
        facts = TopicFacts(CONFIG.item_topic, "log-1", 2)
        target = Source(Broker(CONFIG.item_topic, "log-2"), facts, 1, 100)
        folded = ItemGenerations(CONFIG, servers(), held, target)
        await folded.begin([ITEMS, new], {0: Pair(1, 40, table, 1, frozenset({ITEMS.key}))})

    with pytest.raises(StreamError, match="needs the id log-1 it had at the start, got log-2"):
        asyncio.run(take_up())


@pytest.mark.parametrize("view", [VIEW, ITEMS])
def test_a_generation_with_a_gap_is_not_switched_to(view: ViewPlan) -> None:
    reader = READER if view.entity == "user" else ITEM_READER

    async def scenario() -> None:
        store = AsyncMemoryRowStore()
        await record_gaps(store, reader, view, {1: Gap(1, 2, 3)})
        await wait_caught_up(CONFIG, [view], store, lambda *_: None, 5.0)

    with pytest.raises(StreamError, match=r"none with offsets 2 to 2 of epoch 1 .* --cancel"):
        asyncio.run(scenario())


def test_gaps_are_known_of_what_is_folded_now() -> None:
    store = MemoryRowStore()
    new = replace(VIEW, generation=2)

    async def known() -> list[str]:
        return [str(lack) for lack in await known_gaps(AsyncMemoryRowStore(store), CONFIG)]

    async def record(view: ViewPlan, reader: tuple[str, str]) -> None:
        gaps = {0: Gap(1, 2, 9)}
        await record_gaps(AsyncMemoryRowStore(store), reader, view, gaps)

    assert asyncio.run(known()) == [], "no plan"
    store.put_text(PLAN_KEY, dump_plan(Plan(1, 0, (VIEW, ITEMS), ())))
    assert asyncio.run(known()) == []
    for view, reader in ((VIEW, READER), (new, READER), (ITEMS, ITEM_READER)):
        asyncio.run(record(view, reader))
    told = "v@1 lacks offsets 2 to 8 of epoch 1 of t/0: encore rebuild v"
    items = "i@1 lacks offsets 2 to 8 of epoch 1 of t.by-item/0: encore rebuild i"
    assert asyncio.run(known()) == [told, items]
    staged = Staged("filled", Plan(2, 1, (new, ITEMS), ()), {"v": 2})
    store.put_text(STAGED_KEY, dump_staged(staged))
    canceled = "v@2 lacks offsets 2 to 8 of epoch 1 of t/0: encore backfill --cancel"
    assert asyncio.run(known()) == [told, canceled, items]
    store.put_text(PLAN_KEY, "damaged")
    assert asyncio.run(known()) == [], "nobody folds by it"
