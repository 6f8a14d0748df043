"""The worker as a process, on the real broker and store."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.actions import decode_batch, encode_batch
from schemas.ids import partitions_of
from schemas.names import (
    HEADER_CODE,
    HEADER_REASON,
    HEADER_SOURCE,
    HEADER_VIEW,
    dead_letter_topic,
    late_topic,
)
from streams.admin import ensure_topics
from streams.producer import ActionProducer
from tests.streams.support import (
    PARTITIONS,
    T0,
    Process,
    Stack,
    assert_rows_equal_oracle,
    make_stack,
    plain,
    raw_producer,
    read_topic,
    running,
    some_actions,
    user_of,
    wait_stored,
    wait_until,
    working_directory,
)
from tests.streams.test_messages import MALFORMED


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    made = make_stack(broker, valkey, tmp_path / "data")
    ensure_topics(broker, made.config.topics)
    return made


def test_actions_arrive_in_rows(stack: Stack) -> None:
    """By a worker that has a core of its own."""
    core = max(os.sched_getaffinity(0))
    stack = replace(stack, config=replace(stack.config, core=core))
    actions = some_actions(3_000, 40)
    parts = [(part, int(part["time_ms"].max())) for part in np.array_split(actions, 15)]
    with running("worker", stack) as worker:
        with ActionProducer(stack.config.bootstrap, stack.config.topic, PARTITIONS) as producer:
            for part, sent_ms in parts:
                ends = producer.send(part, sent_ms)
        assert set(ends) == {0, 1}
        wait_stored(stack, ends)
        assert os.sched_getaffinity(worker.popen.pid) == {core}
        with stack.store() as store:
            assert_rows_equal_oracle(store, stack.view, parts)
            marks = store.get_progress(stack.config.topic, stack.config.group)
        assert {mark.watermark_ms for mark in marks.values()} == {parts[-1][1]}
        assert worker.terminate() == 0
    assert list(working_directory(stack).iterdir()) == []


def test_one_bootstrap_server_of_several_may_be_away(stack: Stack) -> None:
    """Each way to the broker takes the list: Faust's, the look at the log, other clients."""
    listed = replace(stack.config, bootstrap=f"127.0.0.1:1,{stack.config.bootstrap}")
    several = replace(stack, config=listed)
    with running("worker", several) as worker:
        with ActionProducer(listed.bootstrap, listed.topic, PARTITIONS) as producer:
            ends = producer.send(some_actions(200, 20), T0 + 10_000)
        wait_stored(several, ends)
        assert worker.terminate() == 0


def test_poison_goes_to_dead_letters_and_the_worker_goes_on(stack: Stack) -> None:
    config = stack.config
    good = [encode_actions(seed) for seed in range(len(MALFORMED) + 1)]
    with raw_producer(config.bootstrap) as producer, running("worker", stack) as worker:
        offsets = {}
        for (name, (bad, _)), (actions, value) in zip(MALFORMED.items(), good, strict=False):
            key = b"%d" % int(actions["user"][0])
            producer.send(config.topic, value=value, key=key, partition=0)
            sent = producer.send(
                config.topic,
                value=bad.value,
                key=bad.key,
                partition=0,
                headers=list(bad.headers),
            )
            offsets[name] = sent.get(60).offset
        actions, value = good[-1]
        key = b"%d" % int(actions["user"][0])
        last = producer.send(config.topic, value=value, key=key, partition=0).get(60)
        wait_stored(stack, {0: last.offset + 1})
        with stack.store() as store:
            assert_rows_equal_oracle(store, stack.view, [(actions, T0) for actions, _ in good])
        dead = read_topic(config.bootstrap, dead_letter_topic(config.topic), 1, len(MALFORMED))
        assert worker.terminate() == 0
    for (name, (bad, reason)), letter in zip(MALFORMED.items(), dead, strict=True):
        headers = dict(letter.headers)
        assert (letter.key, letter.value) == (bad.key, bad.value)
        assert headers[HEADER_SOURCE].decode() == f"{config.topic}/0/{offsets[name]}"
        assert headers[HEADER_CODE] == b"action"
        assert reason.replace("t/0/0", config.topic) in headers[HEADER_REASON].decode()


