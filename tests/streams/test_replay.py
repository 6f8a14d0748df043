"""The replay engine against a stream that stores with a delay, in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.errors import StreamError
from store.memory import AsyncMemoryRowStore, MemoryRowStore
from streams.replay import Replay, ReplayCounts, StreamMark, Tick, ticks_of, wait_stored
from tests.streams.support import some_actions

TICK = 1_000


@dataclass(frozen=True)
class Asked:
    time_ms: int


@dataclass
class Stream:
    """Takes actions like a producer, and stores them only when `settle` is called."""

    store: MemoryRowStore = field(default_factory=MemoryRowStore)
    sent: list[tuple[NDArray[np.void], int]] = field(default_factory=list)
    settled: int = 0

    def send(self, actions: NDArray[np.void], sent_ms: int) -> dict[int, int]:
        self.sent.append((actions, sent_ms))
        return {0: len(self.sent)}

    def settle(self) -> None:
        self.settled = len(self.sent)
        self.store.put_progress("t", "g", {0: (1, self.settled, 0)})

    @property
    def mark(self) -> StreamMark:
        return StreamMark(AsyncMemoryRowStore(self.store), "t", "g", 1)


@given(st.lists(st.integers(0, 9_999)), st.lists(st.integers(0, 9_999)))
def test_ticks_split_everything_once(actions: list[int], requests: list[int]) -> None:
    a, r = np.sort(np.array(actions, np.int64)), np.sort(np.array(requests, np.int64))
    ticks = list(ticks_of(a, r, TICK))
    assert [i for t in ticks for i in range(len(a))[t.actions]] == list(range(len(a)))
    assert [i for t in ticks for i in range(len(r))[t.requests]] == list(range(len(r)))
    for tick in ticks:
        for times, part in ((a, tick.actions), (r, tick.requests)):
            inside = times[part]
            assert ((tick.start_ms <= inside) & (inside < tick.end_ms)).all()
        assert tick.end_ms - tick.start_ms == TICK
        assert len(a[tick.actions]) + len(r[tick.requests])
    assert [t.number for t in ticks] == sorted({t.number for t in ticks})


def test_unsorted_times_are_refused() -> None:
    with pytest.raises(ValueError, match="actions: needs ascending times"):
        list(ticks_of(np.array([2, 1]), np.array([1]), TICK))


def test_a_request_sees_all_earlier_ticks_and_nothing_of_its_own() -> None:
    actions = some_actions(400, 5)
    asked = [Asked(int(t) + 3) for t in np.unique(actions["time_ms"])[::7]]
    stream = Stream()
    seen: list[tuple[int, int]] = []

    async def run() -> ReplayCounts:
        async def answer(requests: Sequence[Asked], tick: Tick) -> None:
            assert stream.settled == len(stream.sent), "asked before the rows were ready"
            before = sum(len(part) for part, _ in stream.sent)
            assert before == (actions["time_ms"] < tick.start_ms).sum()
            seen.extend((request.time_ms, before) for request in requests)

        async def worker() -> None:
            while True:
                await asyncio.sleep(0.003)
                stream.settle()

        working = asyncio.create_task(worker())
        try:
            replay = Replay(actions, asked, stream, [stream.mark], answer, tick_ms=TICK)
            return await replay.run()
        finally:
            working.cancel()

    counts = asyncio.run(run())
    assert [time_ms for time_ms, _ in seen] == [request.time_ms for request in asked]
    assert (counts.actions, counts.requests) == (400, len(asked))
    assert counts.waits == len({request.time_ms // TICK for request in asked}) + 1
    assert stream.settled == len(stream.sent)
    for part, sent_ms in stream.sent:
        assert (part["time_ms"] // TICK == sent_ms // TICK - 1).all()
        assert sent_ms % TICK == 0


def test_ticks_without_requests_do_not_wait() -> None:
    stream, ticks = Stream(), []

    async def run() -> ReplayCounts:
        async def never(requests: Sequence[Asked], tick: Tick) -> None:
            raise AssertionError

        def on_tick(tick: Tick, counts: ReplayCounts) -> None:
            ticks.append((tick.number, counts.actions))
            if counts.actions == 200:
                stream.settle()

        nothing: list[Asked] = []
        actions = some_actions(200, 5)
        return await Replay(
            actions, nothing, stream, [stream.mark], never, on_tick, tick_ms=TICK
        ).run()

    counts = asyncio.run(run())
    assert (counts.waits, counts.ticks) == (1, len(ticks))


def test_a_stream_that_stays_behind_is_an_error() -> None:
    stream = Stream()
    stream.store.put_progress("t", "g", {0: (1, 3, 0)})
    with pytest.raises(StreamError, match="got 2 messages behind"):
        asyncio.run(wait_stored(stream.mark, {0: 5}, 0.05))


def test_progress_in_an_earlier_log_does_not_count() -> None:
    stream = Stream()
    stream.store.put_progress("t", "g", {0: (1, 300, 0)})
    later = StreamMark(AsyncMemoryRowStore(stream.store), "t", "g", 2)
    with pytest.raises(StreamError, match="got 5 messages behind"):
        asyncio.run(wait_stored(later, {0: 5}, 0.05))
