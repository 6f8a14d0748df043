"""What a broker shows out of order is read in order; what it never shows is told as missing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st
from mode import Service
from yarl import URL

from schemas.errors import NotHeldError
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams.app import Fetched
from streams.positions import Positions
from streams.second_look import SecondLooks
from streams.transport import ListConsumer, ListTransport, Marks
from tests.streams.support import record

HERE, THERE = TP("t", 0), TP("t", 1)
PAUSES_S = (0.01, 0.02)
LAST = 5


class LogThread(Service):
    """The consumer's thread. Each partition has offsets up to LAST; hidden: {partition: {offset:
    how often it has to be sought before it is shown}}."""

    def __init__(self, hidden: dict[TP, dict[int, int]]) -> None:
        super().__init__()
        self.position: dict[TP, int] = {}
        self.hidden, self.sought = hidden, list[tuple[TP, int]]()

    def assignment(self) -> set[TP]:
        return {HERE, THERE}

    async def getmany(self, active: Iterable[TP], timeout: float) -> dict[TP, list[Any]]:
        assert active, "a fetch of no partition is one of all"
        await asyncio.sleep(0)
        found: dict[TP, list[Any]] = {}
        for tp in active:
            held = range(self.position[tp], LAST + 1)
            found[tp] = [record(b"", at) for at in held if not self.hidden[tp].get(at)]
            self.position[tp] = LAST + 1
        return {tp: records for tp, records in found.items() if records}

    async def seek_to_committed(self) -> dict[TP, int]:
        return dict.fromkeys((HERE, THERE), 0)

    async def seek_wait(self, positions: dict[TP, int]) -> None:
        for tp, offset in positions.items():
            self.position[tp] = offset
            self.sought.append((tp, offset))
            if self.hidden[tp].get(offset):
                self.hidden[tp][offset] -= 1


class LogConsumer(ListConsumer):
    """Reads that."""

    hidden: dict[TP, dict[int, int]]

    def _new_consumer_thread(self) -> Any:
        return LogThread(self.hidden)


class Read(SimpleNamespace):
    """lists: (partition, offsets) as they were passed on. sought: after the assignment."""

    lists: list[tuple[TP, list[int]]]
    sought: list[tuple[TP, int]]

    def of(self, tp: TP) -> list[list[int]]:
        return [offsets for at, offsets in self.lists if at == tp]


def read(here: dict[int, int], start: int = 0, rebalance: bool = False) -> Read:
    """All that a consumer passes on within a time in which it takes every look. rebalance: one
    comes while the first look is waited for."""
    hidden = {HERE: dict(here), THERE: dict[int, int]()}
    lists: list[tuple[TP, list[int]]] = []

    async def start_at(tps: frozenset[TP]) -> dict[TP, int]:
        return dict.fromkeys(tps, start)

    async def take(message: Any) -> None:
        lists.append((message.tp, [int(each.offset) for each in message.value]))

    async def nothing(*args: Any) -> None:
        """Of a rebalance."""

    async def run() -> list[tuple[TP, int]]:
        broker = [URL("kafka://127.0.0.1:1")]
        app = faust.App("looks", broker=broker, autodiscover=False)
        transport = ListTransport(broker, app)
        transport.configure(10, Marks(), start_at)
        kind = type("Consumer", (LogConsumer,), {"hidden": hidden})
        consumer = kind(transport, take, nothing, nothing)
        thread: Any = consumer._thread
        consumer._looks = SecondLooks(PAUSES_S)
        await consumer.perform_seek()
        thread.sought.clear()
        consumer.resume_flow()
        until_s = asyncio.get_running_loop().time() + 5.0
        quiet = 0
        while quiet < 3 and asyncio.get_running_loop().time() < until_s:
            active = {HERE, THERE}
            records = await consumer._getmany(active, 0.01)
            await consumer._pass_on(records, active)
            if rebalance and consumer._looks.waiting():
                rebalance_once()
                await consumer.perform_seek()
                thread.sought.clear()
            quiet = 0 if records or consumer._looks.waiting() else quiet + 1
        sought: list[tuple[TP, int]] = thread.sought
        return sought

    def rebalance_once() -> None:
        nonlocal rebalance
        rebalance = False

    return Read(sought=asyncio.run(run()), lists=lists)


@pytest.mark.parametrize("looks", [1, 2])
def test_a_later_batch_that_is_shown_first_is_kept_back(looks: int) -> None:
    """Also where the second look sees no more than the first."""
    found = read({2: looks})
    assert found.of(HERE) == [[0, 1], [2, 3, 4, 5]]
    assert found.sought == [(HERE, 2)] * looks


def test_another_partition_is_read_meanwhile() -> None:
    assert (THERE, [0, 1, 2, 3, 4, 5]) in read({2: 2}).lists[:2]


def test_a_hole_is_given_on_after_the_last_look() -> None:
    """And told as one of these offsets, by who reads."""
    found = read({2: 9, 3: 9})
    assert found.of(HERE) == [[0, 1], [4, 5]]
    assert found.sought == [(HERE, 2)] * len(PAUSES_S)
    positions = Positions(AsyncMemoryRowStore(MemoryRowStore()), "t", "g", 1)
    positions.begin([HERE], {0: 0})
    lists = [Fetched(HERE, tuple(record(b"", at) for at in part)) for part in found.of(HERE)]
    assert len(positions.unseen(lists[0])) == 2
    with pytest.raises(NotHeldError, match="2 messages are missing, offsets 2 to 3"):
        positions.unseen(lists[1])


def test_a_part_of_what_is_missing_is_passed_on_as_it_comes() -> None:
    found = read({1: 1, 2: 1, 3: 2})
    assert [at for part in found.of(HERE) for at in part] == [0, 1, 2, 3, 4, 5]


def test_the_first_offset_to_be_read_is_looked_for_again() -> None:
    found = read({2: 2}, start=2)  # the assignment seeks it, too
    assert found.of(HERE) == [[2, 3, 4, 5]] and found.sought == [(HERE, 2)]


def test_a_rebalance_forgets_what_was_waited_for() -> None:
    """It seeks by itself: here back to the beginning, where by then all is shown but one."""
    found = read({2: 1}, rebalance=True)
    assert found.of(HERE) == [[0, 1], [0, 1], [2, 3, 4, 5]]
    assert found.sought == [(HERE, 2)]


@given(
    hidden=st.dictionaries(st.integers(0, LAST - 1), st.integers(1, 4), max_size=LAST),
    cuts=st.lists(st.integers(1, 3), min_size=1),
)
def test_nothing_is_given_on_out_of_order_or_twice(hidden: dict[int, int], cuts: list[int]) -> None:
    """Whatever is shown after how many looks, in lists of whatever length; a gap that is given on
    was looked at as often as is due."""
    looks, at, now_s, given_on = SecondLooks((1.0, 2.0)), 0, 0.0, list[int]()
    left, asked = dict(hidden), dict[int, int]()
    looks.begin({HERE: 0})
    for turn in range(200):
        due = looks.due(now_s)
        looks.looked(due)
        for offset in due.values():
            at = offset
            asked[offset] = asked.get(offset, 0) + 1
            left[offset] = left.get(offset, 0) - 1
        if not looks.waiting():
            shown = [each for each in range(at, LAST + 1) if left.get(each, 0) <= 0]
            part = shown[: cuts[turn % len(cuts)]]
            if not part:
                break
            at = part[-1] + 1
            given_on += part[: looks.cut(HERE, [record(b"", each) for each in part], now_s)]
        now_s += 0.5
    assert given_on == sorted(set(given_on)) and given_on[-1] == LAST
    for before, after in zip([-1, *given_on], given_on, strict=False):
        assert after == before + 1 or asked[before + 1] == 2
