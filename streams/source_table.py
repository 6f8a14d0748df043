"""How far one re-keyed partition is folded, and which of its actions were folded already.

Whoever re-keys may die after a message is in the log and before it remembers that, and then sends
the same source offsets again, cut another way. So each consumer of a re-keyed partition keeps a
table {source partition: (epoch, next offset)}: of a message it accepts the actions beyond the
table, and then the table stands behind the ranges that the message covers. What is accepted is a
function of the re-keyed log up to that message, whoever reads it and however often.

The table is saved as one text together with the position in the re-keyed partition up to which it
speaks, by compare-and-set on a version: a consumer that lost its partition cannot overwrite what
its successor saved.

Rows are written before the table that speaks of them. Before the rows, in turn, the pair takes
notes: what the messages behind its position cover. Where their log is lost after a crash in
between, they are made again from the source (`streams.refolding`).
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import NotHeldError, StoreError, StreamError
from schemas.names import source_table_key, source_table_version_key
from schemas.rekeyed import RekeyedBatch
from store.base import AsyncRowStore
from streams.patience import patiently
from streams.positions import OVER_ITEMS

Reached = tuple[int, int]  # epoch of the source's log, next offset
#: What a re-keyed message covers: of the source (partition, epoch, first offset, next offset).
Covers = tuple[tuple[int, int, int, int], ...]


@dataclass(slots=True)
class SourceTable:
    """reached: source partition → the epoch and the offset after the last folded one. sent_ms: of
    it the time up to which its messages are in the rows, as far as it is known."""

    reached: dict[int, Reached] = field(default_factory=dict)
    sent_ms: dict[int, int] = field(default_factory=dict, compare=False)

    @property
    def watermark_ms(self) -> int:
        """The time that every source partition has reached, 0 where nothing is known."""
        return min(self.sent_ms.values(), default=0)

    def admit(self, batch: RekeyedBatch, where: str) -> NDArray[np.bool_]:
        """(a,) bool: the actions that are beyond the table, which then covers the message.

        A source partition that the table does not know, or knows in an earlier epoch, is taken from
        where the message begins. Raises NotHeldError for a gap: what lies in it would be lost; the
        table is as it was then.
        """
        accepted = np.zeros(len(batch.actions), bool)  # (a,)
        sources, reached, sent_ms = batch.sources, dict(self.reached), dict(self.sent_ms)
        for partition, first, after, epoch in zip(
            *(batch.covers[name].tolist() for name in ("partition", "first", "next", "epoch")),
            strict=True,
        ):
            known_epoch, known = reached.get(partition, (0, 0))
            if epoch < known_epoch:
                continue
            if epoch > known_epoch:
                known = first
            if first > known:
                raise NotHeldError(
                    where,
                    required=f"source offset {known} of partition {partition} next",
                    got=f"the range [{first}, {after}): {first - known} messages are missing",
                    do=f"start it again; if the source dropped them: {OVER_ITEMS}",
                )
            own = (sources["partition"] == partition) & (sources["offset"] >= known)
            accepted |= own
            reached[partition] = epoch, max(known, after)
            if batch.sent_ms:
                sent_ms[partition] = max(sent_ms.get(partition, 0), batch.sent_ms)
        self.reached, self.sent_ms = reached, sent_ms
        return accepted

    def raise_to(self, partition: int, epoch: int, offset: int) -> None:
        """What lies before that offset of a source partition is in the rows by other ways."""
        known = self.reached.get(partition, (0, 0))
        self.reached[partition] = max(known, (epoch, offset))

    def gaps(self, batch: RekeyedBatch) -> Iterator[tuple[int, int, int]]:
        """The ranges of a message that do not follow on what is known: (source partition, epoch,
        first offset) of each."""
        for partition, epoch, first, _ in covers_of(batch):
            known_epoch, known = self.reached.get(partition, (0, 0))
            if epoch == known_epoch and first > known:
                yield partition, epoch, first

    def copy(self) -> SourceTable:
        """As it is now, whatever is admitted later."""
        return SourceTable(dict(self.reached), dict(self.sent_ms))


@dataclass(slots=True)
class Pair:
    """A table and its re-key position. epoch: of the re-keyed log that next_offset is in; 0 where
    nothing was saved yet. version: of the saved text. folded: (view, generation) whose rows hold
    all before next_offset. ahead: {offset of a message that may be in rows, from next_offset on:
    what it covers}, without a gap. ended: {epoch of a lost log: the position that was saved in it}.
    source_epoch: of a generation that is filled, the source's log that there was when it began."""

    epoch: int
    next_offset: int
    table: SourceTable
    version: int
    folded: frozenset[tuple[str, int]] = frozenset()
    ahead: dict[int, Covers] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    source_epoch: int = 0

    def enter(self, epoch: int, source_epoch: int) -> None:
        """Begin with another re-keyed log than before.

        What was in the lost log beyond the position, and was not folded to its end
        (`streams.refolding`), may be in rows and comes again as long as the source's log is the
        same: `streams.folding` refuses rows that are ahead of the table.
        Raises StreamError where another process is in a newer log already.
        """
        if epoch < self.epoch:
            raise StreamError(
                "source table",
                required=f"the log of epoch {self.epoch}, or a newer one",
                got=f"the log of epoch {epoch}, which is lost",
                do="restart this process, it takes the new log",
            )
        epochs = {at[0] for at in self.table.reached.values()}
        epochs |= {covered[1] for covers in self.ahead.values() for covered in covers}
        if self.epoch and (not epochs or source_epoch in epochs):
            self.ended[self.epoch] = self.next_offset
        self.epoch, self.next_offset, self.ahead = epoch, 0, {}

    def standing(self, epoch: int) -> int:
        """The position in the log of that epoch; its beginning where the pair is of another."""
        return self.next_offset if self.epoch == epoch else 0


