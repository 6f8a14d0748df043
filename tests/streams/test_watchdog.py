"""A process that stands still while there is something to read is ended, and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Timer

import pytest
from faust.types import TP

from schemas.errors import SettingsError, StreamError
from streams.admin import ensure_topics
from streams.app import run_app
from streams.config import StreamConfig
from streams.producer import ActionProducer
from streams.watchdog import Standstill
from tests.store.servers import own_server
from tests.streams.support import (
    ATTEMPTS,
    NOT_BEGUN,
    PARTITIONS,
    T0,
    Stack,
    assert_rows_equal_oracle,
    ended_in_time,
    make_stack,
    running,
    some_actions,
    wait_stored,
    wait_until,
)

HERE = TP("t", 0)
STILL_MS = 10_000


@dataclass
class World:
    """A process and a broker as a Standstill sees them, second by second."""

    positions: dict[TP, int] = field(default_factory=lambda: {HERE: 5})
    ends: dict[TP, int] = field(default_factory=lambda: {HERE: 9})
    asked: int = 0
    broker_away: bool = False
    now_s: float = 0.0

    def __post_init__(self) -> None:
        self.standstill = Standstill(lambda: self.positions, self._ends, STILL_MS)

    def _ends(self, positions: object) -> dict[TP, int]:
        self.asked += 1
        if self.broker_away:
            raise StreamError("broker", required="an answer", got="none")
        return self.ends

    def seconds(self, count: int) -> StreamError | None:
        """The first verdict within so many seconds."""
        for _ in range(count):
            self.now_s += 1
            error = self.standstill.look(self.now_s)
            if error is not None:
                return error
        return None


def test_standing_still_before_the_end_is_told() -> None:
    world = World()
    assert world.seconds(10) is None
    told = str(world.seconds(1))
    assert told.startswith("t/0: needs positions that move while there is something to read")
    assert "got 5 for 10 s, 4 messages before the end" in told


def test_moving_positions_are_never_asked_about() -> None:
    world = World()
    for _ in range(20):
        assert world.seconds(5) is None
        world.positions = {HERE: world.positions[HERE] + 1}
    assert world.asked == 0


@pytest.mark.parametrize(
    "world",
    [
        World(ends={HERE: 5}),
        World(ends={}),
        World(positions={}),
        World(broker_away=True),
    ],
    ids=["nothing to read", "no such partition", "no partitions", "broker away"],
)
def test_what_is_no_standstill(world: World) -> None:
    assert world.seconds(100) is None
    assert world.asked <= 10, "the broker is asked once in as long as it may stand still"


def test_a_partition_that_is_taken_away_begins_anew() -> None:
    world = World()
    assert world.seconds(9) is None
    world.positions = {TP("t", 1): 5}
    world.ends = {TP("t", 1): 9}
    assert world.seconds(10) is None
    assert world.seconds(1) is not None


def test_it_waits_longer_than_the_store_is_waited_for(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="stand_still_ms: needs more than twice patience_ms"):
        make_stack("127.0.0.1:9", "redis://127.0.0.1:9/0", tmp_path, stand_still_ms=10_000)


@pytest.fixture
def stack(broker: str, valkey: str, tmp_path: Path) -> Iterator[Stack]:
    made = make_stack(broker, valkey, tmp_path / "data")
    ensure_topics(broker, made.config.topics)
    yield made


def hasty(stack: Stack) -> Stack:
    """Its processes may stand still for three seconds."""
    return stack.but(patience_ms=1_000, stand_still_ms=3_000)


def test_a_process_ends_though_a_task_does_not_let_it(stack: Stack) -> None:
    """Nobody starts one again that has failed and stays."""
    config = stack.config
    with running("worker", stack, "stubborn") as worker:
        with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
            producer.send(some_actions(10, 5, 0), T0)
        assert worker.wait() == 1
        assert "nobody foresaw this" in worker.text()


class Refuses:
    """A handler that cannot begin."""

    async def open(self, *_: object) -> None:
        raise StreamError("it", required="something else", got="this")


def test_who_runs_a_stream_lives_on_after_its_end(tmp_path: Path) -> None:
    """Another may follow in the same process."""
    config = StreamConfig("127.0.0.1:9", "redis://127.0.0.1:9/0", tmp_path)
    assert run_app(config, "g", ["t"], Refuses()) == 1  # type: ignore[arg-type]
    wait_until(lambda: not any(isinstance(each, Timer) for each in threading.enumerate()))


def test_a_process_ends_though_a_thread_does_not() -> None:
    code = """
import sys, threading, time
from streams import leaving
leaving.LEAVE_S = 0.1
threading.Thread(target=time.sleep, args=(300,)).start()
sys.exit(leaving.ending(3))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 3


@pytest.mark.parametrize("fault", ["wait", "block"])
def test_a_worker_that_hangs_is_ended_and_loses_nothing(stack: Stack, fault: str) -> None:
    """It waits for what never happens, or holds the event loop: heartbeats go on in either case."""
    config, actions = stack.config, some_actions(200, 20)
    with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
        ends = producer.send(actions, T0 + 20_000)
    said = ended_in_time("worker", hasty(stack), fault)
    assert "needs positions that move while there is something to read" in said
    with running("worker", stack) as worker:
        wait_stored(stack, ends)
        assert worker.terminate() == 0
    with stack.store() as store:
        assert_rows_equal_oracle(store, stack.view, [(actions, T0 + 20_000)])


def test_a_store_that_is_away_for_less_than_the_patience(broker: str, tmp_path: Path) -> None:
    """Positions stand still meanwhile, and the worker goes on afterwards."""
    with own_server(tmp_path) as server:
        stack = make_stack(
            *(broker, server.url, tmp_path / "data"),
            patience_ms=20_000,
            stand_still_ms=45_000,
            store_timeout_ms=4_000,
        )
        config, actions = stack.config, some_actions(200, 20)
        ensure_topics(broker, config.topics)
        with running("worker", stack) as worker:
            wait_until(lambda: "reading" in worker.text())
            server.pause()
            with ActionProducer(config.bootstrap, config.topic, PARTITIONS) as producer:
                ends = producer.send(actions, T0 + 20_000)
            wait_until(lambda: "needs an answer within 4000 ms" in worker.text())
            server.go_on()
            wait_stored(stack, ends)
            assert worker.terminate() == 0
        with stack.store() as store:
            assert_rows_equal_oracle(store, stack.view, [(actions, T0 + 20_000)])


def test_an_idle_worker_is_left_alone(stack: Stack) -> None:
    for attempt in range(ATTEMPTS):
        with running(
            "worker", stack.but(patience_ms=1_000, stand_still_ms=3_000 << attempt)
        ) as worker:
            wait_until(lambda: "reading" in worker.text() or worker.popen.poll() is not None)
            if NOT_BEGUN in worker.text():
                continue  # a slow machine
            with pytest.raises(AssertionError, match="waited too long"):
                wait_until(lambda: worker.popen.poll() is not None, 5 << attempt)
            os.kill(worker.popen.pid, signal.SIGTERM)
            assert worker.wait() == 0
            return
    pytest.fail("it never began")
