"""Faust's Kafka transport, made to pass on fetched lists and to commit only what is stored.

Four things differ from `faust.transport.drivers.aiokafka`:

- An agent gets one event for each (partition, fetched list), whose value is the tuple of records.
  Faust's own loop makes several tasks and futures for each message; the consumer under it is 30
  times as fast as that.
- Commits do not follow Faust's acks. A partition is committed up to its mark, and only
  `Marks.advance` moves a mark, once everything before it is stored. So an exception that escapes
  an agent, a message skipped in a rebalance or an ack by `Stream.take` cannot lose anything.
- After each assignment a partition is read from where the owner of the marks says (`StartAt`),
  not from the committed offset, which may be ahead of a store that went back. No fetch is under
  way meanwhile: it would take what lies behind the new position with it, and be dropped.
- What lies behind a missing offset is passed on only after the broker was asked for that offset
  again (`streams.second_look`). The other partitions are read meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.second_look import SecondLooks

#: Partitions newly assigned → the offset to read each from; one left out starts at its commit.
StartAt = Callable[[frozenset[TP]], Awaitable[dict[TP, int]]]

#: The longest a fetch waits for records, and so the longest a rebalance waits for a fetch.
POLL_S = 0.2

#: Between two looks at the time while every partition waits.
PAUSE_S = 0.02


@dataclass(slots=True)
class Marks:
    """Up to where each partition is stored: the offset after the last stored record."""

    _next: dict[TP, int] = field(default_factory=dict)
    _lost: set[TP] = field(default_factory=set)
    #: What the broker says was committed when the partition was assigned; 0 where nothing was.
    committed: dict[TP, int] = field(default_factory=dict)

    def advance(self, tp: TP, next_offset: int) -> None:
        """All records of the partition before `next_offset` are stored now.

        Nothing happens where the partition is someone else's by now.
        """
        if tp not in self._lost and next_offset > self._next.get(tp, -1):
            self._next[tp] = next_offset

    def get(self, tp: TP) -> int | None:
        """The mark, None where nothing was stored since the partition was assigned."""
        return self._next.get(tp)

    def forget(self, tps: Iterable[TP]) -> None:
        """The partitions belong to someone else now."""
        for tp in tps:
            self._next.pop(tp, None)
            self._lost.add(tp)

    def own(self, tps: Iterable[TP]) -> None:
        """The partitions are this process's from now on."""
        self._lost.difference_update(tps)

    def partitions(self) -> Iterator[TP]:
        """Partitions with a mark."""
        return iter(tuple(self._next))


class ListConsumerThread(driver.AIOKafkaConsumerThread):
    """aiokafka in its thread, with a fetch wait that can be set."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        # Faust fixes 1500 ms. The fetcher is made in aiokafka's start(), which reads this.
        consumer._fetch_max_wait_ms = transport.fetch_wait_ms
        return consumer

    async def on_thread_stop(self) -> None:
        """The end of a drain, or of a failure."""
        self._vanish_unless_leaving()
        await super().on_thread_stop()

    def close(self) -> None:
        """Faust's way out of a crash."""
        self._vanish_unless_leaving()
        super().close()

    def membership(self) -> str:
        """How far this consumer is with its group, for people. Any thread may ask."""
        coordinator = getattr(self._consumer, "_coordinator", None)
        if coordinator is None:
            return "no broker has answered yet"
        if coordinator.coordinator_id is None:
            return "no coordinator of the group was found"
        if coordinator.generation < 0:
            return f"coordinator {coordinator.coordinator_id} has not let it join"
        return f"it is in generation {coordinator.generation}, and was not told its partitions"

    def _vanish_unless_leaving(self) -> None:
        """Closing the coordinator leaves the group otherwise, even one that it is just joining;
        and it waits for as long as a broker that does not answer the join is given, 90 s."""
        transport = cast(ListTransport, self.consumer.transport)
        coordinator = getattr(self._consumer, "_coordinator", None)
        if coordinator is None or transport.leaves_group:
            return
        coordinator._maybe_leave_group = _stay
        joining = getattr(coordinator, "_coordination_task", None)  # only of a group
        if joining is not None and not joining.done():
            coordinator._coordination_task = ended = self.thread_loop.create_future()
            ended.set_result(None)
            self.thread_loop.call_soon_threadsafe(joining.cancel)


async def _stay() -> None:
    """Nothing: the session ends by itself."""


