"""Where a consumer stands in a topic: what to read next, and the store's progress marks.

The worker's marks lie in the store beside the rows they speak of, so both go back together if the
store does.

A partition ends at its first end record (`schemas.names.CONTENT_END`): nothing behind it is ever
seen, and no position passes it, so whoever reads again meets it again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from aiokafka.structs import ConsumerRecord
from faust.types import TP

from schemas.errors import NotHeldError, StoreError, StreamError
from schemas.names import CONTENT_END, HEADER_CONTENT
from store.base import AsyncRowStore, Progress
from streams.app import Fetched
from streams.patience import patiently
from streams.second_look import first_gap

END_HEADER: Final = (HEADER_CONTENT, CONTENT_END)

_SEE: Final = "(docs/operations.md, A topic dropped what was not read)"
OVER_USERS: Final = f"`encore rebuild` of all user views gets a worker over that {_SEE}"
OVER_ITEMS: Final = f"`encore rebuild` of all item views gets an item worker over that {_SEE}"
OVER_REKEYED: Final = f"delete that topic, it is made anew from the source {_SEE}"
OVER_ARCHIVE: Final = f"`encore sink --accept-loss` goes on without them {_SEE}"


def end_among(records: Sequence[ConsumerRecord]) -> int | None:
    """The place of the first end record."""
    for place, record in enumerate(records):
        if record.headers and END_HEADER in record.headers:
            return place
    return None


class Positions:
    """Positions of one group in one log of a topic: the log that `epoch` is the number of.

    over: what to do about messages that the topic dropped before they came by.
    """

    def __init__(
        self, store: AsyncRowStore, topic: str, group: str, epoch: int, over: str = OVER_USERS
    ) -> None:
        self._store, self._topic, self._group = store, topic, group
        self._epoch, self._over = epoch, over
        self._assigned: tuple[int, ...] = ()
        self._next: dict[int, int] = {}
        self._watermark_ms: dict[int, int] = {}
        self._stored: dict[int, int] = {}
        self._ended: set[int] = set()

    async def marks(self) -> dict[int, int]:
        """The store's progress in this log: partition → next offset."""
        marks = await self._store.get_progress(self._topic, self._group)
        return {
            partition: mark.next_offset
            for partition, mark in marks.items()
            if mark.epoch == self._epoch
        }

    async def known(self) -> set[int]:
        """Partitions with a mark, in whichever log."""
        return set(await self._store.get_progress(self._topic, self._group))

    def begin(
        self, tps: Iterable[TP], ends: Mapping[int, int], marks: Mapping[int, int] | None = None
    ) -> dict[TP, int]:
        """Where to read newly assigned partitions from: their end, else the beginning.

        ends: partition → next offset. A partition that has none takes what the log still holds.
        marks: those that the store has, as `marks` gave them; they are there for good.
        """
        tps = tuple(tps)
        self._assigned = tuple(tp.partition for tp in tps)
        self._next = dict(ends)
        self._stored = {p: at for p, at in (marks or {}).items() if p in self._assigned}
        self._ended.clear()
        return {tp: ends.get(tp.partition, 0) for tp in tps}

    def goes_back(self, fetched: Fetched) -> bool:
        """It begins before what came by: a repetition, or a new log under the old name."""
        first = int(fetched.records[0].offset)
        return first < self._next.get(fetched.tp.partition, first)

    def hole(self, fetched: Fetched) -> tuple[int, int] | None:
        """The first offsets [first, next) that are missing before or in a list that came, and would
        be skipped for ever. None where none are."""
        if fetched.tp.partition in self._ended:
            return None
        first = int(fetched.records[0].offset)
        return first_gap(fetched.records, self._next.get(fetched.tp.partition, first))

    def skip(self, tp: TP, upto: int) -> None:
        """What lies before that offset is not waited for any more."""
        self._next[tp.partition] = upto

    def unseen(self, fetched: Fetched) -> tuple[ConsumerRecord, ...]:
        """The records that did not come by yet. Raises NotHeldError where some are missing.

        A list that repeats what came (a rebalance) is cut; one that begins behind the next offset,
        or has a hole, would skip actions for ever. Of one that holds the partition's end, what lies
        before it; afterwards nothing.
        """
        if fetched.tp.partition in self._ended:
            return ()
        records = fetched.records
        first, count = int(records[0].offset), len(records)
        expected = self._next.get(fetched.tp.partition, first)
        hole = self.hole(fetched)
        if hole is not None:
            begin, after = hole
            raise NotHeldError(
                f"{fetched.tp.topic}/{fetched.tp.partition}",
                required=f"offset {expected} next, without a hole",
                got=f"{count} records from {first} to {fetched.next_offset - 1}: {after - begin}"
                f" messages are missing, offsets {begin} to {after - 1}",
                do=f"start it again; if the topic dropped them: {self._over}",
            )
        if fetched.next_offset - first != count:  # only in what came by before
            records = tuple(record for record in records if record.offset >= expected)
            first, count = max(first, expected), len(records)
        end = end_among(records)
        if end is not None:
            self._ended.add(fetched.tp.partition)
        until = first + (count if end is None else end)
        self._next[fetched.tp.partition] = max(expected, until)
        return records[max(0, expected - first) : until - first]

    def upto(self, tp: TP) -> int:
        """The offset that comes next in a partition of which something came by."""
        return self._next[tp.partition]

    def all_ended(self) -> bool:
        """Every assigned partition has come to its end; also where none is assigned."""
        return self._ended.issuperset(self._assigned)

    def standing(self) -> dict[int, int]:
        """The offset that comes next in each assigned partition, 0 where nothing came by yet."""
        return {partition: self._next.get(partition, 0) for partition in self._assigned}

    def with_watermarks(self, upto: Mapping[TP, int]) -> dict[int, tuple[int, int]]:
        """Partition → (next offset, watermark in ms) of what is stored up to these offsets."""
        return {
            tp.partition: (offset, self._watermark_ms.get(tp.partition, 0))
            for tp, offset in upto.items()
        }

    def saw(self, partition: int, time_ms: int) -> None:
        """Something of this time came by; the watermark is the newest."""
        self._watermark_ms[partition] = max(time_ms, self._watermark_ms.get(partition, 0))

    async def store(self, upto: Mapping[TP, int], patience_ms: int) -> None:
        """Record that everything before these offsets is stored.

        Raises StreamError where a mark that this process read or wrote is not there any more: the
        store went back, by what was written after the last mark it still has at least.
        """
        marks = self.with_watermarks(upto)  # as they are now: more may come by meanwhile
        await patiently(
            f"progress of {self._topic}", lambda: self._put(marks), patience_ms, (StoreError,)
        )

    async def check(self) -> None:
        """Raises StreamError where a mark that this process read or wrote is not there any more,
        StoreError. Later ones are no fault: who has them took the partition over."""
        known = dict(self._stored)  # what is written meanwhile may come too late to be found
        there = await self._store.get_progress(self._topic, self._group)
        for partition, offset in known.items():
            self._require_mark(there.get(partition), partition, offset)

    def _require_mark(self, there: Progress | None, partition: int, offset: int) -> None:
        if there is None or there[:2] < (self._epoch, offset):
            raise StreamError(
                f"progress of {self._topic}/{partition}",
                required=f"the mark {offset} of log {self._epoch}, which was there, or a later one",
                got=f"{there and there[:2]}: the store went back",
                do="restart this process: it reads again from the mark that is there",
            )

    async def _put(self, marks: Mapping[int, tuple[int, int]]) -> None:
        there = await self._store.get_progress(self._topic, self._group)
        for partition, offset in self._stored.items():
            mark = there.get(partition)
            self._require_mark(mark, partition, offset)
            if mark is not None and mark.epoch > self._epoch:
                raise StreamError(
                    f"progress of {self._topic}/{partition}",
                    required=f"no mark of a later log than {self._epoch}, which this process reads",
                    got=f"{mark[:2]}: the broker lost its log",
                    do="restart this process, it takes a new epoch",
                )
        progress = {partition: (self._epoch, *mark) for partition, mark in marks.items()}
        await self._store.put_progress(self._topic, self._group, progress)
        self._stored |= {partition: offset for partition, (offset, _) in marks.items()}
