"""A consumer group that is never formed: the process ends, by itself or when it is told to."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from streams.admin import ensure_topics
from streams.config import StreamConfig
from streams.leaving import LEAVE_UNBEGUN_S
from streams.watchdog import Beginning, Sight, Waits
from tests.streams.deaf import (
    EVERYTHING,
    FIND_COORDINATOR,
    JOIN_GROUP,
    SYNC_GROUP,
    DeafGate,
    deaf_broker,
)
from tests.streams.support import ATTEMPTS, Stack, ended_in_time, make_stack, running, wait_until

STILL_MS = 2_100


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeafGate]:
    with deaf_broker(tmp_path_factory.mktemp("broker")) as made:
        yield made


@pytest.fixture
def stack(gate: DeafGate, valkey: str, tmp_path: Path) -> Iterator[Stack]:
    made = make_stack(
        *(gate.address, valkey, tmp_path / "data"), patience_ms=1_000, stand_still_ms=STILL_MS
    )
    ensure_topics(gate.address, made.config.topics)
    gate.asked.clear()
    yield made
    gate.deaf = frozenset()


#: What the steps to a group say of themselves, in order.
STEPS = (
    "it has not asked yet",
    "no broker has answered yet",
    "no coordinator of the group was found",
    "coordinator .* has not let it join",
    r"it is in generation \d+, and was not told its partitions",
)


def early(told: str) -> str:
    """What is said where a slow machine has not come to that step."""
    return "|".join((f"needs {Waits.SERVERS.value}", *STEPS[: STEPS.index(told)]))


@pytest.mark.parametrize(
    ("kind", "deaf", "told"),
    [
        ("worker", JOIN_GROUP, STEPS[3]),
        ("items", SYNC_GROUP, STEPS[4]),
        ("sink", FIND_COORDINATOR, STEPS[2]),
    ],
)
def test_a_group_that_is_never_formed(
    stack: Stack, gate: DeafGate, kind: str, deaf: int, told: str
) -> None:
    gate.deaf = frozenset({deaf})
    text = ended_in_time(kind, stack, early=early(told))
    assert gate.asked[deaf] > 0
    group = {"worker": "", "items": ".items", "sink": ".archive"}[kind]
    assert f"group {stack.config.group}{group}: needs an assignment of partitions" in text
    assert re.search(r"within \d[\d.]* s, got none: ", text)
    assert re.search(told, text)


@pytest.mark.parametrize(
    ("deaf", "said"),
    [
        (frozenset({JOIN_GROUP}), "told to stop before anything was read"),
        (EVERYTHING, "told to stop before the servers had answered"),
    ],
    ids=["in the group", "in the first question"],
)
def test_a_signal_ends_what_has_not_begun(
    stack: Stack, gate: DeafGate, deaf: frozenset[int], said: str
) -> None:
    gate.deaf = deaf
    took_s: list[float] = []
    while not took_s or took_s[-1] >= LEAVE_UNBEGUN_S + 3:
        assert len(took_s) < ATTEMPTS, took_s  # more than one: on a slow machine
        gate.asked.clear()
        with running("worker", replace(stack, config=patient(stack))) as worker:
            wait_until(lambda: any(kind in deaf for kind in gate.asked))
            began_s = time.monotonic()
            assert worker.terminate() == 0
            took_s.append(time.monotonic() - began_s)
            assert said in worker.text()


def patient(stack: Stack) -> StreamConfig:
    return replace(stack.config, patience_ms=30_000, stand_still_ms=120_000)


def test_more_members_than_partitions(gate: DeafGate, valkey: str, tmp_path: Path) -> None:
    """One of them is given none, and waits for as long as that is so."""
    made = make_stack(gate.address, valkey, tmp_path / "data", partitions=1)
    ensure_topics(gate.address, made.config.topics)
    for still_ms in (3_000, 9_000, 27_000):  # a slow machine needs the more to begin
        config = replace(made.config, patience_ms=1_000, stand_still_ms=still_ms)
        if both_stay(replace(made, config=config)):
            return
    pytest.fail("one was ended each time")


def both_stay(stack: Stack) -> bool:
    """Two workers are there for longer than they may stand still, and drain when told to."""
    with running("worker", stack) as one, running("worker", stack) as other:
        both = (one, other)

        def ended() -> bool:
            return any(each.popen.poll() is not None for each in both)

        wait_until(lambda: all("reading" in each.text() for each in both) or ended())
        time.sleep(1.2 * stack.config.stand_still_ms / 1000)
        if ended():
            assert any("standing still: group" in each.text() for each in both)
            return False
        assert [each.terminate() for each in both] == [0, 0]
        return True


def test_each_step_of_a_beginning_has_its_time() -> None:
    steps = {"at": Waits.SERVERS}
    sight = Sight("g", dict, lambda: steps["at"], lambda: "nobody knows why")
    beginning = Beginning(sight, 10_000)
    assert [beginning.look(float(now_s)) for now_s in range(10)] == [None] * 10
    steps["at"] = Waits.GROUP
    assert [beginning.look(float(now_s)) for now_s in range(10, 20)] == [None] * 10
    told = str(beginning.look(20.0))
    assert told.startswith("group g: needs an assignment of partitions")
    assert "within 10 s, got none: nobody knows why; restart this process" in told
    steps["at"] = Waits.NOTHING
    assert beginning.look(1_000.0) is None