class ListConsumer(driver.Consumer):
    """Faust's consumer, by fetched list."""

    transport: ListTransport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._positions = asyncio.Lock()  # a fetch moves them, and so does a seek
        self._looks = SecondLooks()
        self.transport.consumer = self

    def _new_consumer_thread(self) -> ListConsumerThread:
        return ListConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def membership(self) -> str:
        """As `ListConsumerThread.membership`."""
        return cast(ListConsumerThread, self._thread).membership()

    # --- reading ----------------------------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        """Fetch and pass on until stopped. Faust runs this in its Fetcher and restarts it."""
        while not (self.should_stop or fetcher.should_stop):
            try:
                records, active = await self._wait_next_records(POLL_S)
            except self.consumer_stopped_errors:
                if self.app.should_stop:
                    return
                raise
            if records:
                await self._pass_on(records, active)
            await asyncio.sleep(0)

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        """Nothing while positions are sought; `_pass_on` drops what a rebalance overtakes here."""
        async with self._positions:
            if not self.flow_active:
                return {}
            await self._look_again()
            waiting = self._looks.waiting()
            if not waiting:
                return await super()._getmany(active_partitions, timeout)
            wanted = set(active_partitions) - waiting
            if wanted:
                return await super()._getmany(wanted, timeout)
        await asyncio.sleep(PAUSE_S)  # a fetch of no partition would be one of all
        return {}

    async def _look_again(self) -> None:
        """Seek to the missing offsets whose time it is."""
        due = self._looks.due(time.monotonic())
        if due:
            await self.seek_wait(due)
            self._looks.looked(due)

    async def _pass_on(self, records: Any, active: set[TP] | None) -> None:
        """One message for each list.

        What a rebalance cuts off is read again: Faust resumes the flow only after `perform_seek`.
        """
        generation = self.app.consumer_generation_id
        for aiokafka_tp, fetched in records.items():
            tp = TP(aiokafka_tp.topic, aiokafka_tp.partition)
            if not self.flow_active or self.app.consumer_generation_id != generation:
                return
            wanted = active is None or tp in active or tp in self._buffered_partitions
            if not fetched or not wanted:
                continue
            fetched = fetched[: self._looks.cut(tp, fetched, time.monotonic())]
            if not fetched:
                continue
            message = self._to_message(tp, fetched[-1])
            message.value = cast(Any, tuple(fetched))
            message.key = None
            await self.wait_first(self.callback(message), self.suspend_flow.wait())
            self._read_offset[tp] = fetched[-1].offset

    # --- positions --------------------------------------------------------------------------

    async def perform_seek(self) -> None:
        """Seek to the committed offsets, then to where the owner of the marks says."""
        async with self._positions:
            await self._seek_all()

    async def _seek_all(self) -> None:
        await super().perform_seek()
        assigned = frozenset(TP(tp.topic, tp.partition) for tp in self.assignment())
        self.transport.marks.own(assigned)
        for tp in assigned:
            self.transport.marks.committed[tp] = max(0, self._committed_offset.get(tp) or 0)
        positions = await self.transport.start_at(assigned)
        if positions:
            await self.seek_wait(positions)
        self._looks.begin(positions)

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> Iterator[TP]:
        return self.transport.marks.partitions()

    def _new_offset(self, tp: TP) -> int | None:
        return self.transport.marks.get(tp)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Faust commits within; afterwards the marks of the lost partitions are nobody's."""
        await super().on_partitions_revoked(revoked)
        self.transport.marks.forget(revoked)


class ListTransport(driver.Transport):
    """The transport a stream app uses; `configure` before the app starts."""

    Consumer: ClassVar[Any] = ListConsumer

    #: Set by a drain. A process that fails vanishes instead, and its session ends by itself:
    #: started again at once it costs the others one rebalance so, and a coordinator that waits for
    #: its leader's assignment (Tansu 0.6) never sees that leader leave in the midst of it, which it
    #: would not get over.
    leaves_group: bool = False
    fetch_wait_ms: int
    marks: Marks
    start_at: StartAt
    consumer: ListConsumer | None = None

    def membership(self) -> str:
        """How far the consumer is with its group, for people. Any thread may ask."""
        return "it has not asked yet" if self.consumer is None else self.consumer.membership()

    def configure(self, fetch_wait_ms: int, marks: Marks, start_at: StartAt) -> None:
        """Set what Faust's own constructor has no place for."""
        self.fetch_wait_ms = fetch_wait_ms
        self.marks = marks
        self.start_at = start_at
