"""What a serving process asks before the store: items as the cache holds them.

    found = source.look_up(program, item_ids, now_ms)      None: nothing may be taken from the cache
    ids   = found.missing_ids()
    raw   = store.read(keys of the user and of ids)        one round trip
    item  = found.completed(raw, status)                   all N items, exactly as from the store

A record that is being written is read again, a few times; then it counts as not cached. Records
whose values do not hold at `now_ms` are made anew of the stored rows beside them.

Symbols: N candidates, m of them missing, R bytes of an item's rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregation.block import SideBlock
from aggregation.cache.index import NONE, Slots, probe
from aggregation.cache.memory import (
    NOT_LIVE_NS,
    W_COMPLETE,
    W_LEVEL,
    W_WALKED,
    CacheMemory,
    now_ns,
    usable_here,
)
from aggregation.cache.record import ENTITY, FROM, SEQUENCE, UNTIL, ItemCodec, Raw, Records
from aggregation.native.gather import ABSENT, AGED, TORN, Gather
from aggregation.program import ServiceProgram
from aggregation.tensors import Ids
from schemas.status import Status

_TRIES: Final = 4
_REOPEN_NS: Final = 250_000_000
_ONE: Final = np.uint64(1)

Array = NDArray[Any]
Places = NDArray[np.intp]


@dataclass(slots=True)
class ItemSide:
    """The item side of a request. own_ids: (N, So), None where they are still to be computed."""

    block: SideBlock
    own_ids: Ids | None


class FoundItems(Protocol):
    """What a source has of N items."""

    def missing_ids(self) -> NDArray[np.int64]:
        """The items that it does not have, (m,)."""
        ...

    def completed(self, raw: Raw, failed: Status | None = None) -> ItemSide:
        """All N. raw: (V * m,) rows of the missing ones, as `ServiceProgram.item_keys` orders them;
        not looked at when `failed` says that the read failed."""
        ...


class ItemSource(Protocol):
    """Where a server looks for items before it asks the store. One thread asks."""

    def look_up(
        self, program: ServiceProgram, item_ids: NDArray[np.int64], now_ms: int
    ) -> FoundItems | None:
        """What it has of (N,) items; None where it can say nothing."""
        ...


@dataclass(slots=True)
class CacheCounts:
    """Since the start. requests: asked, and unusable: of them, when no cache could be read.

    items: hits taken as they were, aged of them made anew of their rows, absent known to have no
    rows, missed read from the store. retried: reads of a record that was being written.
    """

    requests: int = 0
    unusable: int = 0
    hits: int = 0
    aged: int = 0
    absent: int = 0
    missed: int = 0
    retried: int = 0


@dataclass(slots=True)
class CachedItems:
    """`FoundItems` of a cache. records: (N,) this request's own. missing: (m,) places. newest_ms:
    the newest event in any row, None where it is still to be looked for."""

    codec: ItemCodec
    item_ids: NDArray[np.int64]
    now_ms: int
    records: Records
    missing: Places
    newest_ms: int | None = None

    def missing_ids(self) -> NDArray[np.int64]:
        """As `FoundItems.missing_ids`."""
        return self.item_ids[self.missing]

    def completed(self, raw: Raw, failed: Status | None = None) -> ItemSide:
        """As `FoundItems.completed`."""
        if len(self.missing):
            block = self.codec.program.item_block(raw, self.missing_ids(), self.now_ms, failed)
            self._fill(self.missing, block)
        block = self.codec.block(self.records, self.newest_ms)
        return ItemSide(block, self.codec.own_ids(self.records))

    def renew(self, which: Places, raw: Raw) -> None:
        """Make some of them of their rows. which: (k,) places. raw: (V * k,)."""
        ids = self.item_ids[which]
        self._fill(which, self.codec.program.item_block(raw, ids, self.now_ms))

    def _fill(self, which: Places, block: SideBlock) -> None:
        records = self.records
        records["values"][which], records["status"][which] = block.values, block.status
        records["fences"][which] = block.fences
        records["ids"][which] = self.codec.program.own_ids(block)
        records["newest_ms"][which] = block.newest_ms  # of all of them: only the greatest is asked


class _Opened:
    """The file of one program's codec. memory: None where there is none to read."""

    def __init__(self, program: ServiceProgram) -> None:
        self.program, self.codec = program, ItemCodec(program)
        nothing = [None] * len(program.item_views)
        self.absent = self.codec.encode(np.zeros(1, np.int64), nothing, 0).records  # (1,)
        self.memory: CacheMemory | None = None
        self.gather: Gather | None = None
        self._again_ns = 0

    def usable(self, directory: Path, max_age_ns: float) -> CacheMemory | None:
        """The memory, where it is fresh."""
        if self.memory is not None and self.memory.fresh_ns() <= max_age_ns:
            return self.memory
        if now_ns() < self._again_ns or not usable_here():
            return None
        self._again_ns = now_ns() + _REOPEN_NS  # the writer may have begun another file
        self.close()
        self.memory = CacheMemory.open(cache_path(directory, self.codec), self.codec)
        if self.memory is None or self.memory.fresh_ns() > max_age_ns:
            return None
        if self.program.library is not None:
            self.gather = Gather(self.program.library, self.memory)
        return self.memory

    def close(self) -> None:
        if self.memory is not None:
            self.memory.close()
            self.memory = self.gather = None