def dump_pair(pair: Pair, version: int) -> str:
    """The text of a pair under that version."""
    sources = {str(partition): list(at) for partition, at in sorted(pair.table.reached.items())}
    return json.dumps(
        {
            "version": version,
            "epoch": pair.epoch,
            "next_offset": pair.next_offset,
            "sources": sources,
            "sent_ms": {str(p): at for p, at in sorted(pair.table.sent_ms.items())},
            "ahead": [[offset, *covers] for offset, covers in sorted(pair.ahead.items())],
            "ended": {str(epoch): at for epoch, at in sorted(pair.ended.items())},
            "folded": sorted(map(list, pair.folded)),
            "source_epoch": pair.source_epoch,
        }
    )


def parse_pair(text: str | None, key: str) -> Pair:
    """The inverse of `dump_pair`; None is the pair before anything was folded.

    Raises StreamError.
    """
    if text is None:
        return Pair(0, 0, SourceTable(), 0)
    try:
        held: dict[str, Any] = json.loads(text)
        reached = {int(p): (int(epoch), int(at)) for p, (epoch, at) in held["sources"].items()}
        numbers = [int(held[name]) for name in ("epoch", "next_offset", "version")]
        folded = frozenset((str(view), int(number)) for view, number in held.get("folded", ()))
        ahead = {int(at): _covers(each) for at, *each in held.get("ahead", ())}
        ended = {int(epoch): int(at) for epoch, at in held.get("ended", {}).items()}
        sent_ms = {int(p): int(at) for p, at in held.get("sent_ms", {}).items()}
        source_epoch = int(held.get("source_epoch", 0))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StreamError(
            f"store, {key}",
            required="a saved source table",
            got=f"{text[:60]!r} ({type(error).__name__})",
            do="rebuild the item views from the archive: nobody knows what they hold",
        ) from None
    table = SourceTable(reached, sent_ms)
    return Pair(numbers[0], numbers[1], table, numbers[2], folded, ahead, ended, source_epoch)


