"""Where each generation of a view stands in its topic: a position of its own, and its floor.

A generation that is new to a partition begins at its *floor*: the position at which the first
worker took it up. Nothing below a floor is ever folded into the generation, so what fills the past
later fills it exactly up to there. The floor is recorded before the first row is written, and never
changes.

A generation's *mark* says up to where its rows are stored; it is written after the rows and before
the group's mark. Reading begins at the lowest mark of all generations that are folded: those that
are further drop by their fences what they already have. So a worker that still runs an older plan
can move the group's mark, but opens no hole in a generation that it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from schemas.errors import StoreError, StreamError
from schemas.names import floors_keys, generation_group
from schemas.plan import ViewPlan
from store.base import AsyncRowStore
from streams.patience import patiently

#: Workers that record floors of one generation at once: each of them wins within a few rounds.
MAX_ROUNDS: Final = 50

#: Partition → offset.
Offsets = dict[int, int]


class Generations:
    """Marks and floors of the folded generations, in one log of a topic. Used by one task."""

    def __init__(
        self, store: AsyncRowStore, topic: str, group: str, epoch: int, patience_ms: int
    ) -> None:
        self._store, self._topic, self._group = store, topic, group
        self._epoch, self._patience_ms = epoch, patience_ms
        self._views: tuple[ViewPlan, ...] = ()
        self.floors: dict[str, Offsets] = {}  # view → floors in this log

    async def begin(
        self, views: Sequence[ViewPlan], partitions: Iterable[int], marks: Mapping[int, int]
    ) -> Offsets:
        """Take up these generations for newly assigned partitions; where to read each from.

        marks: the group's, partition → next offset. A generation that is new begins there. A
        partition without such a mark is left out: it is read from its beginning. Raises
        StoreError, StreamError.
        """
        here = list(partitions)
        standing = {partition: marks.get(partition, 0) for partition in here}
        reached = [await self._take_up(view, standing) for view in views]
        self._views = tuple(views)
        self.floors = {view.name: self.floors[view.name] for view in views}
        return {
            partition: min(marks[partition], *(at[partition] for at in reached))
            for partition in here
            if partition in marks
        }

    async def change(self, views: Sequence[ViewPlan], standing: Mapping[int, int]) -> None:
        """Fold these generations from now on; others are left as they are.

        standing: partition → the offset that this worker reads next, all before it being stored.
        Raises StreamError where a generation is new to this worker and another already folded it
        only up to an earlier offset: reading has to begin there.
        """
        known = {(view.name, view.generation) for view in self._views}
        for view in views:
            if (view.name, view.generation) in known:
                continue
            reached = await self._take_up(view, standing)
            for partition, offset in reached.items():
                if offset < standing[partition]:
                    raise StreamError(
                        f"{view.name}@{view.generation}, {self._topic}/{partition}",
                        required=f"a new generation, or one folded up to {standing[partition]}",
                        got=f"one that another worker folded up to {offset}",
                        do="restart this process: it reads again from there",
                    )
        self._views = tuple(views)
        self.floors = {view.name: self.floors[view.name] for view in views}

    async def store(self, upto: Mapping[int, tuple[int, int]]) -> None:
        """Record that the rows of every folded generation hold all before these offsets.

        upto: partition → (next offset, watermark in ms).
        """
        progress = {p: (self._epoch, offset, time_ms) for p, (offset, time_ms) in upto.items()}
        for view in self._views:
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
        floors = await self._record_floors(view, standing)
        self.floors[view.name] = {
            p: at for p, (epoch, at) in floors.items() if epoch == self._epoch
        }
        reached: Offsets = {}
        for partition, offset in standing.items():
            mark = marks.get(partition)
            if mark is not None and mark.epoch == self._epoch:
                reached[partition] = mark.next_offset
            else:  # nothing is marked yet, but some may be stored from the floor on
                reached[partition] = min(self.floors[view.name].get(partition, 0), offset)
        return reached

    async def _record_floors(
        self, view: ViewPlan, standing: Mapping[int, int]
    ) -> dict[int, tuple[int, int]]:
        """All floors of the generation, with those of `standing` added where there was none."""
        key, version_key = floors_keys(self._topic, self._group, view.name, view.generation)
        for _ in range(MAX_ROUNDS):
            version = int(await self._store.get_text(version_key) or 0)
            held = parse_floors(await self._store.get_text(key), key)
            floors = {p: (self._epoch, offset) for p, offset in standing.items()} | held
            if floors == held:
                return held
            text = json.dumps({str(p): floors[p] for p in sorted(floors)})
            if await self._store.compare_and_set_text(key, version_key, version, text):
                return floors
        raise StreamError(
            f"floors of {view.name}@{view.generation}",
            required="to be recorded",
            got=f"another writer {MAX_ROUNDS} times",
            do="check that one group reads this topic, once",
        )


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