class ItemCache:
    """Reads the cache of one service that a writer keeps in `directory`.

    max_age_ms: a cache that was not known to hold all within that time is not read. Follows the
    programs it is asked with: each has the file of its own codec, opened when it is there.
    """

    def __init__(self, directory: Path, max_age_ms: float = 1_000.0) -> None:
        self.counts = CacheCounts()
        self._directory = directory
        self._max_age_ns = max_age_ms * 1e6
        self._opened: list[_Opened] = []  # that of the newest program first
        self._prepared: _Opened | None = None

    def look_up(
        self, program: ServiceProgram, item_ids: NDArray[np.int64], now_ms: int
    ) -> CachedItems | None:
        """As `ItemSource.look_up`."""
        self.counts.requests += 1
        opened = self._of(program)
        memory = opened.usable(self._directory, self._max_age_ns)
        if memory is None:
            self.counts.unusable += 1
            return None
        level, complete = int(memory.header[W_LEVEL]), int(memory.header[W_COMPLETE])
        if opened.gather is not None:
            found, slots = self._native(opened.gather, memory, item_ids, now_ms)
        else:
            found, slots = self._by_numpy(memory, item_ids, now_ms)
        if slots is None:
            self.counts.hits += len(item_ids)
            return found
        unknown = np.flatnonzero(slots == NONE)
        if len(unknown) and complete and level == int(memory.header[W_LEVEL]):
            found.records[unknown] = opened.absent
            found.missing = np.setdiff1d(found.missing, unknown)
            self.counts.absent += len(unknown)
        self.counts.missed += len(found.missing)
        return found

    def prepare(self, program: ServiceProgram) -> bool:
        """Make ready for a program that will be asked with; whether its cache can be read.

        For another thread than the one that asks, before anybody asks with the program.
        """
        prepared = self._prepared
        if prepared is None or prepared.program is not program:
            if prepared is not None:
                prepared.close()
            prepared = self._prepared = _Opened(program)
        return prepared.usable(self._directory, self._max_age_ns) is not None

    def preparing(self) -> int:
        """How many rows the writer of the cache that is prepared has looked at: a number that grows
        while it is being made or verified. 0 without one."""
        memory = None if self._prepared is None else self._prepared.memory
        return 0 if memory is None else int(memory.header[W_WALKED])

    def tidy(self) -> None:
        """Let go of files of former programs that nobody keeps any more."""
        for each in self._opened[1:]:
            if each.memory is not None and each.memory.fresh_ns() >= NOT_LIVE_NS:
                each.close()

    def age_ms(self) -> float | None:
        """How long ago the cache was known to hold all, ms; None where there is none to read."""
        memory = self._opened[0].memory if self._opened else None
        age_ns = NOT_LIVE_NS if memory is None else memory.fresh_ns()
        return None if age_ns >= NOT_LIVE_NS else age_ns / 1e6

    def items(self) -> int:
        """How many items the newest cache holds; 0 without one."""
        memory = self._opened[0].memory if self._opened else None
        return 0 if memory is None else memory.count

    def close(self) -> None:
        """Let go of the files."""
        for each in (*self._opened, self._prepared):
            if each is not None:
                each.close()
        self._opened, self._prepared = [], None

    def _of(self, program: ServiceProgram) -> _Opened:
        """Two at most: requests of the last program may still come when there is another."""
        for each in self._opened:
            if each.program is program:
                return each
        for old in self._opened[1:]:
            old.close()
        fresh, self._prepared = self._prepared, None
        if fresh is None or fresh.program is not program:
            fresh = _Opened(program)
        self._opened = [fresh, *self._opened[:1]]
        return self._opened[0]

    # --- gathering ---------------------------------------------------------------------------

    def _native(
        self, gather: Gather, memory: CacheMemory, item_ids: NDArray[np.int64], now_ms: int
    ) -> tuple[CachedItems, Slots | None]:
        """What is there, and the slots, (N,); None where all is there and holds now."""
        got, codec = gather(item_ids, now_ms), memory.codec
        records = _as_records(got.words, codec)
        if got.left == 0:
            self.counts.retried += got.retried
            return CachedItems(codec, item_ids, now_ms, records, _NOWHERE, got.newest_ms), None
        missing = np.flatnonzero((got.states == ABSENT) | (got.states == TORN))
        found = CachedItems(codec, item_ids, now_ms, records, missing)
        self.counts.retried += got.retried
        self._renew(memory, found, got.words, got.slots, np.flatnonzero(got.states == AGED))
        self.counts.hits += len(item_ids) - len(found.missing)
        return found, got.slots

    def _by_numpy(
        self, memory: CacheMemory, item_ids: NDArray[np.int64], now_ms: int
    ) -> tuple[CachedItems, Slots | None]:
        """As `_native`."""
        words = _simply_copied(memory, item_ids, now_ms)
        if words is not None:
            records = _as_records(words, memory.codec)
            return CachedItems(memory.codec, item_ids, now_ms, records, _NOWHERE), None
        slots = memory.find(item_ids)  # (N,)
        return self._gathered(memory, item_ids, now_ms, slots), slots

    def _gathered(
        self, memory: CacheMemory, item_ids: NDArray[np.int64], now_ms: int, slots: Slots
    ) -> CachedItems:
        """slots: (N,), NONE for what is missing."""
        codec = memory.codec
        words, whole = _copied(memory, slots)  # (N, W)
        found = CachedItems(codec, item_ids, now_ms, _as_records(words, codec), _NOWHERE)
        for _ in range(_TRIES):
            if whole.all():
                break
            again = np.flatnonzero(~whole & (slots != NONE))
            if not len(again):
                break
            self.counts.retried += len(again)
            words[again], whole[again] = _copied(memory, slots[again])
        if not whole.all():
            found.missing = np.flatnonzero(~whole)
        if len(found.missing) < len(item_ids):
            self._renew_aged(memory, found, words, slots)
        self.counts.hits += len(item_ids) - len(found.missing)
        return found

    def _renew_aged(
        self, memory: CacheMemory, found: CachedItems, words: Array, slots: Slots
    ) -> None:
        """Make anew what does not hold now."""
        from_ms, until_ms = words[:, FROM].view(np.int64), words[:, UNTIL].view(np.int64)  # (N,)
        wrong = (from_ms > found.now_ms) | (until_ms <= found.now_ms)
        wrong[found.missing] = False
        self._renew(memory, found, words, slots, np.flatnonzero(wrong))

    def _renew(
        self, memory: CacheMemory, found: CachedItems, words: Array, slots: Slots, which: Places
    ) -> None:
        """Values are made of the rows, which must be those of the record. which: (k,) places."""
        if not len(which):
            return
        rows = memory.rows.take(slots[which], axis=0)  # (k, R)
        after = memory.words[slots[which], SEQUENCE]
        same = after == words[which, SEQUENCE]
        if not same.all():
            found.missing = np.union1d(found.missing, which[~same])
            which, rows = which[same], rows[same]
        if len(which):
            status = found.records["status"][which]
            found.renew(which, found.codec.raw(rows, status))
            self.counts.aged += len(which)


