"""A filled generation is caught up beside the stream: on a real log, under load, through a kill."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from schemas.errors import StreamError
from schemas.names import PLAN_VERSION_KEY, STAGED_KEY, generation_group
from schemas.plan import Plan, ViewPlan
from schemas.staged import Staged, dump_staged
from store.redis_store import AsyncRedisRowStore
from streams.admin import ensure_topics
from streams.generations import record_floors
from streams.log_reader import KafkaLogReader
from streams.producer import ActionProducer
from tests.streams.support import (
    PARTITIONS,
    Stack,
    assert_rows_equal_oracle,
    make_stack,
    patient,
    running,
    some_actions,
    wait_stored,
    wait_until,
)
from tests.streams.test_folding import Batch


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    made = make_stack(broker, valkey, tmp_path / "data")
    ensure_topics(broker, made.config.topics)
    return made


@dataclass
class Sent:
    """Messages of one user each, with their places."""

    stack: Stack
    messages: list[tuple[Batch, int, int]] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)

    def send(self, producer: ActionProducer, count: int) -> None:
        for _ in range(count):
            part = some_actions(60, 9, len(self.messages))
            part = part[part["user"] == part["user"][0]]
            batch = part, int(part["time_ms"].max())
            ((partition, end),) = producer.send(*batch).items()
            self.messages.append((batch, partition, end - 1))
            self.ends[partition] = end

    def beyond(self, floors: dict[int, int]) -> list[Batch]:
        return [batch for batch, p, offset in self.messages if offset >= floors[p]]


@contextmanager
def sending(sent: Sent, producer: ActionProducer) -> Iterator[None]:
    """Load, in a thread."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(0.01):
            sent.send(producer, 2)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def stage_filled(stack: Stack, view: ViewPlan, floors: dict[int, int]) -> None:
    """As a backfill of nothing leaves the store."""

    async def record() -> None:
        async with AsyncRedisRowStore(patient(stack.config.store_url)) as store:
            wanted = {p: (1, at) for p, at in floors.items()}
            await record_floors(store, stack.config.topic, stack.config.group, view, wanted)

    asyncio.run(record())
    staged = Staged("filled", Plan(2, 1, (view,), ()), {view.name: view.generation})
    with stack.store() as store:
        version = int(store.get_text(PLAN_VERSION_KEY) or 0)
        text = dump_staged(staged)
        assert store.compare_and_set_text(STAGED_KEY, PLAN_VERSION_KEY, version, text)


def unstage(stack: Stack) -> None:
    with stack.store() as store:
        store.put_text(STAGED_KEY, dump_staged(Staged()))


def test_a_filled_generation_is_caught_up_under_load(stack: Stack) -> None:
    new, sent = replace(stack.view, generation=2), Sent(stack)
    group = generation_group(stack.config.group, new.name, 2)
    with (
        stack.store() as store,
        ActionProducer(stack.config.bootstrap, stack.config.topic, PARTITIONS) as producer,
        running("worker", stack) as worker,
    ):
        sent.send(producer, 30)
        wait_stored(stack, sent.ends)
        floors = {p: end // 2 for p, end in sent.ends.items()}
        with sending(sent, producer):
            stage_filled(stack, new, floors)
            wait_stored(stack, dict(sent.ends), group)
            worker.kill()
            with running("worker", stack) as again:
                wait_until(lambda: len(sent.messages) > 60)
                wait_stored(stack, dict(sent.ends), group)
                assert again.terminate() == 0
        with running("worker", stack) as last:
            wait_stored(stack, sent.ends)
            wait_stored(stack, sent.ends, group)
            assert last.terminate() == 0
        assert_rows_equal_oracle(store, stack.view, [batch for batch, _, _ in sent.messages])
        assert 15 <= len(sent.beyond(floors)) < len(sent.messages)
        assert_rows_equal_oracle(store, new, sent.beyond(floors))
    unstage(stack)


def test_a_span_is_read_without_a_group(stack: Stack) -> None:
    topic, sent = stack.config.topic, Sent(stack)
    with ActionProducer(stack.config.bootstrap, topic, PARTITIONS) as producer:
        sent.send(producer, 12)
    partition, end = max(sent.ends.items(), key=lambda each: each[1])

    async def scenario() -> None:
        reader = KafkaLogReader(stack.config.bootstrap, 60_000)
        hurried = KafkaLogReader(stack.config.bootstrap, 500)
        try:
            for first, before in ((1, end), (0, 3), (2, 3), (3, end)):
                at = first
                while at < before:
                    records = await reader.read(topic, partition, at, before)
                    offsets = [record.offset for record in records]
                    assert offsets == list(range(at, at + len(records)))
                    at += len(records)
                assert at == before
            with pytest.raises(StreamError, match=rf"record at offset {end} within 500 ms"):
                await hurried.read(topic, partition, end, end + 1)
        finally:
            await reader.close()
            await hurried.close()

    asyncio.run(scenario())
    assert sum(sent.ends.values()) == 12