def encode_actions(seed: int) -> tuple[Any, bytes]:
    """Five valid actions of users of partition 0, sent at T0."""
    actions = some_actions(200, 40, seed, span_ms=1)
    actions = actions[partitions_of(actions["user"], PARTITIONS) == 0][:5]
    return actions, encode_batch(actions, T0)


def test_late_and_future_actions_go_to_their_topic(stack: Stack) -> None:
    config, user = stack.config, user_of(0)
    actions = some_actions(5, 1)
    actions["user"] = user
    actions["time_ms"] = T0 + np.array([0, 50_000, 50_000, 50_000, 99_000])
    with running("worker", stack) as worker:
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            wait_stored(stack, producer.send(actions, T0 + 50_000))
        messages = read_topic(config.bootstrap, late_topic(config.topic), 1, 2)
        with stack.store() as store:
            assert_rows_equal_oracle(store, stack.view, [(actions, T0 + 50_000)])
        assert worker.terminate() == 0
    for message, code, place in zip(messages, (b"late", b"future"), (0, 4), strict=True):
        headers = dict(message.headers)
        assert headers[HEADER_CODE] == code
        assert headers[HEADER_VIEW].decode() == stack.view.name
        assert headers[HEADER_SOURCE].decode() == f"{config.topic}/0/0"
        batch = decode_batch(message.value)
        assert batch.sent_ms == T0 + 50_000
        assert plain(batch.actions) == plain(actions[place : place + 1])


def stored_or_ended(stack: Stack, ends: dict[int, int], worker: Process) -> bool:
    with stack.store() as store:
        marks = store.get_progress(stack.config.topic, stack.config.group)
    stored = all(p in marks and marks[p].next_offset >= end for p, end in ends.items())
    return stored or worker.popen.poll() is not None


def test_an_unforeseen_error_ends_the_process_and_loses_nothing(stack: Stack) -> None:
    """Faust would swallow it, acknowledge the message and go on."""
    config = stack.config
    sent: list[tuple[Any, int]] = []
    with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
        with running("worker", stack, fault="raise") as worker:
            for seed in range(40):
                part = some_actions(50, 10, seed)
                sent.append((part, int(part["time_ms"].max())))
                ends = producer.send(*sent[-1])
                if worker.popen.poll() is not None:
                    break
                wait_until(partial(stored_or_ended, stack, ends, worker))
            assert worker.wait() == 1
            assert "nobody foresaw this" in worker.text()
        with running("worker", stack) as worker:
            wait_stored(stack, ends)
            with stack.store() as store:
                assert_rows_equal_oracle(store, stack.view, sent)
            assert worker.terminate() == 0


def test_two_workers_share_partitions_and_one_may_leave(stack: Stack) -> None:
    config = stack.config
    sent: list[tuple[Any, int]] = []
    with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:

        def send(count: int) -> dict[int, int]:
            ends: dict[int, int] = {}
            for _ in range(count):
                part = some_actions(100, 30, len(sent))
                sent.append((part, int(part["time_ms"].max())))
                ends |= producer.send(*sent[-1])
            return ends

        with running("worker", stack) as first:
            wait_stored(stack, send(10))
            with running("worker", stack) as second:
                for _ in range(30):
                    ends = send(10)
                    if "reading" in second.text():
                        break
                wait_stored(stack, ends)
                assert first.terminate() == 0
                wait_stored(stack, send(20))
                assert second.terminate() == 0
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, sent)


def test_a_worker_without_a_plan_says_what_to_do(stack: Stack) -> None:
    empty = replace(stack, plan=replace(stack.plan, views=()))
    with running("worker", empty) as worker:
        assert worker.wait() == 1
        assert "plan.views: needs a streamed user view" in worker.text()


def test_a_topic_with_another_partition_count_is_refused(stack: Stack) -> None:
    wrong = replace(stack, config=replace(stack.config, partitions=3))
    with running("worker", wrong) as worker:
        assert worker.wait() == 1
        assert "needs 3 partitions, got 2" in worker.text()


def test_a_broker_that_is_not_there_is_one_line(stack: Stack) -> None:
    gone = replace(stack, config=replace(stack.config, bootstrap="127.0.0.1:1", patience_ms=1_000))
    with running("worker", gone) as worker:
        assert worker.wait() == 1
        assert "broker 127.0.0.1:1: needs an answer" in worker.text()
        assert "Traceback" not in worker.text()
