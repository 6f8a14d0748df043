"""The broker loses its log, the store its memory, or stands still: each under a running worker."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from redis import Redis

from encore.local import Server, start_broker
from streams.admin import ensure_topics
from streams.producer import ActionProducer
from tests.reliability.worlds import (
    Sent,
    dump_keys,
    messages,
    restore_keys,
    stack_in,
    times_ms,
)
from tests.streams.support import (
    PARTITIONS,
    T0,
    Stack,
    assert_rows_equal_oracle,
    make_stack,
    running,
    send_all,
    some_actions,
    wait_stored,
    wait_until,
)
from tests.streams.test_sink import archive_of

pytestmark = pytest.mark.kill


def test_a_broker_that_lost_its_log(own_broker: Server, valkey: str, tmp_path: Path) -> None:
    """The same topic name, offsets from 0 again: a new epoch, and every action once."""
    stack = make_stack(own_broker.address, valkey, tmp_path / "data")
    config = stack.config
    sent: list[Sent] = []

    def send(count: int) -> dict[int, int]:
        ends: dict[int, int] = {}
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            for _ in range(count):
                sent.append((some_actions(30, 20, len(sent)), T0 + 20_000))
                ends |= producer.send(*sent[-1])
        return ends

    ensure_topics(config.bootstrap, config.topics)
    with running("worker", stack) as worker:
        wait_stored(stack, send(20))
        own_broker.child.kill()
        second = start_broker(tmp_path / "broker", own_broker.port)
        try:
            ensure_topics(config.bootstrap, config.topics)
            ends = send(5)  # fewer than before: the old positions lie beyond the new log
            assert worker.wait() == 1
            assert "the broker lost its log" in worker.text()
            with running("worker", stack) as successor:
                wait_epoch(stack, 2, ends)
                assert successor.terminate() == 0
        finally:
            second.child.kill()
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, sent)


def wait_epoch(stack: Stack, epoch: int, ends: dict[int, int]) -> None:
    def reached() -> bool:
        with stack.store() as store:
            marks = store.get_progress(stack.config.topic, stack.config.group)
        return all(
            marks[p].epoch == epoch and marks[p].next_offset >= end for p, end in ends.items()
        )

    wait_until(reached)


def test_a_store_that_stands_still_is_waited_for(
    broker: str, own_store: Server, tmp_path: Path
) -> None:
    stack = stack_in(broker, own_store, tmp_path, store_timeout_ms=4_000)
    config = stack.config
    sent = messages(20)
    with (
        running("worker", stack) as worker,
        ActionProducer(broker, config.topic, PARTITIONS) as producer,
    ):
        ends = send_all(producer, sent[:10])
        wait_stored(stack, ends)
        os.kill(own_store.child.pid, signal.SIGSTOP)
        ends = send_all(producer, sent[10:])
        wait_until(lambda: "failed, again in" in worker.text())
        os.kill(own_store.child.pid, signal.SIGCONT)
        wait_stored(stack, ends)
        assert worker.terminate() == 0
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, sent)


def test_rows_that_leave_under_a_running_worker_begin_anew(
    broker: str, own_store: Server, tmp_path: Path
) -> None:
    """By their physical TTL, which the worker set; those that it holds in memory, too."""
    made = stack_in(broker, own_store, tmp_path, retention_ms=60_000)
    view = replace(made.view, ttl_ms=60_000)
    stack = replace(made, plan=replace(made.plan, views=(view,)))
    sent = messages(10)
    with (
        running("worker", stack) as worker,
        ActionProducer(broker, stack.config.topic, PARTITIONS) as producer,
        Redis(port=own_store.port) as client,
    ):
        wait_stored(stack, send_all(producer, sent[:5]))
        rows = list(client.scan_iter(f"{view.name}@*"))
        assert len(rows) > 10
        for row in rows:
            assert client.pttl(row) > 86_400_000
            client.pexpire(row, 1)
        wait_until(lambda: not client.exists(*rows))
        wait_stored(stack, send_all(producer, sent[5:]))
        assert worker.terminate() == 0
    with stack.store() as store:
        assert_rows_equal_oracle(store, view, sent[5:])


def test_a_sink_outlives_a_store_that_stands_still(
    broker: str, own_store: Server, tmp_path: Path
) -> None:
    """With nothing to do, and with files that it cannot acknowledge: each action is archived once,
    by the process that was there before."""
    stack = stack_in(broker, own_store, tmp_path, store_timeout_ms=200, roll_ms=200)
    config = stack.config
    sent = messages(6)
    with (
        running("sink", stack) as sink,
        ActionProducer(broker, config.topic, PARTITIONS) as producer,
    ):
        wait_stored(stack, send_all(producer, sent[:2]), config.archive_group)
        os.kill(own_store.child.pid, signal.SIGSTOP)
        wait_until(lambda: "a newer topic could not be looked for" in sink.text())
        ends = send_all(producer, sent[2:])
        wait_until(lambda: "progress of" in sink.text())
        os.kill(own_store.child.pid, signal.SIGCONT)
        wait_stored(stack, ends, config.archive_group)
        assert sink.terminate() == 0
    archived = archive_of(stack, config.topic)["time_ms"].to_pylist()
    assert sorted(archived) == times_ms(sent)


def test_a_store_that_went_back_is_folded_again(
    broker: str, own_store: Server, tmp_path: Path
) -> None:
    """Rows and marks of an earlier moment: what a failover to a lagging replica leaves."""
    stack = stack_in(broker, own_store, tmp_path)
    config = stack.config
    sent = messages(30)
    with ActionProducer(broker, config.topic, PARTITIONS) as producer:
        with running("worker", stack) as worker:
            ends = send_all(producer, sent[:10])
            wait_stored(stack, ends)
            earlier = dump_keys(own_store)
            ends = send_all(producer, sent[10:20])
            wait_stored(stack, ends)
            restore_keys(own_store, earlier)
            ends = send_all(producer, sent[20:])
            assert worker.wait() == 1
            assert "the store went back" in worker.text()
        with running("worker", stack) as worker:
            wait_stored(stack, ends)
            assert worker.terminate() == 0
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, sent)


def test_a_store_that_was_wiped_is_told_and_filled_from_what_the_topic_holds(
    broker: str, own_store: Server, tmp_path: Path
) -> None:
    """The broker's commits are the witness: the store itself knows of nothing that it lost."""
    stack = stack_in(broker, own_store, tmp_path)
    config = stack.config
    sent = messages(20)
    with ActionProducer(broker, config.topic, PARTITIONS) as producer:
        with running("worker", stack) as worker:
            ends = send_all(producer, sent[:10])
            wait_stored(stack, ends)
            assert worker.terminate() == 0
            assert "wiped" not in worker.text()
        with Redis(port=own_store.port) as client:
            client.flushall()
        with running("worker", stack) as worker:
            ends = send_all(producer, sent[10:])
            wait_stored(stack, ends)
            assert "the store was wiped" in worker.text()
            assert worker.terminate() == 0
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, sent)


def test_a_wipe_under_a_running_worker_ends_it(
    broker: str, own_store: Server, tmp_path: Path
) -> None:
    stack = stack_in(broker, own_store, tmp_path)
    config = stack.config
    (part,) = messages(1)
    with (
        ActionProducer(broker, config.topic, PARTITIONS) as producer,
        running("worker", stack) as worker,
    ):
        wait_stored(stack, producer.send(*part))
        with Redis(port=own_store.port) as client:
            client.flushall()
        producer.send(*part)
        assert worker.wait() == 1
        assert "went back" in worker.text() or "no marker" in worker.text()
