"""A message that is larger than a dead letter may be: everyone gets past it, and it is counted."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.names import dead_letter_topic
from store.redis_store import AsyncRedisRowStore
from streams.admin import ensure_topics
from streams.clients import KafkaProducer
from streams.dead_letters import Letter, Redriven
from streams.desk import Desk
from streams.producer import MAX_MADE_BYTES, ActionProducer, producer_settings
from streams.status import read_status
from tests.patience import WAIT_S
from tests.streams.support import (
    PARTITIONS,
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
from tests.streams.test_moving import archived, fill, reached, wait_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

MB = 1 << 20


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    """A user view and an item view."""
    made = make_stack(broker, valkey, tmp_path / "data", roll_ms=300)
    ensure_topics(broker, made.config.topics)
    return with_item_view(made)


def send_large(stack: Stack) -> int:
    """A message that nobody can read, between others of partition 0; its offset."""
    settings = producer_settings(stack.config.bootstrap) | {"max_request_size": 64 * MB}
    producer: Any = KafkaProducer(**settings)
    try:
        value = b"x" * (MAX_MADE_BYTES + 4 * MB)
        sent = producer.send(stack.config.topic, value=value, key=b"7", partition=0)
        return int(sent.get(60).offset)
    finally:
        producer.close()


def at_desk(stack: Stack, work: Any) -> Any:
    async def run() -> Any:
        async with (
            AsyncRedisRowStore(patient(stack.config.store_url)) as store,
            Desk(stack.config, store, stack.config.topic, lambda: T0) as desk,
        ):
            return await work(desk)

    return asyncio.run(run())


def test_all_get_past_it(stack: Stack) -> None:
    """Worker, item worker and sink go on, a backfill as well. The letter says which message it was
    of, and is not put back. What was logged is folded, late, or that one letter."""
    config = stack.config
    parts = [some_actions(80, 30, seed, span_ms=1_000) for seed in range(6)]
    facts = ensure_topics(config.bootstrap, config.topics)[config.topic]
    with ExitStack() as held:
        kinds = "worker", "items", "sink"
        processes = [held.enter_context(running(kind, stack)) for kind in kinds]
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            for part in parts[:3]:
                producer.send(part, T0 + 1_000)
            large = send_large(stack)
            for part in parts[3:]:
                ends = producer.send(part, T0 + 1_000)
        wait_all(stack, config, ends)
        wait_until(lambda: reached(config) >= sum(ends.values()), WAIT_S)
        wait_until(lambda: archived(stack, facts.topic_id) == ends, WAIT_S)
        wait_until(lambda: asyncio.run(dead_by_partition(stack)) == {0: 1, 1: 0}, WAIT_S)
        letters: list[Letter] = at_desk(stack, lambda desk: desk.last(10))
        done: Redriven = at_desk(stack, lambda desk: desk.redrive(None))
        for view in stack.plan.views:
            asyncio.run(fill(stack, config, replace(view, generation=2)))
        assert [each.terminate() for each in processes] == [0, 0, 0]
    (letter,) = letters
    assert (letter.source, letter.value) == (f"{config.topic}/0/{large}", b"")
    assert letter.left_out_bytes == MAX_MADE_BYTES + 4 * MB + len(b"7")
    assert letter.source in letter.reason
    assert done == Redriven((), (), {0: done.refused[0]})
    assert f"too many for a letter; {letter.source} has them" in done.refused[0]
    sent = [(part, T0 + 1_000) for part in parts]
    with stack.store() as store:
        for generation in (1, 2):
            users, by_item = (replace(view, generation=generation) for view in stack.plan.views)
            assert_rows_equal_oracle(store, users, sent)
            assert_item_rows(store, by_item, sent)


async def dead_by_partition(stack: Stack) -> dict[int, int]:
    """As `encore stream status` counts them; the dead-letter topic has as many."""
    async with AsyncRedisRowStore(patient(stack.config.store_url)) as store:
        status = await read_status(stack.config, store, T0)
    assert status.aside[dead_letter_topic(stack.config.topic)] == 1
    return {line.partition: line.counts.dead for line in status.lines if line.does == "rows"}
