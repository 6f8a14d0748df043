"""The store goes wrong before a serving process: what replies say meanwhile, and that it ends.

`bench faults` does the same under load and holds the times; here a busy machine may take its time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.fault_wire import fault_wire
from bench.faults import AWAY, FAULTS, LACKS_ROWS, Fault, Outcome, Store, judge
from bench.open_loop import Answer, Measured
from encore.local import start_store
from store.redis_store import RedisRowStore
from tests.predictor.support import NOW_MS, RunningServer, put_world, server, wait_until
from tests.streams.support import patient

pytestmark = pytest.mark.kill

#: Longer than any stall: what comes late is never in time for a process that stood still.
HOLD_S = 120.0
PATIENCE_S = 120


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, RunningServer]]:
    """A service that reads its store over a wire."""
    directory = tmp_path_factory.mktemp("faults")
    started = start_store(directory / "store")
    store: Store | None = None
    try:
        with RedisRowStore(patient(f"redis://{started.address}/0")) as rows:
            put_world(rows)
        with (
            fault_wire(started.port, HOLD_S) as wire,
            server(
                directory,
                f"redis://127.0.0.1:{wire.port}/0",
                store_timeout_ms=200,
                timeout_ms=60_000,
                allow_now_ms=True,
            ) as running,
        ):
            store = Store(directory / "store", started, wire)
            yield store, running
    finally:
        (store.server if store is not None else started).child.kill()


Said = tuple[set[str], set[str], list[Any]]
WHOLE = {"no_model"}


def said(running: RunningServer) -> Said:
    """degraded, statuses and the page of one request."""
    reply = running.infer(parameters={"now_ms": NOW_MS})
    assert reply.status_code == 200, reply.text
    told = reply.json()["parameters"]
    statuses = {each.split("=")[0] for each in told["statuses"].split(",")}
    return set(told["degraded"].split(",")) - {""}, statuses, reply.json()["outputs"][0]["data"]


def whole(running: RunningServer) -> Said:
    """What is said as soon as no row is missing."""
    told: list[Said] = []

    def back() -> bool:
        told.append(said(running))
        return told[-1][0] == WHOLE

    wait_until(back, PATIENCE_S)
    return told[-1]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_replies_say_that_the_store_is_away_until_it_is_back(
    fault: Fault, served: tuple[Store, RunningServer]
) -> None:
    store, running = served
    before = whole(running)
    assert before[1] == {"PRESENT"}
    fault.strike(store)
    try:
        wait_until(lambda: said(running)[0] & LACKS_ROWS, PATIENCE_S)
        for _ in range(10):
            degraded, statuses, _ = said(running)
            assert degraded & LACKS_ROWS
            assert statuses <= AWAY
        assert running.ready()
    finally:
        fault.mend(store)
    assert whole(running) == before


# --- how the benchmark judges ---------------------------------------------------------------


def reply(degraded: str = "", statuses: str = "PRESENT=3", page: bytes = b"page") -> Answer:
    told = f'{{"parameters": {{"degraded": "{degraded}", "statuses": "{statuses}"}}}}'
    return Answer(200, told.encode() + page)


def judged(answers: list[Answer], latency_s: float = 0.01) -> Outcome:
    """One request a second; struck at 1.5 s, mended from 3.5 s to 4 s."""
    n = len(answers)
    latencies = np.full(n, latency_s)
    measured = Measured(np.arange(n, dtype=np.float64), np.zeros(n), latencies, answers)
    return judge("fault", measured, (1.5, 3.5, 4.0), [b"page"])


AWAY_REPLY = reply("store_timeout", "TIMEOUT=3", b"other")
GOOD = [reply(), reply(), AWAY_REPLY, AWAY_REPLY, AWAY_REPLY, reply(), reply(), reply()]


def test_a_fault_is_held_where_nothing_is_hidden() -> None:
    outcome = judged(GOOD)
    assert outcome.held
    assert (outcome.without, outcome.hurried, outcome.back_s) == (3, 0, 0.0)


@pytest.mark.parametrize(
    ("place", "answer", "what"),
    [
        (2, reply(), "lying"),  # whole, while the store is away
        (2, reply("store_timeout", "PRESENT=3"), "lying"),
        (2, reply("corrupt_rows", "TIMEOUT=3"), "lying"),
        (0, reply("", "PRESENT=2,TIMEOUT=1"), "lying"),
        (7, reply(page=b"another"), "wrong"),
        (1, Answer(0, b""), "unanswered"),
    ],
)
def test_what_is_hidden_is_found(place: int, answer: Answer, what: str) -> None:
    answers = [*GOOD]
    answers[place] = answer
    outcome = judged(answers)
    assert not outcome.held
    counts = dataclasses.asdict(outcome)
    assert [name for name in ("unanswered", "lying", "wrong") if counts[name]] == [what]


def test_late_replies_and_late_returns_are_not_held() -> None:
    assert judged(GOOD, latency_s=0.6).late == 8
    slow = [*GOOD]
    slow[7] = AWAY_REPLY
    assert judged(slow).back_s == 3.0
    assert not judged(slow).held
    refused = [*GOOD]
    refused[7], refused[6] = Answer(503, b"{}"), reply("deadline", "TIMEOUT=3")
    assert judged(refused).held  # a busy machine
    assert judged(refused).hurried == 2


def test_the_wire_remembers_nobody(tmp_path: Path) -> None:
    """Links end with the wire, whatever its mode."""
    started = start_store(tmp_path)
    try:
        with fault_wire(started.port, HOLD_S) as wire:
            url = f"redis://127.0.0.1:{wire.port}/0"
            with RedisRowStore(patient(url)) as rows:
                rows.ping()
                assert wire.links == 1
                wire.mode = "swallow"
    finally:
        started.child.kill()