_NOWHERE: Final[Places] = np.zeros(0, np.intp)


def cache_path(directory: Path, codec: ItemCodec) -> Path:
    """Where the cache of a codec lies."""
    return directory / f"{codec.program.service.name}-{codec.identity}.items"


def _simply_copied(memory: CacheMemory, item_ids: NDArray[np.int64], now_ms: int) -> Array | None:
    """The items' records as words, (N, W), where all are there, whole, and hold now."""
    slots = probe(memory.buckets(), item_ids)  # (N,)
    if slots is None:
        return None
    flat = memory.words.reshape(-1)
    at = slots * memory.words.shape[1]  # (N,) of the sequence number
    before = flat.take(at)
    words = memory.words.take(slots, axis=0)  # (N, W)
    wrong = flat.take(at)
    wrong ^= before
    wrong |= before & _ONE
    wrong |= words[:, ENTITY] ^ item_ids.view(np.uint64)
    if wrong.any():
        return None
    from_ms, until_ms = words[:, FROM].view(np.int64), words[:, UNTIL].view(np.int64)  # (N,)
    if len(item_ids) and (int(from_ms.max()) > now_ms or int(until_ms.min()) <= now_ms):
        return None
    return words


def _copied(memory: CacheMemory, slots: Slots) -> tuple[Array, NDArray[np.bool_]]:
    """Records as words, (n, W), and whether each is whole, (n,). What has no slot is not."""
    width = memory.words.shape[1]
    flat = memory.words.reshape(-1)
    at = slots * width + SEQUENCE  # (n,)
    missing = slots == NONE
    if missing.any():
        at[missing] = 0
        slots = np.where(missing, 0, slots)
    before = flat.take(at)  # (n,)
    words = memory.words.take(slots, axis=0)  # (n, W)
    whole = before == flat.take(at)
    whole &= (before & _ONE) == 0
    whole &= ~missing
    words[:, SEQUENCE] = before
    return words, whole


def _as_records(words: Array, codec: ItemCodec) -> Records:
    return words.view(codec.dtype)[:, 0]
