"""The item worker as a process, on the real broker and store; killed mid-load, rows exact."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from encore.kuairand import load_timeline
from schemas.actions import ACTION
from schemas.names import dead_letter_topic, generation_group, late_topic, row_keys
from schemas.plan import Plan, ViewPlan
from schemas.rekeyed import SOURCE, SOURCE_RANGE, RekeyedBatch, encode_rekeyed
from store.base import RowStore
from store.redis_store import AsyncRedisRowStore
from streams.admin import ensure_topics
from streams.plans import fed_views
from streams.producer import ActionProducer
from streams.replay import StreamMark, item_mark, ticks_of
from streams.replay import wait_stored as wait_mark
from tests.patience import WAIT_S
from tests.streams.support import (
    KILLED_S,
    PARTITIONS,
    T0,
    Stack,
    assert_rows_equal_oracle,
    killed_under_load,
    make_stack,
    own_plan,
    patient,
    raw_producer,
    read_topic,
    running,
    some_actions,
    wait_stored,
)
from tests.streams.test_sink import archive_of

KUAIRAND = Path(__file__).parents[2] / "examples" / "kuairand"
KILLS = 2
Sent = list[tuple[NDArray[np.void], int]]


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    """One item view, fed from the topic re-keyed by item."""
    made = make_stack(broker, valkey, tmp_path / "data", batch_actions=500, roll_ms=200)
    view = replace(made.view, entity="item", source=made.config.item_topic)
    ensure_topics(broker, made.config.topics)
    return replace(made, plan=replace(made.plan, views=(view,)))


def wait_items(stack: Stack, ends: dict[int, int], timeout_s: float = WAIT_S) -> None:
    """Until all item rows have these source offsets, as a replay waits."""
    config = stack.config

    async def wait() -> None:
        async with AsyncRedisRowStore(patient(config.store_url)) as store:
            mark = StreamMark(store, config.topic, config.group, 1)
            await wait_mark(item_mark(mark, config.item_group, PARTITIONS), ends, timeout_s)

    asyncio.run(wait())


def assert_item_rows(store: RowStore, view: ViewPlan, sent: Iterable[tuple[Any, int]]) -> None:
    """As `assert_rows_equal_oracle`, which groups actions by their user: an item stands in."""
    by_item = []
    for actions, sent_ms in sent:
        swapped = actions.copy()
        swapped["user"], swapped["item"] = actions["item"], actions["user"]
        by_item.append((swapped, sent_ms))
    assert_rows_equal_oracle(store, by_user(view), by_item)


def by_user(view: ViewPlan) -> ViewPlan:
    """The view as it reads actions whose user and item are swapped."""
    other = {"user": "item", "item": "user"}
    sequences = tuple(
        replace(each, columns=tuple(other.get(column, column) for column in each.columns))
        for each in view.sequences
    )
    return replace(view, sequences=sequences)


def tick_parts(count: int) -> Sent:
    """The first ticks of KuaiRand, as the replay sends them."""
    actions = load_timeline(KUAIRAND, 0, 0).actions
    ticks = list(ticks_of(actions["time_ms"], np.zeros(0, np.int64), 600_000))[:count]
    return [(actions[tick.actions], tick.end_ms) for tick in ticks]


def test_item_rows_of_real_ticks_equal_the_oracle(stack: Stack) -> None:
    """Late, future and in time: as judged by the message that the user's actions came in."""
    config = stack.config
    view = replace(stack.view, skew_ms=420_000, future_ms=60_000)
    stack = replace(stack, plan=replace(stack.plan, views=(view,)))
    sent = tick_parts(12)
    assert sum(len(part) for part, _ in sent) > 300
    with running("items", stack) as items:
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            for part, sent_ms in sent:
                ends = producer.send(part, sent_ms)
        wait_items(stack, ends)
        with stack.store() as store:
            assert_item_rows(store, view, sent)
            videos = np.unique(np.concatenate([part["item"] for part, _ in sent])).tolist()
            rows = store.read(row_keys(view.name, view.generation, videos))
            assert sum(row is not None for row in rows) > 50
        assert read_topic(config.bootstrap, late_topic(config.item_topic), 1, 1)
        assert items.terminate() == 0
    assert "0 re-keyed twice" in items.text()
    assert set(watermarks_ms(stack).values()) == {sent[-1][1]}


