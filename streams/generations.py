"""Where each generation of a view stands in its topic: a position of its own, and its floor.

A generation begins, in each partition, at its *floor*. Nothing below a floor is ever folded into
it; a backfill fills the past exactly up to there. A generation that is published without one takes
the position at which the first worker took it up. Floors are recorded before the first row is
written, and never change.

A generation's *mark* says up to where its rows are stored; it is written after the rows and before
the group's mark. A generation whose mark lies before the stream's position *lags* in that
partition: it was filled while the stream went on, or a worker with an older plan moved the group's
mark meanwhile. Nothing of the stream is folded into it there until it has caught up
(`streams.catching_up`), or the row's fences would pass over what it lacks. What no log holds any
more cannot be caught up: it is recorded as a gap, and the generation goes on (`streams.gaps`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from schemas.errors import StoreError, StreamError
from schemas.names import floors_keys, generation_group
from schemas.plan import ViewPlan
from store.base import AsyncRowStore, Progress
from streams.amending import ONE_GROUP, amend_text
from streams.gaps import END, Gap, record_gaps
from streams.patience import patiently

log = logging.getLogger("encore.streams")

#: The floor of a generation where it lags: it takes nothing of the stream.
NOTHING: Final = (1 << 63) - 1

#: Partition → offset.
Offsets = dict[int, int]
Key = tuple[str, int]  # view, generation


class Generations:
    """Marks and floors of the folded generations, in one log of a topic. Used by one task.

    floors: (view, generation) → {partition: the first offset that the stream folds into it}.
    """

    def __init__(
        self, store: AsyncRowStore, topic: str, group: str, epoch: int, patience_ms: int
    ) -> None:
        self._store, self._topic, self._group = store, topic, group
        self._epoch, self._patience_ms = epoch, patience_ms
        self._views: dict[Key, ViewPlan] = {}
        self._recorded: dict[Key, Offsets] = {}
        self._lagging: dict[Key, Offsets] = {}

    async def begin(
        self, views: Sequence[ViewPlan], partitions: Iterable[int], marks: Mapping[int, int]
    ) -> None:
        """Take up these generations for newly assigned partitions.

        marks: the group's, partition → next offset: where the stream is read from. A partition
        without one is read from its beginning, and there a new generation begins there, too.
        Raises StoreError, StreamError.
        """
        self._views, self._recorded, self._lagging = {}, {}, {}
        await self.change(views, {partition: marks.get(partition, 0) for partition in partitions})

    async def change(self, views: Sequence[ViewPlan], standing: Mapping[int, int]) -> None:
        """Fold these generations from now on; others are left as they are.

        standing: partition → the offset that this worker reads next, all before it being stored.
        Raises StoreError, StreamError.
        """
        wanted = {view.key: view for view in views}
        for key, view in wanted.items():
            if key not in self._views:
                reached = await self._take_up(view, standing)
                self._lagging[key] = {p: at for p, at in reached.items() if at < standing[p]}
        self._views = wanted
        self._recorded = {key: self._recorded[key] for key in wanted}
        self._lagging = {key: self._lagging[key] for key in wanted}

    async def starts(self, views: Sequence[ViewPlan], marks: Mapping[int, int]) -> dict[int, int]:
        """Where to read on from: the group's marks. What lies between one and the lowest floor of
        these generations was folded into all of them from the archive, since the log did not hold
        it any more (`streams.origins.beyond_holes`). marks: partition → next offset.
        """
        floors = [
            await recorded_floors(self._store, self._topic, self._group, view) for view in views
        ]
        starts = dict(marks)
        for partition, mark in marks.items():
            held = [each.get(partition, (0, 0)) for each in floors]
            lowest = min((at if epoch == self._epoch else 0 for epoch, at in held), default=0)
            if lowest > mark:
                log.warning(
                    "%s/%d: going on at offset %d instead of %d: the views have what lies between",
                    self._topic,
                    partition,
                    lowest,
                    mark,
                )
                starts[partition] = lowest
        return starts

    @property
    def floors(self) -> dict[Key, Offsets]:
        """For `streams.folding.Folder`: what the stream may fold into each generation."""
        return {
            key: self._recorded[key] | dict.fromkeys(self._lagging[key], NOTHING)
            for key in self._views
        }

    def lagging(self) -> list[tuple[ViewPlan, int, int]]:
        """(view, partition, the next offset it lacks) of all that lag."""
        return [
            (self._views[key], partition, at)
            for key, places in self._lagging.items()
            for partition, at in sorted(places.items())
        ]

    def floor(self, view: ViewPlan, partition: int) -> int:
        """The recorded floor, 0 where another log had it."""
        return self._recorded[view.key].get(partition, 0)

    async def store(self, upto: Mapping[int, tuple[int, int]]) -> None:
        """Record that the rows of every generation hold all before these offsets, but where it
        lags.

        upto: partition → (next offset, watermark in ms).
        """
        for key, view in self._views.items():
            lags = self._lagging[key]
            await self._mark(view, {p: at for p, at in upto.items() if p not in lags})

    async def advance(self, view: ViewPlan, partition: int, upto: tuple[int, int]) -> None:
        """A lagging generation holds all before this (offset, watermark in ms) now."""
        await self._mark(view, {partition: upto})
        self._lagging[view.key][partition] = upto[0]

    def caught_up(self, view: ViewPlan, partition: int) -> None:
        """It has all that the stream has: from here on the stream is folded into it."""
        del self._lagging[view.key][partition]

    async def give_up(self, view: ViewPlan, partition: int, span: tuple[int, int]) -> None:
        """The log does not hold [first, next) any more: recorded, and the generation goes on behind
        it. Raises StoreError, StreamError."""
        gap = Gap(self._epoch, *span)
        await record_gaps(self._store, (self._topic, self._group), view, {partition: gap})
        await self._mark(view, {partition: (span[1], 0)})
        self.caught_up(view, partition)

    async def _mark(self, view: ViewPlan, upto: Mapping[int, tuple[int, int]]) -> None:
        progress = {p: (self._epoch, offset, time_ms) for p, (offset, time_ms) in upto.items()}
        if not progress:
            return
        group = generation_group(self._group, view.name, view.generation)
        await patiently(
            f"progress of {view.name}@{view.generation}",
            partial(self._store.put_progress, self._topic, group, progress),
            self._patience_ms,
            (StoreError,),
        )

    async def _take_up(self, view: ViewPlan, standing: Mapping[int, int]) -> Offsets:
        """Learn or record the floors of these partitions; up to where each is folded."""
        group = generation_group(self._group, view.name, view.generation)
        marks = await self._store.get_progress(self._topic, group)
        wanted = {p: (self._epoch, offset) for p, offset in standing.items()}
        held = await record_floors(self._store, self._topic, self._group, view, wanted)
        await self._tell_of_lost(view, marks, {p: held[p] for p in standing})
        floors = {p: at for p, (epoch, at) in held.items() if epoch == self._epoch}
        self._recorded[view.key] = floors
        reached: Offsets = {}
        for partition, offset in standing.items():
            mark = marks.get(partition)
            if mark is not None and mark.epoch == self._epoch:
                reached[partition] = mark.next_offset
            else:  # nothing is marked yet, but some may be stored from the floor on
                reached[partition] = min(floors.get(partition, 0), offset)
        return reached

    async def _tell_of_lost(
        self, view: ViewPlan, marks: Mapping[int, Progress], floors: Mapping[int, tuple[int, int]]
    ) -> None:
        """Record what the generation lacked of an earlier log when that was lost. The others of its
        view have it: they were folded up to the group's own mark."""
        if all(epoch == self._epoch for epoch, _ in floors.values()):
            return
        group = await self._store.get_progress(self._topic, self._group)
        lost: dict[int, Gap] = {}
        for partition, floor in floors.items():
            none = Progress(*floor, 0)
            epoch, at = max(floor, marks.get(partition, none)[:2])
            stands = group.get(partition, none)
            if epoch < self._epoch and (epoch, at) < stands[:2]:
                lost[partition] = Gap(epoch, at, stands[1] if stands[0] == epoch else END)
        await record_gaps(self._store, (self._topic, self._group), view, lost)


