"""The actions move to a new topic while they are folded: rows hold both, each action once."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.ids import partitions_of
from schemas.plan import ViewPlan
from schemas.succession import Succession
from store.redis_store import AsyncRedisRowStore
from streams import growing
from streams.admin import ensure_topics
from streams.archive import list_files, name_log, next_offset
from streams.backfill import BackfillConfig, fill_view
from streams.config import StreamConfig
from streams.moving import config_of, newest_config
from streams.producer import ActionProducer
from streams.source_table import PairStore, lowest_reached
from tests.streams.support import (
    Stack,
    assert_rows_equal_oracle,
    make_stack,
    patient,
    running,
    some_actions,
    wait_until,
    with_item_view,
)
from tests.streams.test_backfill import archive
from tests.streams.test_item_worker import assert_item_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def newest(stack: Stack) -> StreamConfig:
    with stack.store() as store:
        return newest_config(store, stack.config)


def grow(stack: Stack, partitions: int) -> Succession:
    async def run() -> Succession:
        async with AsyncRedisRowStore(patient(stack.config.store_url)) as store:
            return await growing.grow(store, stack.config, partitions)

    return asyncio.run(run())


def end(stack: Stack) -> Succession:
    async def run() -> Succession:
        async with AsyncRedisRowStore(patient(stack.config.store_url)) as store:
            return await growing.end(store, stack.config)

    return asyncio.run(run())


class MovingLoad:
    """Message after message from a thread, into the newest topic that is recorded."""

    def __init__(self, stack: Stack, pause_s: float) -> None:
        self.sent: list[tuple[NDArray[np.void], int]] = []
        self.ends: dict[str, dict[int, int]] = {}
        self._stack, self._pause_s = stack, pause_s
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._enough.is_set():
            config = newest(self._stack)
            with ActionProducer(config.bootstrap, config.topic, config.partitions) as producer:
                while newest(self._stack) == config:
                    part = some_actions(50, 60, len(self.sent))
                    self.sent.append((part, int(part["time_ms"].max())))
                    ends = producer.send(*self.sent[-1])
                    self.ends[config.topic] = self.ends.get(config.topic, {}) | ends
                    if self._enough.wait(self._pause_s):
                        return


def stored(config: StreamConfig, stack: Stack) -> dict[int, int]:
    with stack.store() as store:
        marks = store.get_progress(config.topic, config.group)
    return {partition: mark.next_offset for partition, mark in marks.items()}


def wait_all(stack: Stack, config: StreamConfig, ends: dict[int, int]) -> None:
    wait_until(lambda: all(stored(config, stack).get(p, 0) >= at for p, at in ends.items()))


def archived(stack: Stack, topic_id: str) -> dict[int, int]:
    """Partition → up to where it lies in the archive."""
    log = stack.config.archive_dir / stack.config.topic / f"topic_id={topic_id}"
    found = {int(each.name.partition("=")[2]): each for each in log.glob("partition=*")}
    return {partition: next_offset(list_files(path)) or 0 for partition, path in found.items()}


def test_a_move_under_load_with_a_kill(broker: str, valkey: str, tmp_path: Path) -> None:
    """Two workers and the sink go on with the new topic by themselves; one worker is killed."""
    stack = make_stack(broker, valkey, tmp_path / "data", partitions=2, roll_ms=300)
    ensure_topics(broker, stack.config.topics)
    with ExitStack() as held:
        sink = held.enter_context(running("sink", stack))
        workers = [held.enter_context(running("worker", stack)) for _ in range(2)]
        with MovingLoad(stack, 0.01) as load:
            wait_until(lambda: sum(stored(stack.config, stack).values()) > 5)
            new = config_of(stack.config, grow(stack, 3), 2)
            wait_until(lambda: new.topic in load.ends)
            assert not stored(new, stack), "nothing of it is read before the old one has ended"
            last = end(stack).topics[0].end
            workers.pop().kill()
            workers.append(held.enter_context(running("worker", stack)))
            wait_until(lambda: sum(stored(new, stack).values()) > 5)
        wait_all(stack, new, load.ends[new.topic])
        assert last is not None
        facts = ensure_topics(broker, new.topics)[new.topic]
        wait_until(lambda: archived(stack, facts.topic_id) == load.ends[new.topic])
        assert [each.terminate() for each in (*workers, sink)] == [0, 0, 0]
    ends = {partition: at for partition, at in last.offsets.items() if at}
    assert stored(stack.config, stack) == archived(stack, last.topic_id) == ends
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, load.sent)


def test_items_and_backfills_across_a_move(broker: str, valkey: str, tmp_path: Path) -> None:
    """Re-keyed anew into a topic of its own; generations that are filled after the move have what
    both topics held."""
    made = make_stack(broker, valkey, tmp_path / "data", partitions=2, roll_ms=300)
    stack = with_item_view(made)
    view = stack.plan.views[1]
    ensure_topics(broker, stack.config.topics)
    with ExitStack() as held:
        others = [held.enter_context(running(kind, stack)) for kind in ("sink", "worker")]
        items = [held.enter_context(running("items", stack)) for _ in range(2)]
        with MovingLoad(stack, 0.01) as load:
            wait_until(lambda: reached(stack.config) > 5)
            new = config_of(stack.config, grow(stack, 3), 2)
            wait_until(lambda: new.topic in load.ends)
            end(stack)
            items.pop().kill()
            items.append(held.enter_context(running("items", stack)))
            wait_until(lambda: reached(new) > 5)
        ends = load.ends[new.topic]
        wait_until(lambda: reached(new) >= sum(ends.values()))
        wait_all(stack, new, ends)
        filled = [replace(each, generation=2) for each in (made.view, view)]
        for each in filled:
            asyncio.run(fill(stack, new, each))
        assert [each.terminate() for each in (*items, *others)] == [0] * 4
    with stack.store() as store:
        for user_view, item_view in ((made.view, view), filled):
            assert_rows_equal_oracle(store, user_view, load.sent)
            assert_item_rows(store, item_view, load.sent)


def test_a_filling_takes_earlier_logs_whatever_partitions_they_had(
    broker: str, valkey: str, tmp_path: Path
) -> None:
    """Store and broker were set up anew, so only the archive knows that actions had moved on."""
    made = make_stack(broker, valkey, tmp_path / "data", partitions=2)
    by_item = with_item_view(made).plan.views[1]
    root = made.config.archive_dir / made.config.topic
    ensure_topics(broker, made.config.topics)
    made_of = [some_actions(200, 60, seed) for seed in range(6)]
    sent = [(actions, int(actions["time_ms"].max())) for actions in made_of]
    for topic_id, partitions, logged in (("first", 3, sent[:3]), ("second", 5, sent[3:])):
        for partition in range(partitions):
            own = [
                (actions[partitions_of(actions["user"], partitions) == partition], sent_ms)
                for actions, sent_ms in logged
            ]
            archive(root, topic_id, partition, own, 0)
    name_log(root, "second", f"{made.config.topic}.2", 5)  # what was archived before has no name
    for view in (made.view, by_item):
        asyncio.run(fill(made, made.config, view))
    with made.store() as store:
        assert_rows_equal_oracle(store, made.view, sent)
        assert_item_rows(store, by_item, sent)


def reached(config: StreamConfig) -> int:
    """Messages of a topic that are in the rows of items."""

    async def look() -> int:
        async with AsyncRedisRowStore(patient(config.store_url)) as store:
            tables = PairStore(store, config.item_topic, config.item_group, 1_000)
            pairs = {p: await tables.load(p) for p in range(config.partitions)}
        newest = max(
            (at[0] for pair in pairs.values() for at in pair.table.reached.values()), default=0
        )
        return sum(lowest_reached(pairs, p, newest) for p in range(config.partitions))

    return asyncio.run(look())


async def fill(stack: Stack, config: StreamConfig, view: ViewPlan) -> None:
    async with AsyncRedisRowStore(patient(stack.config.store_url)) as store:
        backfill = BackfillConfig(replace(config, durability="answered"))
        report = await fill_view(backfill, view, store, lambda *_: None)
    assert report.missing == 0
