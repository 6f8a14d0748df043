"""Kill the worker with SIGKILL mid-load, again and again: nothing lost, nothing counted twice."""

from __future__ import annotations

import random
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from schemas.names import row_keys
from streams.admin import ensure_topics
from streams.producer import ActionProducer
from tests.streams.support import (
    PARTITIONS,
    T0,
    Stack,
    assert_rows_equal_oracle,
    make_stack,
    running,
    some_actions,
    wait_stored,
    wait_until,
)

KILLS = 4


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    made = make_stack(broker, valkey, tmp_path / "data", batch_actions=200)
    ensure_topics(broker, made.config.topics)
    return made


@pytest.mark.kill
@pytest.mark.slow
def test_killed_while_folding(stack: Stack) -> None:
    config, dice = stack.config, random.Random(7)
    sent: list[tuple[NDArray[np.void], int]] = []
    ends: dict[int, int] = {}
    enough = threading.Event()

    def produce() -> None:
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            while not enough.wait(0.01):
                sent.append((some_actions(50, 60, len(sent)), T0 + 20_000))
                ends.update(producer.send(*sent[-1]))

    thread = threading.Thread(target=produce)
    thread.start()
    try:
        for _ in range(KILLS):
            with running("worker", stack) as worker:
                reached = stored_messages(stack)
                wait_until(partial(stored_more, stack, reached))
                time.sleep(dice.uniform(0, 0.3))
                worker.kill()
    finally:
        enough.set()
        thread.join()
    with running("worker", stack) as worker:
        wait_stored(stack, ends)
        assert worker.terminate() == 0
        assert "repeated=" in worker.text()
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, sent)
        users = np.unique(np.concatenate([actions["user"] for actions, _ in sent])).tolist()
        assert all(store.read(row_keys(stack.view.name, 1, users)))


def stored_more(stack: Stack, reached: int) -> bool:
    return stored_messages(stack) > reached


def stored_messages(stack: Stack) -> int:
    with stack.store() as store:
        marks = store.get_progress(stack.config.topic, stack.config.group)
    return sum(mark.next_offset for mark in marks.values())
