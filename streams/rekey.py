"""Re-keying: each action of a topic once more, in the partition of its item.

Every round of source records becomes one message in each re-keyed partition, an empty one where the
round has nothing for it: so each partition's messages cover the source without a gap, and a message
that is missing shows. Refused source messages are covered and left out; they are the worker's to
dead-letter.

The position in the source moves once every message of a round is confirmed. After a crash the last
round may be sent again, perhaps cut differently; consumers drop what they have
(`streams.source_table`). Positions belong to one log of the re-keyed topic: where the broker lost
that, the source is re-keyed again from the first offset it still holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from aiokafka.structs import ConsumerRecord
from faust.types import TP
from numpy.typing import NDArray

from schemas.errors import NotHeldError
from schemas.ids import partitions_of
from schemas.names import HEADER_LOG
from schemas.rekeyed import SOURCE, SOURCE_RANGE, RekeyedBatch, encode_rekeyed
from streams.app import Fetched, Sender
from streams.durability import Confirmations
from streams.heartbeat import Tally
from streams.messages import ActionRun, decode_records, join_runs
from streams.overlap import ended
from streams.positions import Positions
from streams.source import Source
from streams.trailing import Trailing

log = logging.getLogger("encore.streams")

#: A round ends when its source messages have this many bytes: a re-keyed message stays below the
#: megabyte that brokers take unless told otherwise.
ROUND_BYTES: Final = 512 * 1024

#: Source partition → the offset before which all rows have everything, whatever is re-keyed.
Given = Callable[[int], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Round:
    """Source records to be re-keyed together: of each partition consecutive ones, at least one."""

    records: dict[TP, tuple[ConsumerRecord, ...]]

    @property
    def ends(self) -> dict[TP, int]:
        """The offset after the last record of each partition."""
        return {tp: int(records[-1].offset) + 1 for tp, records in self.records.items()}


def rounds_of(lists: Sequence[tuple[TP, tuple[ConsumerRecord, ...]]]) -> Iterator[Round]:
    """Cut lists of records into rounds of about ROUND_BYTES; order within a partition is kept."""
    held: dict[TP, tuple[ConsumerRecord, ...]] = {}
    size = 0
    for tp, records in lists:
        start = 0
        for end, record in enumerate(records, 1):
            size += len(record.value or b"")
            if size >= ROUND_BYTES or end == len(records):
                held[tp] = held.get(tp, ()) + records[start:end]
                start = end
            if size >= ROUND_BYTES:
                yield Round(held)
                held, size = {}, 0
    if held:
        yield Round(held)


def rekey(
    run: ActionRun, covers: NDArray[np.void], epoch: int, partitions: int
) -> list[RekeyedBatch]:
    """One batch for each of `partitions`, with the run's actions whose item belongs to it.

    run: the valid actions of the source ranges `covers` (SOURCE_RANGE); their order is kept. epoch:
    of the source's log.
    """
    sources = np.zeros(len(run), SOURCE)
    sources["offset"], sources["sent_ms"] = run.offset, run.sent_ms
    sources["epoch"], sources["partition"], sources["index"] = epoch, run.partition, run.index
    covered = np.unique(run.partition).tolist()
    items, which = np.unique(run.actions["item"], return_inverse=True)
    owner = partitions_of(items, partitions)[which] if len(items) else which  # (a,)
    sent_ms = min((int(run.sent_ms[run.partition == p].max()) for p in covered), default=0)
    places = (np.flatnonzero(owner == partition) for partition in range(partitions))
    return [RekeyedBatch(sent_ms, run.actions[at], sources[at], covers) for at in places]


class Rekeyer:
    """Re-keys what it is handed. target: the re-keyed topic, which has `partitions`. positions: in
    the source, of this re-keyed log. confirmations: of what was stored."""

    def __init__(
        self,
        source: Source,
        target: Source,
        partitions: int,
        positions: Positions,
        confirmations: Confirmations,
        patience_ms: int,
    ) -> None:
        self._source, self._target, self._partitions = source, target, partitions
        self._positions, self._confirmations = positions, confirmations
        self._patience_ms = patience_ms
        self._marking = Trailing(self._mark)
        self._hole: NotHeldError | None = None
        self.tally = Tally()
        self.actions = 0

    async def handle(self, lists: list[Fetched], send: Sender, given: Given) -> None:
        """Returns once all is in the re-keyed topic; the positions in the source trail behind.

        Of a partition with a hole what lies before it, and what lies behind where all rows were
        given what is missing; else `check_hole` raises what is to be done.
        """
        fresh = [(each.tp, records) for each in lists for records in await self._fresh(each, given)]
        for part in rounds_of([(tp, records) for tp, records in fresh if records]):
            # Fetched before this look at the log, so they are of this one: their epoch is right.
            same_log = asyncio.ensure_future(self._source.check())
            try:
                await self._send(part, send, same_log)
            finally:
                await ended(same_log)
            self._marking.add(part.ends)

    async def _fresh(self, fetched: Fetched, given: Given) -> list[tuple[ConsumerRecord, ...]]:
        parts: list[tuple[ConsumerRecord, ...]] = []
        while (hole := self._positions.hole(fetched)) is not None:
            head = tuple(record for record in fetched.records if record.offset < hole[0])
            if head:
                parts.append(self._positions.unseen(replace(fetched, records=head)))
            fetched = replace(fetched, records=fetched.records[len(head) :])
            if await given(fetched.tp.partition) < hole[1]:
                break
            log.warning("%s: offsets %d to %d were dropped; all rows have them", fetched.tp, *hole)
            self._positions.skip(fetched.tp, hole[1])
        try:
            parts.append(self._positions.unseen(fetched))
        except NotHeldError as error:
            self._hole = self._hole or error
        return parts

    @property
    def stands_at_a_hole(self) -> bool:
        """Whether nothing more of some partition is re-keyed."""
        return self._hole is not None

    def check(self) -> None:
        """Raises what storing a position failed with."""
        self._marking.check()

    def check_hole(self) -> None:
        """Raises NotHeldError for a hole in the source."""
        if self._hole is not None:
            raise self._hole

    async def settle(self) -> None:
        """Return once the positions of all that was sent are stored. Raises StreamError."""
        await self._marking.settle()

    async def _mark(self, upto: dict[TP, int]) -> None:
        await self._positions.store(upto, self._patience_ms)
        self._confirmations.stored(upto)

    async def _send(self, part: Round, send: Sender, same_log: asyncio.Future[None]) -> None:
        """same_log: awaited before anything is sent."""
        runs = [decode_records(records, self._partitions)[0] for records in part.records.values()]
        covers = np.zeros(len(part.records), SOURCE_RANGE)
        for place, (tp, records) in enumerate(part.records.items()):
            ends = int(records[0].offset), int(records[-1].offset) + 1
            covers[place] = (*ends, self._source.epoch, tp.partition)
        batches = rekey(join_runs(runs), covers, self._source.epoch, self._partitions)
        topic, headers = self._target.topic, {HEADER_LOG: self._target.topic_id.encode()}
        messages = [(_key(batch), encode_rekeyed(batch)) for batch in batches]
        await same_log
        await asyncio.gather(
            *(
                send(topic, key, value, headers, partition)
                for partition, (key, value) in enumerate(messages)
            )
        )
        for run in runs:
            if len(run):
                self._positions.saw(int(run.partition[0]), int(run.sent_ms.max()))
                self.tally.of(int(run.partition[0])).actions += len(run)
        self.actions += sum(len(run) for run in runs)


def rekey_group(group: str, target_epoch: int) -> str:
    """Under which the positions of re-keying into one log are kept: a new log begins anew."""
    return f"{group}.rekey.{target_epoch}"


def _key(batch: RekeyedBatch) -> bytes | None:
    return b"%d" % int(batch.actions["item"][0]) if len(batch.actions) else None
