"""How far each generation of item views is, told to whoever reads the rows.

The pairs of `streams.source_table` are what the item worker goes on from. Serving processes need
less of them: progress marks as of every other generation, whose watermark is the time that every
source partition has reached in a re-keyed partition's rows. Told beside the work a few times a
second; nothing depends on it but what is said of freshness, so a store that does not take it is no
error, and the next time tells more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final

from schemas.errors import StoreError
from schemas.names import generation_group
from store.base import AsyncRowStore
from streams.generations import Key
from streams.servers import Servers
from streams.source_table import Pair

TELL_S: Final = 0.25

Mark = tuple[int, int, int]  # epoch, next offset, watermark in ms


class ItemMarks:
    """Of one item worker. Used by one task."""

    def __init__(self, store: AsyncRowStore, place: tuple[str, str], servers: Servers) -> None:
        """place: the re-keyed topic, and the group that folds it."""
        self._store, self._place, self._servers = store, place, servers
        self._told: dict[tuple[Key, int], Mark] = {}
        self._told_s = float("-inf")

    async def tell(self, standing: Mapping[Key, Mapping[int, Pair]], *, now: bool = False) -> None:
        """Tell what is new, if the last time was TELL_S ago, or `now`.

        standing: generation → {partition: the pair of which its rows hold all}.
        """
        clock_s = self._servers.clock_s()
        if not now and clock_s - self._told_s < TELL_S:
            return
        self._told_s = clock_s
        topic, group = self._place
        for key, pairs in standing.items():
            marks = dict(self._new(key, pairs))
            if not marks:
                continue
            with suppress(StoreError):
                await self._store.put_progress(topic, generation_group(group, *key), marks)
                self._told |= {(key, partition): mark for partition, mark in marks.items()}

    def _new(self, key: Key, pairs: Mapping[int, Pair]) -> Iterable[tuple[int, Mark]]:
        for partition, pair in pairs.items():
            mark = pair.epoch, pair.next_offset, pair.table.watermark_ms
            if mark[2] and self._told.get((key, partition)) != mark:
                yield partition, mark
