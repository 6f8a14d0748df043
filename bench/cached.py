"""Requests whose items come from the item cache: what benchmarks call the cached path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aggregation.cache.memory import CacheMemory, now_ns
from aggregation.cache.reader import ItemCache, cache_path
from aggregation.cache.record import ItemCodec
from aggregation.cache.writer import CacheWriter
from aggregation.program import Assembled, ServiceProgram
from bench.workload import Request, Workload
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
        """The whole library call. Raises RuntimeError where the cache is not to be read."""
        user_id, item_ids = request
        program = self.program
        found = self.cache.look_up(program, item_ids, self.now_ms)
        if found is None:
            raise RuntimeError("bench: the item cache is not live")
        raw = self.store.read_rows(program.row_keys(user_id, found.missing_ids()))
        split = len(program.user_views)
        user = program.user_block(raw[:split], user_id, self.now_ms)
        side = found.completed(raw[split:])
        return program.combine(user, side.block, side.own_ids)


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
