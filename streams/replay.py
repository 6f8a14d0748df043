"""Replay a log in event time, tick by tick, against running streams and a running service.

A tick is `tick_ms` of event time. For each: wait until everything sent so far is in the rows, hand
over the tick's requests, then send the tick's actions with the tick's end as `sent_ms`. So a
request sees every action of earlier ticks and none of its own tick, its own impression included.
Ticks without requests do not wait: their actions pile up in the topic and are folded in bulk.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from schemas.errors import StreamError
from schemas.names import by_item_topic, root_topic
from store.base import AsyncRowStore, Progress
from streams.admin import Admin
from streams.source_table import PairStore, lowest_reached

TICK_MS: Final = 600_000
FIRST_POLL_S: Final = 0.001
LONGEST_POLL_S: Final = 0.004


class Timed(Protocol):
    """A request: anything that knows its event time."""

    @property
    def time_ms(self) -> int:
        """Event time, ms since 1970."""
        ...


R = TypeVar("R", bound=Timed)


class SendsActions(Protocol):
    """What a replay needs of `streams.producer.ActionProducer`."""

    def send(self, actions: NDArray[np.void], sent_ms: int) -> dict[int, int]:
        """Send, wait for confirmation, give the next offset of each partition that got some."""
        ...


@dataclass(frozen=True, slots=True)
class Tick:
    """One tick's span [start_ms, end_ms) and what it holds. number: from 0, empty ticks counted."""

    number: int
    start_ms: int
    end_ms: int
    actions: slice
    requests: slice


@dataclass(slots=True)
class ReplayCounts:
    """What a replay did. waits: ticks that waited; waited_s: for how long in all."""

    ticks: int = 0
    actions: int = 0
    requests: int = 0
    waits: int = 0
    waited_s: float = 0.0
    longest_wait_s: float = 0.0


class Mark(Protocol):
    """Whose progress a replay waits for: a group that reads a topic."""

    @property
    def topic(self) -> str:
        """The topic that the replay's producer sends to."""
        ...

    @property
    def group(self) -> str:
        """The consumer group."""
        ...

    async def behind(self, ends: Mapping[int, int]) -> int:
        """How many messages some partition misses to its end at most; 0 or less where none does.

        ends: partition → next offset. Raises StoreError, StreamError.
        """
        ...


@dataclass(frozen=True, slots=True)
class StreamMark:
    """The mark of a group whose progress the store keeps. epoch: of the topic's present log."""

    store: AsyncRowStore
    topic: str
    group: str
    epoch: int

    async def behind(self, ends: Mapping[int, int]) -> int:
        """As `Mark.behind`."""
        progress = await self.store.get_progress(self.topic, self.group)
        return max(
            (end - _reached(progress.get(p), self.epoch) for p, end in ends.items()), default=0
        )


@dataclass(frozen=True, slots=True)
class ItemMark:
    """How far actions are in the item rows. epoch: of the source topic's present log.

    tables: of the re-keyed topic, which has `partitions`.
    """

    tables: PairStore
    topic: str
    group: str
    epoch: int
    partitions: int

    async def behind(self, ends: Mapping[int, int]) -> int:
        """As `Mark.behind`: an action may go to any re-keyed partition, so the slowest counts."""
        partitions = range(self.partitions)
        loaded = await asyncio.gather(*(self.tables.load(p) for p in partitions))
        pairs = dict(zip(partitions, loaded, strict=True))
        return max(
            (end - lowest_reached(pairs, p, self.epoch) for p, end in ends.items()), default=0
        )


def item_mark(mark: StreamMark, group: str, partitions: int, patience_ms: int = 2_000) -> ItemMark:
    """The mark of the item worker beside a worker's. group: the item worker's."""
    tables = PairStore(mark.store, by_item_topic(mark.topic), group, patience_ms)
    return ItemMark(tables, mark.topic, group, mark.epoch, partitions)


async def find_mark(store: AsyncRowStore, bootstrap: str, topic: str, group: str) -> StreamMark:
    """The mark of a topic that exists. Raises StreamError."""
    with await asyncio.to_thread(Admin, bootstrap) as admin:
        facts = await asyncio.to_thread(admin.describe, topic)
    if facts is None:
        raise StreamError(
            f"topic {topic}", required="an existing topic", got="none", do="start a worker first"
        )
    return StreamMark(store, topic, group, await store.epoch_of(root_topic(topic), facts.topic_id))


