"""What an operator does to move actions to a new topic, and what is refused meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest

from schemas.errors import MovedError, StoreError, StreamError
from schemas.names import (
    PLAN_KEY,
    STAGED_KEY,
    generation_group,
    partitions_keys,
    root_topic,
    topics_keys,
)
from schemas.plan import Plan, dump_plan
from schemas.staged import Staged, dump_staged
from schemas.succession import End, Succession, dump_succession, load_succession
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams import growing, producer
from streams.admin import Admin, TopicFacts, ensure_topics
from streams.carrying import behind_ends, carry
from streams.clients import KafkaError
from streams.config import StreamConfig
from streams.ends import Partition, read_starts
from streams.gaps import Gap, recorded_gaps
from streams.generations import record_floors, recorded_floors
from streams.messages import decode_records
from streams.moving import (
    Ended,
    Place,
    check_known,
    check_no_other,
    check_open,
    check_settled,
    config_of,
    find_all,
    find_place,
    items_done,
    newest_config,
    open_config,
    read_succession,
    users_done,
)
from streams.producer import ActionProducer, send_end
from streams.servers import REAL_SERVERS, Servers, TopicAdmin
from streams.source import Source
from tests.streams.support import (
    make_stack,
    own_plan,
    plain,
    raw_producer,
    read_topic,
    some_actions,
)

T = TypeVar("T")


@dataclass
class Site:
    """A topic of this test alone, with 2 partitions, and a store in memory."""

    config: StreamConfig
    rows: MemoryRowStore

    @property
    def store(self) -> AsyncMemoryRowStore:
        return AsyncMemoryRowStore(self.rows)

    @property
    def servers(self) -> Servers:
        return replace(REAL_SERVERS, open_store=lambda config: self.store)

    def grow(self, partitions: int = 3) -> Succession:
        return run(growing.grow(self.store, self.config, partitions))

    def end(self, servers: Servers = REAL_SERVERS) -> Succession:
        return run(growing.end(self.store, self.config, servers=servers))

    def second(self) -> StreamConfig:
        return config_of(self.config, run(read_succession(self.store, self.config)), 2)

    def place(self, config: StreamConfig, admin: TopicAdmin) -> Place:
        return Place(self.store, admin, config, users_done, lambda: 1.0)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


@pytest.fixture
def site(broker: str, tmp_path: Path) -> Site:
    stack = make_stack(broker, "redis://127.0.0.1:1/0", tmp_path, partitions=2)
    ensure_topics(broker, stack.config.topics)
    return Site(stack.config, MemoryRowStore())


@pytest.fixture
def admin(broker: str) -> Iterator[Admin]:
    with Admin(broker) as made:
        yield made


# --- the frozen count -----------------------------------------------------------------------


def test_a_topic_with_another_count_than_before_is_refused(site: Site, admin: Admin) -> None:
    topic = site.config.topic
    facts = admin.describe(topic)
    assert facts is not None
    run(Source.open(admin, facts, site.store, 1_000))
    assert site.rows.get_text(partitions_keys(topic)[0]) == "2"
    admin.delete_topic(topic)
    altered = admin.ensure_topics({topic: 3})[topic]
    with pytest.raises(StreamError, match="the 2 partitions it had when it was first read, got 3"):
        run(Source.open(admin, altered, site.store, 1_000))


# --- grow -----------------------------------------------------------------------------------


def test_a_topic_is_made_and_waits(site: Site, admin: Admin) -> None:
    grown = site.grow(3)
    config = site.config
    assert [(each.name, each.partitions) for each in grown.topics] == [
        (config.topic, 2),
        (f"{config.topic}.2", 3),
    ]
    made = admin.describe(f"{config.topic}.2.by-item")
    assert made is not None and made.partitions == 3
    assert newest_config(site.rows, config).topic == f"{config.topic}.2"
    assert open_config(site.rows, config) == config.at(grown.topics[0], 1)
    assert run(find_place(config, site.servers, users_done)).topic == config.topic
    assert [each.topic for each in run(find_all(config, site.servers))] == [config.topic]
    second = site.second()
    assert second.topics[config.rank_topic] == 2 and second.topics[second.item_topic] == 3
    with pytest.raises(StreamError, match="to be open for readers"):
        run(check_open(site.store, second))
    with pytest.raises(StreamError, match="restart this process: it begins where"):
        run(site.place(second, admin).check())


def test_what_cannot_be_grown(site: Site) -> None:
    with pytest.raises(StreamError, match="another number than 2"):
        site.grow(2)
    site.grow(3)
    with pytest.raises(StreamError, match="the last move to be over"):
        site.grow(4)


def test_of_two_changes_at_once_one_wins(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lost(*_: object) -> bool:
        return False

    monkeypatch.setattr(AsyncMemoryRowStore, "compare_and_set_text", lost)
    with pytest.raises(StreamError, match="a record that nobody changes meanwhile"):
        site.grow(3)


def test_a_wiped_store_is_told_of_by_the_broker(site: Site, admin: Admin) -> None:
    run(check_known(site.store, admin, site.config))
    site.grow(3)
    run(check_known(site.store, admin, site.config))
    with pytest.raises(StreamError, match="the store was wiped, or is another"):
        run(check_known(AsyncMemoryRowStore(MemoryRowStore()), admin, site.config))


# --- end ------------------------------------------------------------------------------------


def test_an_end_needs_a_successor(site: Site) -> None:
    with pytest.raises(StreamError, match="a topic to move to"):
        site.end()


def test_an_end_that_was_not_heard_of_counts(site: Site) -> None:
    """The first end record is the end, whoever sends another."""
    site.grow(3)
    unheard = replace(REAL_SERVERS, send_end=send_unheard)
    with pytest.raises(StreamError, match="unheard"):
        site.end(unheard)
    assert not run(read_succession(site.store, site.config)).topics[0].ended
    ended = site.end()
    assert ended.topics[0].end is not None
    assert ended.topics[0].end.offsets == {0: 0, 1: 0}
    assert site.end() == ended
    assert run(behind_ends(site.config, ended.topics[0])) == {0: 1}, "the second end record"
    assert run(carry(site.store, site.config, lambda: 1)).sent == 0


async def send_unheard(bootstrap: str, place: Partition, successor: str) -> int:
    await send_end(bootstrap, place, successor)
    raise StreamError("broker", required="to be heard", got="unheard")


def test_no_end_while_something_is_staged(site: Site) -> None:
    site.grow(3)
    staged = Staged("filling", Plan(1, 0, (), ()), {"v": 2}, {"v": 2})
    site.rows.put_text(STAGED_KEY, dump_staged(staged))
    with pytest.raises(StreamError, match="no backfill under way"):
        site.end()
    assert run(read_succession(site.store, site.config)).topics[0].end is None
    site.rows.put_text(STAGED_KEY, dump_staged(Staged()))
    assert site.end().topics[0].ended


@dataclass
class ChangingAdmin:
    """A broker that loses its log again and again."""

    asked: int = 0

    def describe(self, topic: str) -> TopicFacts:
        self.asked += 1
        return TopicFacts(topic, f"id-{self.asked}", 2)

    def ensure_topics(self, topics: Any) -> dict[str, TopicFacts]:
        return {topic: self.describe(topic) for topic in topics}

    def close(self) -> None:
        """There is no connection."""


def test_an_end_needs_a_log_that_stays(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stays(self: Source) -> None:
        return

    monkeypatch.setattr(Source, "check", stays)
    site.grow(3)
    with pytest.raises(StreamError, match="another each time, 3 times"):
        losing = ChangingAdmin()
        site.end(replace(REAL_SERVERS, open_admin=lambda config: losing))


def test_a_confirmed_end_is_needed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(**_: object) -> Any:
        raise KafkaError("away")

    monkeypatch.setattr(producer, "KafkaProducer", away)
    with pytest.raises(StreamError, match="a confirmed end record"):
        run(send_end(site.config.bootstrap, (site.config.topic, 0), "next"))


def test_starts_of_partitions(site: Site) -> None:
    place = site.config.topic, 0
    assert run(read_starts(site.config.bootstrap, [place])) == {place: 0}
    with pytest.raises(StreamError, match="the starts of 1 partitions"):
        run(read_starts("127.0.0.1:1", [place], timeout_ms=200))


# --- going on -------------------------------------------------------------------------------


def send(config: StreamConfig, topic: str, partitions: int, seed: int = 0) -> Any:
    actions = some_actions(40, 30, seed)
    with ActionProducer(config.bootstrap, topic, partitions) as sender:
        return actions, sender.send(actions, int(actions["time_ms"].max()))


class _Away:
    """A store that is away for a moment."""

    async def get_text(self, key: str) -> str | None:
        raise StoreError("store", required="an answer", got="none")


def test_the_next_topic_waits_for_all_of_the_old_one(site: Site, admin: Admin) -> None:
    config = site.config
    _, ends = send(config, config.topic, 2)
    site.grow(3)
    with pytest.raises(StreamError, match="a move"):
        run(check_settled(site.store, admin, site.second()))
    run(check_settled(site.store, admin, config))
    ended = site.end().topics[0]
    assert ended.end is not None and ended.end.offsets == {0: ends[0], 1: ends[1]}
    second = site.second()
    place = site.place(second, admin)
    with pytest.raises(StreamError, match=f"all of {config.topic} to be stored before"):
        run(place.check())
    with pytest.raises(StreamError, match="is not stored to its end"):
        run(check_settled(site.store, admin, second))
    old = site.place(config, admin)
    run(old.look_now_and_then(at_end=True))  # not yet
    epoch = site.rows.epoch_of(root_topic(config.topic), ended.end.topic_id)
    marks = {p: (epoch, at, 0) for p, at in ended.end.offsets.items()}
    site.rows.put_progress(config.topic, config.group, marks)
    run(place.check())
    run(check_open(site.store, second))
    assert run(find_place(config, site.servers, users_done)) == second
    away = cast(AsyncMemoryRowStore, _Away())
    run(Place(away, admin, config, users_done, lambda: 1.0).look_now_and_then(at_end=True))
    with pytest.raises(MovedError):
        run(site.place(config, admin).look_now_and_then(at_end=True))
    with pytest.raises(MovedError):
        run(check_no_other(site.store, config))
    assert [each.number for each in run(find_all(config, site.servers))] == [1, 2]


def test_every_generation_is_waited_for(site: Site) -> None:
    """One that was begun in the old topic; one that comes later gets nothing of it any more."""
    config = site.config
    _, ends = send(config, config.topic, 2)
    site.grow(3)
    end = site.end().topics[0].end
    assert end is not None
    epoch = site.rows.epoch_of(root_topic(config.topic), end.topic_id)
    marks = {partition: (epoch, at, 0) for partition, at in ends.items()}
    site.rows.put_progress(config.topic, config.group, marks)
    view = own_plan(config.topic).views[0]
    begun = dict.fromkeys(ends, (epoch, 0))
    run(record_floors(site.store, config.topic, config.group, view, begun))
    site.rows.put_text(PLAN_KEY, dump_plan(Plan(1, 0, (view,), ())))
    old = Ended(config, end, lost=False)
    assert not run(users_done(site.store, old))
    group = generation_group(config.group, view.name, view.generation)
    site.rows.put_progress(config.topic, group, marks)
    assert run(users_done(site.store, old))
    later = replace(view, generation=view.generation + 1)
    site.rows.put_text(PLAN_KEY, dump_plan(Plan(2, 1, (later,), ())))
    assert run(users_done(site.store, old))
    floors = run(recorded_floors(site.store, config.topic, config.group, later))
    assert floors == {partition: (epoch, at) for partition, at in ends.items()}


def test_what_a_lost_log_took_along_is_told(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """A generation is without all that lies before the end, also where the group had not read on
    that far; it is told once."""
    config = site.config
    view = own_plan(config.topic).views[0]
    site.rows.put_text(PLAN_KEY, dump_plan(Plan(1, 0, (view,), ())))
    end = End("lost", {0: 9, 1: 4}, True)
    epoch = site.rows.epoch_of(root_topic(config.topic), end.topic_id)
    run(record_floors(site.store, config.topic, config.group, view, {0: (epoch, 2)}))
    site.rows.put_progress(config.topic, config.group, {0: (epoch, 7, 0)})
    for _ in range(2):
        assert run(users_done(site.store, Ended(config, end, lost=True)))
    assert len([each for each in caplog.messages if "lacks offsets 2 to 8" in each]) == 1
    gaps = run(recorded_gaps(site.store, (config.topic, config.group), view))
    assert gaps == {0: (Gap(epoch, 2, 9),)}
    assert run(items_done(site.store, Ended(config, end, lost=True)))


def test_a_log_that_replaced_the_one_that_ends(site: Site, admin: Admin) -> None:
    site.grow(3)
    ended = site.end().topics[0]
    assert ended.end is not None
    place = site.place(site.config, admin)
    run(place.check_log(ended.end.topic_id))
    with pytest.raises(StreamError, match="the broker lost that log"):
        run(place.check_log("another"))


def test_what_comes_behind_the_end_is_carried_once(site: Site) -> None:
    """Messages hold users of several partitions of the new topic."""
    config = site.config
    site.grow(3)
    ended = site.end().topics[0]
    first, _ = send(config, config.topic, 2, 1)
    second, _ = send(config, config.topic, 2, 2)
    with raw_producer(config.bootstrap) as raw:
        raw.send(config.topic, value=b"nonsense", key=b"1", partition=0).get(60)
    assert sum(run(behind_ends(config, ended)).values()) == 5
    done = run(carry(site.store, config, lambda: 1_000_000))
    assert len(done.refused) == 1 and done.before == 0
    again = run(carry(site.store, config, lambda: 2_000_000))
    assert (again.sent, again.before) == (0, done.sent)
    found = read_topic(config.bootstrap, f"{config.topic}.2", 3, done.sent)
    parts = [decode_records([record], 3) for record in found]
    assert not any(dead for _, dead in parts)
    carried = np.concatenate([part.actions for part, _ in parts])
    sent = np.concatenate([first, second])
    assert sorted(plain(carried[n : n + 1]) for n in range(len(carried))) == sorted(
        plain(sent[n : n + 1]) for n in range(len(sent))
    )


# --- the record -----------------------------------------------------------------------------


def test_the_record_comes_back() -> None:
    found = Succession.of("a", 2).grown("a.2", 3).with_end("a", End("id", {0: 4, 1: 0}, True))
    assert load_succession(dump_succession(found), "a", 2, "here") == found
    assert [each.name for each in found.open] == ["a", "a.2"]
    assert load_succession(None, "a", 2, "here") == Succession.of("a", 2)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2}', '{"format": 1, "topics": []}'])
def test_another_text_is_no_record(text: str) -> None:
    with pytest.raises(StreamError, match="a record of topics of format 1"):
        load_succession(text, "a", 2, topics_keys("a")[0])
