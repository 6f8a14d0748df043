"""Which streamed views lag: their marks beside the rows, looked at off the request path.

A worker stores with its marks the newest event time of each partition that is in the rows. A user's
row of a view is STALE where that time, of the user's partition, lies longer before the request's
clock than `stale_after_ms`. What the row says stands; it may lack what came since. A partition in
which nothing happens looks the same, so the bound must be longer than its quiet times; 0 turns it
off. While the store does not answer, what it said last ages.

Views of items are left out: their marks carry no event time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregation.program import ServiceProgram
from predictor.generation import Generations
from schemas.errors import StoreError
from schemas.ids import partition_of
from schemas.names import generation_group
from schemas.status import Status
from store.base import AsyncRowStore

log: Final = logging.getLogger(__name__)

_PRESENT, _STALE = int(Status.PRESENT), int(Status.STALE)


@dataclass(frozen=True, slots=True)
class FreshnessConfig:
    """group: of the stream workers. partitions: of the topics. stale_after_ms: with 0 no row is
    stale, and marks are followed for the metrics alone. poll_s: pause between looks."""

    group: str
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

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except StoreError as error:
                log.debug("freshness: %s", error)
            await asyncio.sleep(self._config.poll_s)

    async def look(self) -> None:
        """Read the marks once. Raises StoreError."""
        marks = {}
        for view in self._generations.current.program.user_views:
            if view.kind == "streamed":
                group = generation_group(self._config.group, view.name, view.generation)
                found = await self._store.get_progress(view.source, group)
                marks[view.key] = {at: mark.watermark_ms for at, mark in found.items()}
        self._marks = marks

    def watermarks_ms(self) -> dict[str, int]:
        """By view the event time that all partitions with a mark have stored, at the last look."""
        return {name: min(marks.values()) for (name, _), marks in self._marks.items() if marks}

    def lags(self, program: ServiceProgram, user_id: int, now_ms: int) -> NDArray[np.bool_]:
        """(Vu,) whether the user's row of each view is older than the bound at a clock.

        A view without a mark does not lag: nothing is known of it, or nothing was ever stored.
        """
        if not self._config.stale_after_ms:
            return np.zeros(len(program.user_views), bool)
        partition = partition_of(user_id, self._config.partitions)
        oldest_ms = now_ms - self._config.stale_after_ms
        newest = [self._marks.get(view.key, {}).get(partition) for view in program.user_views]
        return np.array([each is not None and each < oldest_ms for each in newest], bool)


def stale(status: NDArray[np.uint8], lags: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(Vu,) the statuses of a user's rows, those that lag STALE. Rows that are not there, or could
    not be read, stay as they are."""
    return np.where(lags & (status == _PRESENT), np.uint8(_STALE), status)
