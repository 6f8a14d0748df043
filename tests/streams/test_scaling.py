"""More workers, and a store that is slower than the log: rows are the same, nothing piles up."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from streams.admin import ensure_topics
from streams.producer import ActionProducer
from tests.streams.support import (
    Load,
    Stack,
    assert_rows_equal_oracle,
    make_stack,
    running,
    some_actions,
    wait_stored,
    wait_until,
)
from tests.streams.test_status import rows_of, status_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PARTITIONS = 4
STEP_S = 0.02


def started(broker: str, valkey: str, directory: Path, **changes: Any) -> Stack:
    stack = make_stack(broker, valkey, directory / "data", partitions=PARTITIONS, **changes)
    ensure_topics(broker, stack.config.topics)
    return stack


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_rows_are_the_same_with_more_workers(
    broker: str, valkey: str, tmp_path: Path, workers: int
) -> None:
    """They join under load, share the partitions, and leave one after the other."""
    stack = started(broker, valkey, tmp_path)
    with ExitStack() as held:
        with Load(stack, STEP_S) as load:
            processes = [held.enter_context(running("worker", stack)) for _ in range(workers)]
            pids = {str(each.popen.pid) for each in processes}
            wait_until(lambda: owners(stack) == pids)
        wait_stored(stack, load.ends)
        assert [each.terminate() for each in processes] == [0] * workers
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, load.sent)


def owners(stack: Stack) -> set[str]:
    """Process ids that say they have a partition."""
    return {line.owner.rpartition(":")[2] for line in rows_of(status_of(stack)).values()}


def test_a_slow_store_holds_the_log_back(broker: str, valkey: str, tmp_path: Path) -> None:
    """What is fetched waits in a bounded inbox: the worker's memory stays, and it catches up."""
    stack = started(broker, valkey, tmp_path, inbox_lists=2, batch_actions=500)
    config, sent = stack.config, []
    with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
        first = some_actions(100, 40)
        sent.append((first, int(first["time_ms"].max())))
        ends = producer.send(*sent[-1])
        with running("worker", stack, "slow") as worker:
            wait_stored(stack, ends)
            memory = psutil.Process(worker.popen.pid).memory_info
            before_bytes = memory().rss
            for seed in range(1, 21):
                part = some_actions(4_000, 40, seed)
                sent.append((part, int(part["time_ms"].max())))
                producer.put(*sent[-1])
            ends |= producer.flush()
            behind = sum(ends.values()) - stored(stack)
            assert behind > 4, "the store is slower than the log"
            wait_stored(stack, ends)
            grown_bytes = memory().rss - before_bytes
            assert worker.terminate() == 0
    assert grown_bytes < 64 << 20, f"{grown_bytes >> 20} MB"
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, sent)


def stored(stack: Stack) -> int:
    """Messages that are stored, of all partitions."""
    with stack.store() as store:
        marks = store.get_progress(stack.config.topic, stack.config.group)
    return sum(mark.next_offset for mark in marks.values())