async def wait_stored(mark: Mark, ends: Mapping[int, int], timeout_s: float) -> None:
    """Return once the group has stored each partition up to its end (partition → next offset).

    Raises StreamError after `timeout_s`.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_POLL_S
    while True:
        behind = await mark.behind(ends)
        if behind <= 0:
            return
        if time.monotonic() > deadline:
            raise StreamError(
                f"topic {mark.topic}, group {mark.group}",
                required=f"everything that was sent, stored within {timeout_s:.0f} s",
                got=f"{behind} messages behind",
                do="look at the worker's log",
            )
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.2, LONGEST_POLL_S)


def _reached(progress: Progress | None, epoch: int) -> int:
    return progress.next_offset if progress is not None and progress.epoch == epoch else 0


def ticks_of(
    action_times: NDArray[np.int64], request_times: NDArray[np.int64], tick_ms: int
) -> Iterator[Tick]:
    """The ticks from the first event to the last; those that hold nothing are left out.

    action_times (a,), request_times (r,): i64, each ascending. Raises ValueError where they do not
    ascend.
    """
    for name, times in (("actions", action_times), ("requests", request_times)):
        if (np.diff(times) < 0).any():
            raise ValueError(f"{name}: needs ascending times")
    firsts = [int(times[0]) for times in (action_times, request_times) if len(times)]
    if not firsts:
        return
    begin = min(firsts) // tick_ms
    numbers = np.union1d(action_times // tick_ms, request_times // tick_ms)
    starts = numbers * tick_ms
    edges = [
        (np.searchsorted(times, starts), np.searchsorted(times, starts + tick_ms))
        for times in (action_times, request_times)
    ]
    for i, start in enumerate(starts.tolist()):
        (a0, a1), (r0, r1) = ((int(low[i]), int(high[i])) for low, high in edges)
        number = int(numbers[i]) - begin
        yield Tick(number, start, start + tick_ms, slice(a0, a1), slice(r0, r1))


@dataclass(frozen=True, slots=True)
class Replay(Generic[R]):
    """A log and what it is replayed against.

    actions: (a,) ACTION by time. requests: by time. marks: the groups that are waited for.
    on_requests: called with a tick's requests (at least one) once the rows are ready; returns when
        all are answered; bounds its own concurrency.
    on_tick: called after each tick with the counts so far.
    """

    actions: NDArray[np.void]
    requests: Sequence[R]
    producer: SendsActions
    marks: Sequence[Mark]
    on_requests: Callable[[Sequence[R], Tick], Awaitable[None]]
    on_tick: Callable[[Tick, ReplayCounts], None] | None = None
    tick_ms: int = TICK_MS
    timeout_s: float = 60.0

    async def run(self) -> ReplayCounts:
        """Replay all; returns once the last tick's actions are stored. Raises StreamError."""
        counts = ReplayCounts()
        ends: dict[int, int] = {}
        times = np.array([request.time_ms for request in self.requests], np.int64)
        for tick in ticks_of(self.actions["time_ms"], times, self.tick_ms):
            requests = self.requests[tick.requests]
            if requests:
                await self._wait(ends, counts)
                await self.on_requests(requests, tick)
            actions = self.actions[tick.actions]
            if len(actions):
                ends |= await asyncio.to_thread(self.producer.send, actions, tick.end_ms)
            counts.ticks += 1
            counts.actions += len(actions)
            counts.requests += len(requests)
            if self.on_tick is not None:
                self.on_tick(tick, counts)
        await self._wait(ends, counts)
        return counts

    async def _wait(self, ends: Mapping[int, int], counts: ReplayCounts) -> None:
        began = time.monotonic()
        for mark in self.marks:
            await wait_stored(mark, ends, self.timeout_s)
        waited_s = time.monotonic() - began
        counts.waits += 1
        counts.waited_s += waited_s
        counts.longest_wait_s = max(counts.longest_wait_s, waited_s)
