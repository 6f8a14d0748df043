"""Processes that were stopped and go on when others have their work; a re-keyed log lost alone."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from schemas.names import row_keys
from schemas.row import read_fence
from streams.admin import Admin, ensure_topics
from tests.streams.support import (
    PARTITIONS,
    Load,
    Stack,
    assert_rows_equal_oracle,
    make_stack,
    running,
    wait_stored,
    wait_until,
)
from tests.streams.test_item_worker import (
    assert_item_rows,
    folded_messages,
    wait_items,
)

pytestmark = pytest.mark.kill

#: Longer than the group's session: the partitions are someone else's by then.
STOPPED_S = 3.5
#: Between two messages.
PAUSE_S = 0.05


def item_stack(stack: Stack) -> Stack:
    view = replace(stack.view, entity="item", source=stack.config.item_topic)
    return replace(stack, plan=replace(stack.plan, views=(view,)))


def lose_rekeyed_log(stack: Stack) -> None:
    """The re-keyed topic alone gets a new log."""
    config = stack.config
    with Admin(config.bootstrap) as admin:
        before = admin.describe(config.item_topic)
        admin.delete_topic(config.item_topic)
        after = admin.ensure_topics(config.topics)[config.item_topic]
    assert before is not None and before.topic_id != after.topic_id


def stored(stack: Stack) -> list[int]:
    """The marks of all partitions."""
    with stack.store() as store:
        marks = store.get_progress(stack.config.topic, stack.config.group)
    return [marks[p].next_offset if p in marks else 0 for p in range(PARTITIONS)]


def test_a_stopped_worker_that_goes_on_doubles_nothing(
    broker: str, valkey: str, tmp_path: Path
) -> None:
    stack = make_stack(broker, valkey, tmp_path / "data", batch_actions=200)
    ensure_topics(broker, stack.config.topics)
    load, seen = Load(stack, PAUSE_S), [[0] * PARTITIONS]
    with running("worker", stack) as zombie, load:
        wait_until(lambda: sum(stored(stack)) > 5)
        with running("worker", stack) as heir:
            wait_until(lambda: "reading" in heir.text())
            os.kill(zombie.popen.pid, signal.SIGSTOP)
            deadline_s = time.monotonic() + STOPPED_S
            while time.monotonic() < deadline_s:
                seen.append(stored(stack))
                time.sleep(0.05)
            os.kill(zombie.popen.pid, signal.SIGCONT)
            deadline_s = time.monotonic() + 1.5
            while time.monotonic() < deadline_s:
                seen.append(stored(stack))
                time.sleep(0.05)
            ends = dict(load.ends)
            wait_stored(stack, ends)
    back = [(a, b) for a, b in pairwise(seen) if any(np.less(b, a))]
    assert back == []
    with running("worker", stack) as worker:
        wait_stored(stack, load.ends)
        assert worker.terminate() == 0
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, load.sent)


def test_a_stopped_item_worker_and_a_re_keyed_log_lost_meanwhile(
    broker: str, valkey: str, tmp_path: Path
) -> None:
    """What the stopped one sends into the new log is a stray; the source is re-keyed again."""
    stack = item_stack(make_stack(broker, valkey, tmp_path / "data", batch_actions=200))
    config = stack.config
    ensure_topics(broker, config.topics)
    load = Load(stack, PAUSE_S)
    with running("items", stack) as zombie, load:
        wait_until(lambda: folded_messages(stack) > 5)
        os.kill(zombie.popen.pid, signal.SIGSTOP)
        lose_rekeyed_log(stack)
        with running("items", stack) as heir:
            wait_until(lambda: "folding" in heir.text())
            wait_items(stack, dict(load.ends))
            os.kill(zombie.popen.pid, signal.SIGCONT)
            assert zombie.wait() == 1
            wait_items(stack, dict(load.ends))
    with running("items", stack) as items:
        wait_items(stack, load.ends)
        assert items.terminate() == 0
    with stack.store() as store:
        assert_item_rows(store, stack.view, load.sent)


def test_a_re_keyed_log_lost_after_rows_and_before_their_table(
    broker: str, valkey: str, tmp_path: Path
) -> None:
    """What rows have beyond any saved table is made again from the source, and counts once."""
    stack = item_stack(make_stack(broker, valkey, tmp_path / "data", batch_actions=200))
    ensure_topics(broker, stack.config.topics)
    with Load(stack, PAUSE_S) as load:
        with running("items", stack, "unsaved") as unsaved:
            wait_until(lambda: newest_fence(stack, load) > 5)
            unsaved.kill()
        assert folded_messages(stack) == 0, "no table speaks of these rows"
        lose_rekeyed_log(stack)
        with running("items", stack) as heir:
            wait_until(lambda: "of a lost re-keyed log to their end" in heir.text())
    with running("items", stack) as items:
        wait_items(stack, load.ends)
        assert items.terminate() == 0
    with stack.store() as store:
        assert_item_rows(store, stack.view, load.sent)


def newest_fence(stack: Stack, load: Load) -> int:
    """The offset of the newest re-keyed message in a row."""
    items = sorted({int(item) for actions, _ in list(load.sent) for item in actions["item"]})
    with stack.store() as store:
        rows = store.read(row_keys(stack.view.name, stack.view.generation, items))
    return max((fence[1] for row in rows if (fence := read_fence(row))), default=-1)
