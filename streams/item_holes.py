"""Holes in the source of item views: what was dropped there before it was re-keyed.

Whoever re-keys stops at such a hole, and so does whoever folds a re-keyed log that begins behind
what its tables know. Only the archive has what lies between. So a generation that is filled then
goes up to where the source ends, and its pairs say so; once all generations that are folded were
filled like that, re-keying goes on behind the hole, and the tables take what the generations were
given for folded (`streams.item_worker`). All of them are given the same: what lies behind is folded
into all of them.

Symbols: P partitions, of the source and of the re-keyed topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from schemas.errors import PlanError, StreamError
from schemas.names import generation_group
from schemas.plan import ViewPlan
from store.base import AsyncRowStore
from streams.config import StreamConfig
from streams.item_messages import decode_rekeyed_records
from streams.log_reader import LogReader, first_held, is_held
from streams.origins import Log, ReadEnds
from streams.plans import fed_views, published_plan, staged_plan
from streams.rekey import rekey_group
from streams.source_table import Pair, PairStore, covers_of, lowest_reached, reached_in

PAUSE_MS: Final = 100

#: {re-keyed partition: {source partition: the offset before which all is filled}}.
Beyond = dict[int, dict[int, int]]


@dataclass(frozen=True, slots=True)
class ItemHoles:
    """How they are looked for. source, target: the logs, the re-keyed one last."""

    store: AsyncRowStore
    config: StreamConfig
    source: Log
    target: Log
    reader: LogReader
    read_ends: ReadEnds

    async def beyond(self) -> Beyond:
        """Up to where a generation has to be filled in partitions behind which there is a hole;
        empty where there is none.

        Raises StoreError, and StreamError where the item worker does not get up to a hole within
        `patience_ms`.
        """
        group = rekey_group(self.config.item_group, self.target.epoch)
        marks = await self.store.get_progress(self.config.topic, group)
        pairs, topic = await self._pairs(), self.config.topic
        reached = {s: self._reached(pairs, s) for s in range(self.config.partitions)}
        known = {(topic, s): min(at.values()) for s, at in reached.items() if at}
        ends = await self.read_ends(known)
        found: Beyond = {}
        for (_, source), at in known.items():
            end = ends[topic, source]
            if await self._holds(source, at, end):
                continue
            mark = marks.get(source)
            at_mark = mark is not None and mark.epoch == self.source.epoch
            place = source, mark.next_offset if mark is not None and at_mark else None, end
            for partition, first in (await self._holes(place, reached[source])).items():
                upto = await self._given(partition, source, first)
                found.setdefault(partition, {})[source] = end if upto is None else upto
        return found

    async def _holes(
        self, place: tuple[int, int | None, int], reached: Mapping[int, int]
    ) -> dict[int, int]:
        """Re-keyed partitions that lack something of a source partition for good → the first offset
        behind that. place: the partition, up to where it is re-keyed, its end."""
        source, mark, end = place
        topic = self.config.topic
        if mark is not None and not await self._holds(source, mark, end):
            await self._wait_folded(source, mark)
            first = await first_held(self.reader, topic, source, end, mark)
            return dict.fromkeys(range(self.config.partitions), first)
        begins = await first_held(self.reader, topic, source, end) if mark is None else mark
        holes: dict[int, int] = {}
        for partition, at in reached.items():
            found = await self._next(partition, source)
            first = begins if found is None else found
            if first > at:
                holes[partition] = first
        return holes

    def _reached(self, pairs: Mapping[int, Pair], source: int) -> dict[int, int]:
        """Up to where each re-keyed partition is folded that knows this log of the source."""
        return {
            p: reached_in(pair, source, self.source.epoch)
            for p, pair in pairs.items()
            if pair.table.reached.get(source, (0, 0))[0] == self.source.epoch
        }

    async def _pairs(self, group: str = "") -> dict[int, Pair]:
        config = self.config
        name = group or config.item_group
        stored = PairStore(self.store, config.item_topic, name, config.patience_ms)
        return {p: await stored.load(p) for p in range(config.partitions)}

    async def _holds(self, source: int, at: int, end: int) -> bool:
        """The source holds that offset, or it comes next."""
        return at >= end or await is_held(self.reader, self.config.topic, source, at)

    async def _wait_folded(self, source: int, mark: int) -> None:
        """Until all that was re-keyed before the hole is folded: who fills begins behind it."""
        waited_ms = 0
        while lowest_reached(await self._pairs(), source, self.source.epoch) < mark:
            if waited_ms >= self.config.patience_ms:
                raise StreamError(
                    f"{self.config.item_topic}",
                    required=f"all folded up to offset {mark} of {self.config.topic}/{source},"
                    " where the hole is",
                    got=f"less, {waited_ms} ms later",
                    do="see that `encore items` runs, then run this again",
                )
            await asyncio.sleep(PAUSE_MS / 1000)
            waited_ms += PAUSE_MS

    async def _next(self, partition: int, source: int) -> int | None:
        """The first offset that the next message says it covers of a source partition."""
        topic, pair = self.config.item_topic, (await self._pairs())[partition]
        at = pair.standing(self.target.epoch)
        end = (await self.read_ends({(topic, partition): at}))[topic, partition]
        while at < end:
            records = await self.reader.read(topic, partition, at, end)
            place = self.config.partitions, self.target.topic_id
            for message in decode_rekeyed_records(records, *place)[0]:
                for covered, epoch, first, _ in covers_of(message.batch):
                    if (covered, epoch) == (source, self.source.epoch):
                        return first
            at = int(records[-1].offset) + 1
        return None

    async def _given(self, partition: int, source: int, first: int) -> int | None:
        """What another generation was filled up to, if the hole ends before that."""
        for view in await self._others():
            group = generation_group(self.config.item_group, view.name, view.generation)
            at = reached_in((await self._pairs(group))[partition], source, self.source.epoch)
            if at >= first:
                return at
        return None

    async def _others(self) -> list[ViewPlan]:
        try:
            plan, staged = await published_plan(self.store), await staged_plan(self.store)
        except PlanError:
            return []
        views = partial(fed_views, entity="item", source=self.config.item_topic)
        return [*views(plan), *(() if staged.plan is None else views(staged.plan))]
