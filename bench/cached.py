"""Requests whose items come from the item cache: what benchmarks call the cached path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from aggregation.block import SideBlock
from aggregation.cache.memory import CacheMemory, now_ns
from aggregation.cache.reader import CachedItems, ItemCache, ItemSide, cache_path
from aggregation.cache.record import ItemCodec
from aggregation.cache.writer import CacheWriter
from aggregation.program import Assembled, ServiceProgram
from bench.workload import Request, Workload
from schemas.errors import LocalError
from store.redis_store import RedisRowStore

#: No benchmark takes so long, whatever else the machine does.
FOR_GOOD_MS = 1e9


@dataclass(frozen=True, slots=True)
class CachedRequests:
    """One user's rows from the store, items from a cache and, where it lacks them, with the user's
    in one round trip."""

    program: ServiceProgram
    store: RedisRowStore
    cache: ItemCache
    now_ms: int

    def assembled(self, request: Request) -> Assembled:
        """The whole library call. Raises LocalError where the cache is not to be read."""
        user_id, item_ids = request
        found = self._found(item_ids)
        raw = self.store.read_rows(self.program.row_keys(user_id, found.missing_ids()))
        split = len(self.program.user_views)
        user = self.user_side(raw[:split], request)
        return self.combined(user, found.completed(raw[split:]))

    def item_side(self, request: Request) -> ItemSide:
        """Of items that are all cached."""
        return self._found(request[1]).completed([])

    def user_side(self, rows: Sequence[bytes | None], request: Request) -> SideBlock:
        """Of the user's rows."""
        return self.program.user_block(rows, request[0], self.now_ms)

    def combined(self, user: SideBlock, items: ItemSide) -> Assembled:
        """Both."""
        return self.program.combine(user, items.block, items.own_ids)

    def _found(self, item_ids: NDArray[np.int64]) -> CachedItems:
        found = self.cache.look_up(self.program, item_ids, self.now_ms)
        if found is None:
            raise LocalError("bench.cache", required="an item cache that is live", got="none")
        return found


@contextmanager
def filled_cache(
    workload: Workload, store: RedisRowStore, directory: Path
) -> Iterator[CachedRequests]:
    """A cache of all the workload's items at its clock, in this process, that nothing changes."""
    program, ids = workload.program, workload.items
    codec = ItemCodec(program)
    memory = CacheMemory.create(cache_path(directory, codec), codec, len(ids))
    writer = CacheWriter(memory)
    writer.put(ids, store.read(program.item_keys(ids)), workload.now_ms)
    writer.verified()
    writer.live(now_ns())
    cache = ItemCache(directory, FOR_GOOD_MS)
    try:
        yield CachedRequests(program, store, cache, workload.now_ms)
    finally:
        cache.close()
        writer.retire()
