"""Kill the worker with SIGKILL mid-load, again and again: nothing lost, nothing counted twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from schemas.names import row_keys
from streams.admin import ensure_topics
from tests.streams.support import (
    KILLED_S,
    Stack,
    assert_rows_equal_oracle,
    killed_under_load,
    make_stack,
    running,
    wait_stored,
)

KILLS = 4


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Stack:
    made = make_stack(broker, valkey, tmp_path / "data", batch_actions=200)
    ensure_topics(broker, made.config.topics)
    return made


@pytest.mark.kill
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_while_folding(stack: Stack) -> None:
    load = killed_under_load(stack, "worker", stored_messages, KILLS)
    with running("worker", stack) as worker:
        wait_stored(stack, load.ends, timeout_s=KILLED_S)
        assert worker.terminate() == 0
        assert "repeated=" in worker.text()
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, load.sent)
        users = np.unique(np.concatenate([actions["user"] for actions, _ in load.sent])).tolist()
        assert all(store.read(row_keys(stack.view.name, 1, users)))


def stored_messages(stack: Stack) -> int:
    with stack.store() as store:
        marks = store.get_progress(stack.config.topic, stack.config.group)
    return sum(mark.next_offset for mark in marks.values())