def _covers(held: list[list[int]]) -> Covers:
    return tuple((int(p), int(epoch), int(first), int(after)) for p, epoch, first, after in held)


class PairStore:
    """The pairs of one group in one re-keyed topic."""

    def __init__(self, store: AsyncRowStore, topic: str, group: str, patience_ms: int) -> None:
        self._store, self._topic, self._group = store, topic, group
        self._patience_ms = patience_ms
        self._saving: defaultdict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def load(self, partition: int) -> Pair:
        """The saved pair. Raises StoreError, StreamError."""
        key = source_table_key(self._topic, self._group, partition)
        return parse_pair(await self._store.get_text(key), key)

    async def save(self, partition: int, pair: Pair) -> None:
        """Save the pair as it is once saves that were begun before are done, and advance its
        version. Raises StreamError where another process saved."""
        async with self._saving[partition]:
            text = dump_pair(pair, pair.version + 1)
            await patiently(
                f"source table of {self._topic}/{partition}",
                lambda: self._put(partition, pair.version, text),
                self._patience_ms,
                (StoreError,),
            )
            pair.version += 1

    async def check(self, pairs: Mapping[int, Pair]) -> None:
        """Raises StreamError where a pair that was loaded or saved is not there any more,
        StoreError. A later one is no fault: who saved it took the partition over."""
        known = {p: pair.version for p, pair in pairs.items() if pair.version}
        await asyncio.gather(*(self._require_version(p, known[p]) for p in known))

    async def _require_version(self, partition: int, version: int) -> None:
        key = source_table_version_key(self._topic, self._group, partition)
        there = int(await self._store.get_text(key) or 0)
        if there < version:
            raise StreamError(
                f"source table of {self._topic}/{partition}",
                required=f"the version {version}, which was there, or a later one",
                got=f"{there}: the store went back",
                do="restart this process: it goes on from what is saved",
            )

    async def _put(self, partition: int, version: int, text: str) -> None:
        place = self._topic, self._group, partition
        key = source_table_key(*place)
        landed = await self._store.compare_and_set_text(
            key, source_table_version_key(*place), version, text
        )
        # An earlier attempt may have landed though its reply was lost.
        if not landed and await self._store.get_text(key) != text:
            raise StreamError(
                f"source table of {self._topic}/{partition}",
                required=f"the version {version} that this process knows",
                got="another: another process folds this partition, or the store went back",
                do="restart this process: it goes on from what is saved",
            )


def covers_of(batch: RekeyedBatch) -> Covers:
    """What a message covers."""
    names = ["partition", "epoch", "first", "next"]
    return tuple(tuple(each) for each in batch.covers[names].tolist())


def check_epochs(batch: RekeyedBatch, newest: int, where: str) -> None:
    """Raises StreamError where a message is of a later log than the newest that the store knows.

    A wiped store numbers the source's logs anew, so what is re-keyed from now on would be dropped
    as older than what this message covers.
    """
    found = int(batch.covers["epoch"].max(initial=0))
    if found > newest:
        raise StreamError(
            where,
            required=f"source epoch {newest}, the newest that the store knows, or an earlier one",
            got=str(found),
            do="restart this process; if it says so again, the store was wiped: delete the re-keyed"
            " topic, it is made anew from the source",
        )


def lowest_reached(pairs: Mapping[int, Pair], source_partition: int, epoch: int) -> int:
    """The source offset up to which every re-keyed partition is folded, 0 in another epoch."""
    return min((reached_in(pair, source_partition, epoch) for pair in pairs.values()), default=0)


def reached_in(pair: Pair, source_partition: int, epoch: int) -> int:
    """The offset of a source partition up to which a pair is folded, 0 in another epoch."""
    at_epoch, at = pair.table.reached.get(source_partition, (0, 0))
    return at if at_epoch == epoch else 0