async def record_floors(
    store: AsyncRowStore,
    topic: str,
    group: str,
    view: ViewPlan,
    wanted: Mapping[int, tuple[int, int]],
) -> dict[int, tuple[int, int]]:
    """All floors of the generation, with those `wanted` where there was none.

    wanted, and what is returned: partition → (epoch, offset). Raises StoreError, StreamError.
    """
    keys = floors_keys(topic, group, view.name, view.generation)
    floors: dict[int, tuple[int, int]] = {}

    def with_wanted(text: str | None) -> str | None:
        nonlocal floors
        held = parse_floors(text, keys[0])
        floors = dict(wanted) | held
        return None if floors == held else json.dumps({str(p): floors[p] for p in sorted(floors)})

    what = f"floors of {view.name}@{view.generation}"
    await amend_text(store, keys, with_wanted, what, ONE_GROUP)
    return floors


async def recorded_floors(
    store: AsyncRowStore, topic: str, group: str, view: ViewPlan
) -> dict[int, tuple[int, int]]:
    """The floors of a generation as they are. Raises StoreError, StreamError."""
    key, _ = floors_keys(topic, group, view.name, view.generation)
    return parse_floors(await store.get_text(key), key)


def parse_floors(text: str | None, where: str) -> dict[int, tuple[int, int]]:
    """{partition: (epoch, offset)} of the stored text; empty where there is none.

    Raises StreamError for any other text.

    >>> parse_floors('{"0": [1, 40]}', "floors")
    {0: (1, 40)}
    """
    if text is None:
        return {}
    try:
        held = json.loads(text)
        return {int(p): (int(epoch), int(offset)) for p, (epoch, offset) in held.items()}
    except (ValueError, TypeError, AttributeError):
        raise StreamError(
            where,
            required="floors, {partition: [epoch, offset]}",
            got=repr(text[:80]),
            do="take the value from a backup of the store, or apply a new generation",
        ) from None
