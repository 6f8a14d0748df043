"""The topic that is being left dropped what was not folded yet: the way out that is documented."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.errors import StreamError
from store.redis_store import AsyncRedisRowStore
from streams.admin import Admin, ensure_topics
from streams.config import StreamConfig
from streams.moving import config_of
from streams.producer import ActionProducer
from streams.status import read_status
from tests.patience import WAIT_S
from tests.streams.bucket import Bucket, broker_over
from tests.streams.support import (
    T0,
    Stack,
    assert_rows_equal_oracle,
    make_stack,
    patient,
    running,
    some_actions,
    wait_until,
    with_item_view,
)
from tests.streams.test_item_worker import assert_item_rows
from tests.streams.test_moving import archived, end, fill, grow, reached, wait_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

Sent = tuple[NDArray[np.void], int]


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as made:
        yield made


@pytest.fixture
def stack(bucket: Bucket, valkey: str, tmp_path: Path) -> Iterator[Stack]:
    """A user view and an item view."""
    with broker_over(bucket, tmp_path / "broker") as bootstrap:
        made = make_stack(bootstrap, valkey, tmp_path / "data", roll_ms=300)
        ensure_topics(bootstrap, made.config.topics)
        yield with_item_view(made)


def send(config: StreamConfig, sent: list[Sent], messages: int) -> dict[int, int]:
    """{partition: the offset after the last}."""
    ends: dict[int, int] = {}
    with ActionProducer(config.bootstrap, config.topic, config.partitions) as producer:
        for _ in range(messages):
            part = some_actions(50, 60, len(sent))
            sent.append((part, int(part["time_ms"].max())))
            ends |= producer.send(*sent[-1])
    return ends


def test_a_hole_in_the_topic_that_is_left(stack: Stack, bucket: Bucket) -> None:
    """Nobody gets over it, and a rebuild refuses while the move is under way. Once the sink has
    all, the old topic is deleted: readers go on, what they lack is told, a rebuild brings it."""
    old, sent = stack.config, list[Sent]()
    with ExitStack() as held:
        sink = held.enter_context(running("sink", stack))
        with running("worker", stack) as worker, running("items", stack) as items:
            first = send(old, sent, 4)
            wait_all(stack, old, first)
            wait_until(lambda: reached(old) >= sum(first.values()), WAIT_S)
            assert (worker.terminate(), items.terminate()) == (0, 0)
        second = send(old, sent, 4)
        new = config_of(old, grow(stack, 3), 2)
        ends = send(new, sent, 4)
        last = end(stack).topics[0].end
        assert last is not None and last.offsets == second
        newest_id = ensure_topics(new.bootstrap, new.topics)[new.topic].topic_id
        wait_until(lambda: archived(stack, last.topic_id) == second, WAIT_S)
        for partition, before in second.items():
            assert bucket.drop(old.topic, partition, first[partition], before)

        with running("worker", stack) as worker, running("items", stack) as items:
            for process in (worker, items):
                assert process.wait(WAIT_S) == 1
                assert "messages are missing" in process.text()
        for view in stack.plan.views:
            with pytest.raises(StreamError, match=f"a move: {old.topic} is not .* docs/topics.md"):
                asyncio.run(fill(stack, new, replace(view, generation=2)))

        # The sink has gone on by now: it reads the new topic beside the old one.
        wait_until(lambda: archived(stack, newest_id) == ends, WAIT_S)
        delete(old)
        assert sink.wait(WAIT_S) == 1, "of a log that is gone; its next start looks for the others"
        delete(old)
        kinds = "worker", "items", "sink"
        others = [held.enter_context(running(kind, stack)) for kind in kinds]
        ends |= send(new, sent, 1)
        wait_all(stack, new, ends)
        wait_until(lambda: reached(new) >= sum(ends.values()), WAIT_S)
        wait_until(lambda: archived(stack, newest_id) == ends, WAIT_S)
        assert asyncio.run(lacks(stack)) == {view.name for view in stack.plan.views}
        for view in stack.plan.views:
            asyncio.run(fill(stack, new, replace(view, generation=2)))
        assert [each.terminate() for each in others] == [0, 0, 0]
    users, by_item = (replace(view, generation=2) for view in stack.plan.views)
    with stack.store() as store:
        assert_rows_equal_oracle(store, users, sent)
        assert_item_rows(store, by_item, sent)


def delete(config: StreamConfig) -> None:
    """The topic and its re-keyed one, where they are. The embedded broker makes a topic for whoever
    asks where it lies, as a reader may do that does not know yet that it is gone."""
    with Admin(config.bootstrap) as admin:
        for topic in (config.topic, config.item_topic):
            if admin.describe(topic) is not None:
                admin.delete_topic(topic)


async def lacks(stack: Stack) -> set[str]:
    """The views of which `encore stream status` says that they lack something of the old topic."""
    config = stack.config
    async with AsyncRedisRowStore(patient(config.store_url)) as store:
        found = (await read_status(config, store, T0)).lacks
    assert {each.topic for each in found} == {config.topic, config.item_topic}
    return {each.view for each in found}
