"""Which generations of item views stand where in each re-keyed partition, and catching up.

A saved pair (`streams.source_table`) names the generations whose rows hold all before its position.
One that is published new joins there, which is its floor. Each has a pair of its own, of its floor.
One that the partition's pair does not name, since it was filled or a worker with an older plan had
the partition meanwhile, lags until what lies between has been folded into it, with the table that
belongs to its own position; the stream goes on meanwhile (`streams.catching_up` says how and why).
Where the log does not hold that any more, nothing more is folded into it there (`streams.gaps`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from schemas.errors import NotHeldError
from schemas.names import generation_group
from schemas.plan import ViewPlan
from store.base import AsyncRowStore
from streams.catching_up import SLICE_S, beside
from streams.config import StreamConfig
from streams.folding import Folder
from streams.gaps import END, Gap, record_gaps
from streams.generations import NOTHING, Key, Offsets, record_floors
from streams.item_messages import decode_rekeyed_records, run_of
from streams.servers import Servers
from streams.source import Source
from streams.source_table import Pair, PairStore, SourceTable, reached_in

Place = tuple[Key, int]  # generation, partition


class ItemGenerations:
    """Of one item worker, in the re-keyed log `target`. Used by one task."""

    def __init__(
        self, config: StreamConfig, servers: Servers, store: AsyncRowStore, target: Source
    ) -> None:
        self._config, self._store, self._target = config, store, target
        self._reader, self._clock_s = servers.open_reader(config), servers.clock_s
        self._views: dict[Key, ViewPlan] = {}
        self._lagging: dict[Place, Pair] = {}
        self._lost: set[Place] = set()
        self._known: set[Place] = set()

    async def begin(self, views: Sequence[ViewPlan], pairs: Mapping[int, Pair]) -> None:
        """Take up these generations. pairs: {newly assigned partition: as it was loaded}.

        Raises StoreError, StreamError.
        """
        self._views, self._lagging, self._lost, self._known = {}, {}, set(), set()
        await self.change(views, pairs)

    async def level_with(
        self, views: Sequence[ViewPlan], partition: int, pair: Pair
    ) -> tuple[ViewPlan, ...]:
        """Those of `views` that have all that the pair's table has: what comes behind its position
        is to be folded into them. pair: as it was loaded. Raises StoreError, StreamError."""
        level = []
        for view in views:
            own = await self._pairs_of(view).load(partition)
            alike = own.version > 0 and own.epoch <= pair.epoch and own.table == pair.table
            if view.key in pair.folded or alike:
                level.append(view)
        return tuple(level)

    async def given(self, source: int, epoch: int) -> Offsets:
        """By re-keyed partition: up to which offset of a source partition all generations that are
        folded have everything, by the pairs that they began with. More than the stream gave them
        only where they were filled over a hole (`streams.item_holes`). epoch: of the source's log.
        Raises StoreError, StreamError."""
        partitions, views = range(self._config.partitions), tuple(self._views.values())
        places = [(view, p) for p in partitions for view in views]
        loaded = await asyncio.gather(*(self._pairs_of(view).load(p) for view, p in places))
        own = [reached_in(pair, source, epoch) for pair in loaded]
        return {p: min(own[p * len(views) :][: len(views)], default=0) for p in partitions}

    async def change(self, views: Sequence[ViewPlan], pairs: Mapping[int, Pair]) -> None:
        """Fold these from now on. pairs: of all assigned partitions, all before them stored."""
        self._views = {view.key: view for view in views}
        self._known = {place for place in self._known if place[0] in self._views}
        self._lagging = {at: pair for at, pair in self._lagging.items() if at[0] in self._views}
        self._lost = {place for place in self._lost if place[0] in self._views}
        for view in views:
            new = {p: pair for p, pair in pairs.items() if (view.key, p) not in self._known}
            if new:
                await self._take_up(view, new)

    def folded(self, partition: int) -> frozenset[Key]:
        """The generations that the stream is folded into there: what its pair speaks for."""
        lacking = self._lost | self._lagging.keys()
        return frozenset(key for key in self._views if (key, partition) not in lacking)

    def standing(self, pairs: Mapping[int, Pair]) -> dict[Key, dict[int, Pair]]:
        """By generation the pair of each partition that its rows hold all before, but where it was
        lost. pairs: of all assigned partitions, all before them stored."""
        return {
            key: {
                partition: self._lagging.get((key, partition), pair)
                for partition, pair in pairs.items()
                if (key, partition) not in self._lost
            }
            for key in self._views
        }

    @property
    def floors(self) -> dict[Key, Offsets]:
        """For `streams.folding.Folder`: a lagging generation takes nothing of the stream."""
        floors: dict[Key, Offsets] = {}
        for key, partition in self._lost | self._lagging.keys():
            floors.setdefault(key, {})[partition] = NOTHING
        return floors

    def lagging(self) -> bool:
        """Whether one has to catch up anywhere."""
        return bool(self._lagging)

    async def step(self, pairs: Mapping[int, Pair], stream: Folder) -> bool:
        """Catch up a slice. Whether a generation has arrived in a partition. Raises StreamError."""
        until_s = self._clock_s() + SLICE_S
        arrived = False
        for place, own in list(self._lagging.items()):
            _, partition = place
            end = pairs[partition].standing(self._target.epoch)
            try:
                while own.next_offset < end:
                    await self._advance(place, own, end, stream)
                    if self._clock_s() >= until_s:
                        break
            except NotHeldError:
                await self._target.check()  # a log that replaced it would not hold it either
                await self._lose(place, own, end)
                arrived = True
                continue
            if own.next_offset >= end:
                del self._lagging[place]
                arrived = True
            if self._clock_s() >= until_s:
                break
        if arrived and not self._lagging:
            await self._reader.close()
        return arrived

    async def close(self) -> None:
        """Release the reader."""
        await self._reader.close()

    async def _take_up(self, view: ViewPlan, pairs: Mapping[int, Pair]) -> None:
        epoch = self._target.epoch
        unnamed = [p for p, pair in pairs.items() if view.key not in pair.folded]
        own = await asyncio.gather(*(self._own_pair(view, p, pairs[p]) for p in unnamed))
        begun = dict(zip(unnamed, own, strict=True))
        for partition, pair in begun.items():
            if pair.epoch != epoch:
                await self._target.check()  # where the pair is of a newer log, this one is lost
                if pair.table != pairs[partition].table:
                    await self._lose((view.key, partition), pair, END)
            elif pair.next_offset < pairs[partition].standing(epoch):
                self._lagging[view.key, partition] = pair
        floors = {p: (pair.epoch, pair.next_offset) for p, pair in begun.items()}
        topic, group = self._config.item_topic, self._config.item_group
        await record_floors(self._store, topic, group, view, floors)
        self._known |= {(view.key, partition) for partition in pairs}

    async def _own_pair(self, view: ViewPlan, partition: int, pair: Pair) -> Pair:
        """Where the generation begins in a partition: it was filled up to there, or joins here.

        Whoever has an older plan may move the partition's pair on before that names the generation,
        which then lags from its own pair on.
        """
        stored, epoch = self._pairs_of(view), self._target.epoch
        own = await stored.load(partition)
        if own.version == 0:
            own = Pair(epoch, pair.standing(epoch), SourceTable(dict(pair.table.reached)), 0)
            await stored.save(partition, own)
        return own

    async def _lose(self, place: Place, own: Pair, end: int) -> None:
        """Nothing more is folded into the generation there: what it lacks next is in no log."""
        key, partition = place
        reader = self._config.item_topic, self._config.item_group
        gap = Gap(own.epoch, own.next_offset, end)
        await record_gaps(self._store, reader, self._views[key], {partition: gap})
        self._lagging.pop(place, None)
        self._lost.add(place)

    def _pairs_of(self, view: ViewPlan) -> PairStore:
        name = generation_group(self._config.item_group, view.name, view.generation)
        return PairStore(self._store, self._config.item_topic, name, self._config.patience_ms)

    async def _advance(self, place: Place, own: Pair, end: int, stream: Folder) -> None:
        """Fold some messages from the generation's own position on, and save that."""
        (key, partition), topic = place, self._config.item_topic
        records = await self._reader.read(topic, partition, own.next_offset, end)
        log = self._config.partitions, self._target.topic_id
        messages, _ = decode_rekeyed_records(records, *log)
        accepted = [own.table.admit(message.batch, message.where) for message in messages]
        run = run_of(partition, messages, accepted).run
        await beside(stream, self._views[key], {}).apply(run, self._target.check)
        own.next_offset = int(records[-1].offset) + 1
        await self._pairs_of(self._views[key]).save(partition, own)
