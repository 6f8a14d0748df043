"""Which streamed views lag: their marks beside the rows, looked at off the request path.

A worker stores with its marks the newest event time of each partition that is in the rows; of items
it is the one that every partition of the source has reached in their re-keyed partition. A row is
STALE where that time, of its entity's partition, lies longer before the request's clock than
`stale_after_ms`. What the row says stands; it may lack what came since. A partition in which
nothing happens looks the same, so the bound must be longer than its quiet times; 0 turns it off.
While the store does not answer, what it said last ages. Rows out of the item cache are judged as
those of the store, by the same marks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregation.program import Assembled, ServiceProgram
from predictor.generation import Generations
from predictor.record import Query
from schemas.errors import StoreError, StreamError
from schemas.ids import partitions_of
from schemas.names import BY_ITEM_SUFFIX, by_item_topic, generation_group, topics_keys
from schemas.plan import ViewPlan
from schemas.status import Status
from schemas.succession import load_succession
from store.base import AsyncRowStore

log: Final = logging.getLogger(__name__)

_NONE: Final[Mapping[int, int]] = {}
_PRESENT, _STALE = int(Status.PRESENT), int(Status.STALE)


@dataclass(frozen=True, slots=True)
class FreshnessConfig:
    """group, item_group: of the workers that fold. partitions: of the first topics.
    stale_after_ms: with 0 no row is stale, and marks are followed for the metrics alone. poll_s:
    pause between looks."""

    group: str
    item_group: str
    partitions: int
    stale_after_ms: int
    poll_s: float = 0.5


class Freshness:
    """Follows the marks of the views that are served. Written by one task of the event loop, read
    by the inference thread."""

    def __init__(
        self, store: AsyncRowStore, generations: Generations, config: FreshnessConfig
    ) -> None:
        self._store, self._generations, self._config = store, generations, config
        self._marks: Mapping[tuple[str, int], Mapping[int, int]] = {}
        self._topics: dict[str, tuple[str, int]] = {}

    async def run(self) -> None:
        """Look until cancelled. A fault of one look is logged and the next look comes: without
        looks all rows would be stale in the end."""
        while True:
            try:
                await self.look()
            except (StoreError, StreamError) as error:
                log.debug("freshness: %s", error)
            except Exception:
                log.exception("freshness: this look failed")
            await asyncio.sleep(self._config.poll_s)

    async def look(self) -> None:
        """Read the marks once, of the newest topics that may be read.

        Raises StoreError, StreamError.
        """
        program = self._generations.current.program
        await self._look_for_topics(program)
        self._marks = {
            view.key: await self._marks_of(view, group)
            for views, group in (
                (program.user_views, self._config.group),
                (program.item_views, self._config.item_group),
            )
            for view in views
            if view.kind == "streamed"
        }

    async def _look_for_topics(self, program: ServiceProgram) -> None:
        """By a view's source the topic that it is fed from now, and its partition count."""
        views = (*program.user_views, *program.item_views)
        for source in {view.source for view in views if view.kind == "streamed"}:
            first = source.removesuffix(BY_ITEM_SUFFIX)
            key, _ = topics_keys(first)
            text = await self._store.get_text(key)
            life = load_succession(text, first, self._config.partitions, key).open[-1]
            topic = by_item_topic(life.name) if first != source else life.name
            self._topics[source] = topic, life.partitions

    async def _marks_of(self, view: ViewPlan, group: str) -> dict[int, int]:
        name = generation_group(group, view.name, view.generation)
        topic, _ = self._topics[view.source]
        found = await self._store.get_progress(topic, name)
        return {partition: mark.watermark_ms for partition, mark in found.items()}

    def watermarks_ms(self) -> dict[str, int]:
        """{view: event time that all partitions with a mark had stored at the last look}."""
        return {name: min(marks.values()) for (name, _), marks in self._marks.items() if marks}

    def judged(self, assembled: Assembled, program: ServiceProgram, asked: Query) -> Assembled:
        """The same with the statuses of rows that lag STALE; itself where none does."""
        if not self._config.stale_after_ms:
            return assembled
        users = self._lags(program.user_views, np.array([asked.user_id]), asked.now_ms)
        items = self._lags(program.item_views, asked.candidate_ids, asked.now_ms)
        if users is not None:
            assembled = replace(assembled, user_status=stale(assembled.user_status, users[0]))
        if items is not None:
            assembled = replace(assembled, item_status=stale(assembled.item_status, items))
        return assembled

    def _lags(
        self, views: Sequence[ViewPlan], ids: NDArray[np.int64], now_ms: int
    ) -> NDArray[np.bool_] | None:
        """(n, V) whether the row of each entity and view is older than the bound; None where none
        is. A partition without a mark does not lag: nothing is known of it."""
        oldest_ms = now_ms - self._config.stale_after_ms
        late = [
            [at for at, time_ms in self._marks.get(view.key, _NONE).items() if time_ms < oldest_ms]
            for view in views
        ]
        if not any(late):
            return None
        counts = [self._topics.get(view.source, ("", self._config.partitions))[1] for view in views]
        found = np.zeros((len(ids), len(views)), bool)  # (n, V)
        for index, (partitions, count) in enumerate(zip(late, counts, strict=True)):
            if partitions:
                found[:, index] = np.isin(partitions_of(ids, count), partitions)
        return found


def stale(status: NDArray[np.uint8], lags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Statuses of rows, those that lag STALE: both of one shape. Rows that are not there, or could
    not be read, stay as they are."""
    return np.where(lags & (status == _PRESENT), np.uint8(_STALE), status)