def watermarks_ms(stack: Stack) -> dict[int, int]:
    """What serving processes are told of the view, by re-keyed partition."""
    config = stack.config
    with stack.store() as store:
        group = generation_group(config.item_group, *stack.view.key)
        held = store.get_progress(stack.view.source, group)
    return {partition: mark.watermark_ms for partition, mark in held.items()}


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.timeout(420)
def test_killed_while_re_keying_and_folding(stack: Stack) -> None:
    load = killed_under_load(stack, "items", folded_messages, KILLS)
    with running("items", stack) as items:
        wait_items(stack, load.ends, KILLED_S)
        assert items.terminate() == 0
    with stack.store() as store:
        assert_item_rows(store, stack.view, load.sent)


def folded_messages(stack: Stack) -> int:
    return sum(next_offset(stack, partition) for partition in range(PARTITIONS))


def test_what_is_re_keyed_again_counts_once(stack: Stack) -> None:
    """The position in the source is lost; the archive keeps the log as it is, the rows do not."""
    config = stack.config
    sent = [(some_actions(100, 30, seed), T0 + 20_000) for seed in range(6)]
    with (
        running("sink", stack) as sink,
        ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer,
    ):
        for parts in (sent[:4], sent[4:]):
            with running("items", stack) as items:
                for part, sent_ms in parts:
                    ends = producer.send(part, sent_ms)
                wait_items(stack, ends)
                assert items.terminate() == 0
            forget_rekeyed(stack)
        assert "400 re-keyed twice" in items.text()
        with stack.store() as store:
            assert_item_rows(store, stack.view, sent)
        high = {p: next_offset(stack, p) for p in range(PARTITIONS)}
        named = replace(stack, config=replace(config, topic=config.item_topic))
        wait_stored(named, high, config.archive_group)
        assert sink.terminate() == 0
    table = archive_of(stack, config.item_topic)
    assert table.num_rows == 1_000
    place = ["source_partition", "source_offset", "source_index"]
    once = table.group_by([*place, "time_ms"]).aggregate([])
    source = archive_of(stack, config.topic)
    assert sorted(once["time_ms"].to_pylist()) == sorted(source["time_ms"].to_pylist())
    assert once.num_rows == 600


def forget_rekeyed(stack: Stack) -> None:
    """As if the process had died before it stored any position of the source."""
    import redis

    client = redis.Redis.from_url(stack.config.store_url)
    keys: Any = client.keys(f"encore:progress:{stack.config.topic}:*.rekey.*")
    assert len(keys) == 1
    client.delete(*keys)
    client.close()


def next_offset(stack: Stack, partition: int) -> int:
    config = stack.config

    async def load() -> int:
        async with AsyncRedisRowStore(patient(config.store_url)) as store:
            mark = StreamMark(store, config.topic, config.group, 1)
            pair = await item_mark(mark, config.item_group, PARTITIONS).tables.load(partition)
            return pair.next_offset

    return asyncio.run(load())


def test_what_is_not_ours_is_a_dead_letter_and_a_missing_message_ends_the_process(
    stack: Stack,
) -> None:
    config = stack.config
    part = some_actions(50, 20)
    with running("items", stack) as items:
        with raw_producer(config.bootstrap) as raw:
            raw.send(config.item_topic, value=b"garbage", key=b"1", partition=0).get(60)
            raw.send(config.topic, value=b"garbage", key=b"1", partition=0).get(60)
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            wait_items(stack, producer.send(part, T0 + 20_000))
        dead = read_topic(config.bootstrap, dead_letter_topic(config.item_topic), 1, 1)
        assert dead[0].value == b"garbage"
        with raw_producer(config.bootstrap) as raw:
            value = encode_rekeyed(empty_batch(source_offset=7))
            raw.send(config.item_topic, value=value, partition=1).get(60)
        assert items.wait() == 1
        assert "needs source offset 2 of partition 0 next, got the range [7, 8)" in items.text()
        assert "Traceback" not in items.text()
    with stack.store() as store:
        assert_item_rows(store, stack.view, [(part, T0 + 20_000)])


def empty_batch(source_offset: int) -> RekeyedBatch:
    """Covers one message of source partition 0 in its first log, which held nothing."""
    covers = np.zeros(1, SOURCE_RANGE)
    covers[0] = (source_offset, source_offset + 1, 1, 0)
    return RekeyedBatch(0, np.zeros(0, ACTION), np.zeros(0, SOURCE), covers)


def test_item_views_are_those_of_the_re_keyed_topic() -> None:
    view = own_plan("t").views[0]
    views = (
        view,
        replace(view, name="of_item", entity="item", source="t.by-item"),
        replace(view, name="of_another", entity="item", source="u.by-item"),
        replace(view, name="batch", entity="item", source="t.by-item", kind="batch"),
    )
    found = fed_views(Plan(1, 0, views, ()), "item", "t.by-item")
    assert [view.name for view in found] == ["of_item"]
