"""The store loses what it has under processes that nothing more comes for: rows come back alone."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from redis import Redis

from encore.local import Server, start_store
from streams.admin import ensure_topics
from streams.producer import ActionProducer
from tests.reliability.worlds import Sent, dump_keys, messages, restore_keys, stack_in
from tests.streams.process import LOOK_S, WATCHFUL
from tests.streams.support import (
    PARTITIONS,
    Process,
    Stack,
    assert_rows_equal_oracle,
    running,
    send_all,
    wait_stored,
    wait_until,
)
from tests.streams.test_item_worker import assert_item_rows, wait_items

pytestmark = pytest.mark.kill

#: Some looks and the process's end, on a machine that does other things as well.
NOTICED_S = 120.0
#: More than a stall of the machine adds to a call, save for the longest.
OUTAGE_MS = 4_000
KINDS = ("worker", "items")


@dataclass
class Idle:
    """A stack of user or item views in a store of its own, and what was sent to it."""

    kind: str
    stack: Stack
    producer: ActionProducer
    sent: list[Sent]
    ends: dict[int, int]

    def fold(self, count: int) -> None:
        """So many messages more, until all is in the rows."""
        parts = messages(count, len(self.sent))
        self.sent += parts
        self.ends |= send_all(self.producer, parts)
        self.wait_folded()

    def wait_folded(self) -> None:
        wait = wait_stored if self.kind == "worker" else wait_items
        wait(self.stack, self.ends)

    def check_rows(self) -> None:
        check = assert_rows_equal_oracle if self.kind == "worker" else assert_item_rows
        with self.stack.store() as store:
            check(store, self.stack.view, self.sent)


@pytest.fixture(params=KINDS)
def idle(
    request: pytest.FixtureRequest, broker: str, own_store: Server, tmp_path: Path
) -> Iterator[Idle]:
    stack = stack_in(broker, own_store, tmp_path)
    if request.param == "items":
        view = replace(stack.view, entity="item", source=stack.config.item_topic)
        stack = replace(stack, plan=replace(stack.plan, views=(view,)))
    ensure_topics(broker, stack.config.topics)
    with ActionProducer(broker, stack.config.topic, PARTITIONS) as producer:
        yield Idle(request.param, stack, producer, [], {})


def loses(idle: Idle, lose: Callable[[], None]) -> str:
    """Fold, lose something of the store, send nothing: what the process said at its end. Started
    again, as whoever keeps it does, its successor has the rows back without a further action."""
    with running(idle.kind, idle.stack, WATCHFUL) as process:
        idle.fold(20)
        lose()
        assert process.wait(NOTICED_S) == 1
    with running(idle.kind, idle.stack) as successor:
        idle.wait_folded()
        idle.check_rows()
        assert successor.terminate() == 0
    return process.text()


def test_a_flushed_store_is_filled_again_without_a_further_action(
    idle: Idle, own_store: Server
) -> None:
    def flush() -> None:
        with Redis(port=own_store.port) as client:
            client.flushall()
            assert client.dbsize() < 10

    told = loses(idle, flush)
    # The look asks for the history first, but the flush may come between its two questions.
    assert "its history" in told or "the store went back" in told


def test_keys_that_were_put_back_are_folded_again_without_a_further_action(
    idle: Idle, own_store: Server
) -> None:
    """An older copy of all keys, the marker of the history with them: nothing but marks tells."""
    with running(idle.kind, idle.stack) as process:
        idle.fold(10)
        assert process.terminate() == 0
    earlier = dump_keys(own_store)
    assert "the store went back" in loses(idle, lambda: restore_keys(own_store, earlier))


def test_an_older_file_is_folded_again_without_a_further_action(
    idle: Idle, own_store: Server, tmp_path: Path
) -> None:
    """The store dies and comes up with a copy of its append-only file."""
    files, copy = tmp_path / "store" / "store", tmp_path / "copy"
    restarted: list[Server] = []
    with running(idle.kind, idle.stack) as process:
        idle.fold(10)
        assert process.terminate() == 0
    shutil.copytree(files, copy)

    def come_back_older() -> None:
        own_store.child.kill()
        shutil.rmtree(files)
        shutil.copytree(copy, files)
        restarted.append(start_store(tmp_path / "store", own_store.port))

    try:
        assert "its history" in loses(idle, come_back_older)
    finally:
        for server in restarted:
            server.child.kill()


def test_an_outage_and_a_rebalance_are_no_loss(idle: Idle, own_store: Server) -> None:
    """The first process sees it all through, and has nothing to say."""
    hasty = replace(idle.stack, config=replace(idle.stack.config, store_timeout_ms=OUTAGE_MS))
    with running(idle.kind, hasty, WATCHFUL) as process:
        idle.fold(10)
        os.kill(own_store.child.pid, signal.SIGSTOP)
        time.sleep(OUTAGE_MS / 1000 + 5 * LOOK_S)
        os.kill(own_store.child.pid, signal.SIGCONT)
        with running(idle.kind, hasty, WATCHFUL) as second:
            wait_until(lambda: "reading" in second.text())
            idle.fold(5)
            time.sleep(7 * LOOK_S)
            assert goes_on(process)
            assert goes_on(second)
            assert second.terminate() == 0
        idle.fold(5)
        time.sleep(7 * LOOK_S)
        assert goes_on(process)
        assert process.terminate() == 0
    assert "its history" not in process.text()
    assert "went back" not in process.text()
    idle.check_rows()


def goes_on(process: Process) -> bool:
    return process.popen.poll() is None
