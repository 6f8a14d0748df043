"""The mapped file of an item cache.

    header    u8[512]    the words below
    index     buckets of each level, one level after the other; `level` says which one is in use
    records   capacity of them, `aggregation.cache.record`
    rows      u1[R] of each slot: what the store holds

The file is sparse: it is as long as its capacity wants, and takes memory as slots are filled; room
is reserved before it is used, so that a full file system is an error and not the process's end.
Slots are given out from the front and never given back.

A reader may rely on: a record whose sequence number was even and equal before and after it was
copied was copied whole, and its rows and fences with it. That needs a processor that keeps the
order of stores and of loads, which x86-64 does; elsewhere `usable_here` is False.

`synced_ns` is the promise of freshness: all that the store had answered by then is in the cache. It
is on the clock that all processes of a machine share, CLOCK_MONOTONIC, and holds for one boot.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import time
import zlib
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from aggregation.cache import index
from aggregation.cache.record import LINE_BYTES, ItemCodec
from schemas.errors import LocalError

HEADER_WORDS: Final = 512
MAGIC: Final = 0x31454843434F434E  # "NCOCCHE1"

# --- words of the header
W_MAGIC: Final = 0
W_IDENTITY: Final = 1  # the codec's identity
W_BOOT: Final = 2  # which boot of the machine the clock below belongs to
W_STATE: Final = 3
W_SYNCED_NS: Final = 4
W_COUNT: Final = 5  # slots in use
W_LEVEL: Final = 6  # of the index in use
W_CAPACITY: Final = 7
W_COMPLETE: Final = 8  # 1: an item without a slot has no rows in the store either
W_PID: Final = 9  # of the writer
W_CHANGED: Final = 10  # counters of the writer: records written for a change
W_AGED: Final = 11  # records made again because time had passed
W_SYNCS: Final = 12  # times everything was verified
W_WALKED: Final = 13  # rows looked at in doing so

# --- states
LOADING: Final = 0  # nobody may read: not loaded, or not known to be what the store holds
LIVE: Final = 1
RETIRED: Final = 2  # this file will never be live again

NOT_LIVE_NS: Final = 1 << 62
_BLOCK: Final = 1 << 21  # regions begin at multiples: a huge page
_GROWTH_SLOTS: Final = 8_192  # reserved at once
_GROWTH_PART: Final = 8  # or this part of what there is, after it was full

Words = NDArray[np.uint64]
Array = NDArray[Any]


def usable_here() -> bool:
    """Whether this machine's processor and operating system can do this."""
    return platform.machine() in ("x86_64", "AMD64") and platform.system() == "Linux"


def now_ns() -> int:
    """The clock of `W_SYNCED_NS`."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def boot_number() -> int:
    """A number of this boot of the machine; 0 where none is told."""
    try:
        return zlib.crc32(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    except OSError:
        return 0


class CacheMemory:
    """One mapped file. header, records, rows: arrays in it; read-only unless this is the writer's.

    words: (capacity, W) the records as u8. `index` is the index in use.
    """

    def __init__(self, file: int, codec: ItemCodec, capacity: int, writable: bool) -> None:
        """file: an open descriptor, which this closes."""
        self.codec, self.capacity = codec, capacity
        self._writable = writable
        self._levels = range(6, index.level_for(capacity) + 1)
        self._record_start, self._rows_start, self.size = _places(codec, capacity)
        self._file = file
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map = mmap.mmap(file, self.size, access=access)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without them
                self._map.madvise(mmap.MADV_HUGEPAGE)
        record_words = codec.dtype.itemsize // 8
        self.header: Words = np.frombuffer(self._map, np.uint64, HEADER_WORDS)
        self.words: Words = np.frombuffer(
            self._map, np.uint64, capacity * record_words, self._record_start
        ).reshape(capacity, record_words)
        self.records: Array = np.frombuffer(self._map, codec.dtype, capacity, self._record_start)
        self.rows: Array = np.frombuffer(
            self._map, np.uint8, capacity * codec.row_bytes, self._rows_start
        ).reshape(capacity, codec.row_bytes)
        self.entities: Array = self.records["entity_id"]
        self._buckets: dict[int, index.Buckets] = {}
        self._reserved = 0

    # --- opening -----------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, codec: ItemCodec, capacity: int) -> Self:
        """A new, empty file in place of any that is there. Raises LocalError without the room."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise no_room(path, error) from None
        *_, size = _places(codec, capacity)
        try:
            os.ftruncate(file, size)
            _reserve(file, 0, 8 * HEADER_WORDS)
        except OSError as error:
            os.close(file)
            raise no_room(path, error) from None
        made = cls(file, codec, capacity, writable=True)
        made._reserve_level(made._levels[0])
        made.header[W_LEVEL] = made._levels[0]
        made.header[W_IDENTITY], made.header[W_BOOT] = int(codec.identity, 16), boot_number()
        made.header[W_CAPACITY], made.header[W_PID] = capacity, os.getpid()
        made.header[W_MAGIC] = MAGIC
        return made

    @classmethod
    def open(cls, path: Path, codec: ItemCodec, writable: bool = False) -> Self | None:
        """The file that is there; None where it is none of this codec, boot and size."""
        mode = os.O_RDWR if writable else os.O_RDONLY
        try:
            file = os.open(path, mode | os.O_CLOEXEC)
        except OSError:
            return None
        data = os.pread(file, 8 * HEADER_WORDS, 0).ljust(8 * HEADER_WORDS, b"\0")
        head = np.frombuffer(data, np.uint64)
        wanted = (MAGIC, int(codec.identity, 16), boot_number())
        if tuple(head[:3].tolist()) == wanted:
            capacity = int(head[W_CAPACITY])
            if os.fstat(file).st_size == _places(codec, capacity)[-1]:
                found = cls(file, codec, capacity, writable)
                found._reserved = found.count
                return found
        os.close(file)
        return None

    def close(self) -> None:
        """Give the descriptor back; the memory goes with the last array of it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    # --- reading -----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """Slots in use."""
        return int(self.header[W_COUNT])

    def buckets(self) -> index.Buckets:
        """The index in use."""
        return self.level(int(self.header[W_LEVEL]))

    def find(self, ids: NDArray[np.int64]) -> index.Slots:
        """The slot of each id, `index.NONE` where there is none. (n,)."""
        return index.find(self.buckets(), ids, self.entities)

    def fresh_ns(self) -> int:
        """How long ago the cache was known to hold all, ns; NOT_LIVE_NS where it may not be
        read."""
        if int(self.header[W_STATE]) != LIVE:
            return NOT_LIVE_NS
        age = now_ns() - int(self.header[W_SYNCED_NS])
        return age if age >= 0 else NOT_LIVE_NS

    def bytes_per_item(self) -> float:
        """Record, rows and its share of the index."""
        line = index.LINE_BYTES << int(self.header[W_LEVEL])
        fixed = self.codec.dtype.itemsize + self.codec.row_bytes
        return fixed + line / max(self.count, 1)

    def level(self, level: int) -> index.Buckets:
        """The index of a level, in use or not."""
        if level not in self._buckets:
            start = 8 * HEADER_WORDS + ((1 << level) - (1 << self._levels[0])) * index.LINE_BYTES
            found: index.Buckets = np.frombuffer(
                self._map, np.uint32, index.WORDS << level, start
            ).reshape(-1, index.WORDS)
            self._buckets[level] = found
        return self._buckets[level]

    # --- the writer's ------------------------------------------------------------------------

    def reserve(self, slots: int) -> None:
        """Room for so many slots in all, and in the index. Raises LocalError where the file system
        has none, or the capacity is less."""
        if slots > self.capacity:
            raise LocalError(
                "item cache",
                required=f"at most {self.capacity:,} items",
                got=f"{slots:,}",
                do="raise item_cache_items",
            )
        if (level := self._level_for(slots)) > int(self.header[W_LEVEL]):
            self._reserve_level(level)
        if slots > self._reserved:
            upto = min(self.capacity, -(-slots // _GROWTH_SLOTS) * _GROWTH_SLOTS)
            for start, each in (
                (self._record_start, self.codec.dtype.itemsize),
                (self._rows_start, self.codec.row_bytes),
            ):
                try:
                    _reserve(self._file, start + self._reserved * each, start + upto * each)
                except OSError as error:
                    raise no_room(Path(f"/proc/self/fd/{self._file}"), error) from None
            self._reserved = upto

    def grow(self) -> bool:
        """Reserve room for a good part more, where the file system has twice that; whether it did.

        What is full stays so while it is nearly full: looking for what had no room is a walk.
        """
        more = max(_GROWTH_SLOTS, self.count // _GROWTH_PART)
        slots = min(self.count + more, self.capacity)
        index_bytes = index.LINE_BYTES << self._level_for(slots)
        wanted = more * (self.codec.dtype.itemsize + self.codec.row_bytes) + index_bytes
        found = os.fstatvfs(self._file)
        if slots <= self.count or found.f_bavail * found.f_frsize < 2 * wanted:
            return False
        try:
            self.reserve(slots)
        except LocalError:
            return False
        return True

    def index_new(self, ids: NDArray[np.int64], slots: index.Slots) -> None:
        """Make new slots known, whose records are written. There is room where it was reserved;
        else raises LocalError."""
        wanted = self._level_for(int(slots.max(initial=0)) + 1)
        if wanted > int(self.header[W_LEVEL]):
            self._reserve_level(wanted)
            buckets, known = self.level(wanted), self.count
            buckets[:] = 0
            for start in range(0, known, 1 << 18):
                part = np.arange(start, min(known, start + (1 << 18)))
                index.insert(buckets, self.entities[part], part)
            self.header[W_LEVEL] = wanted
        self.header[W_COUNT] = max(self.count, int(slots.max(initial=-1)) + 1)
        index.insert(self.buckets(), ids, slots)  # cut off here: `lost` finds them

    def lost(self) -> index.Slots:
        """Slots that the index does not know."""
        parts = [
            part[self.find(self.entities[part]) == index.NONE]
            for start in range(0, self.count, 1 << 18)
            for part in (np.arange(start, min(self.count, start + (1 << 18))),)
        ]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def _level_for(self, slots: int) -> int:
        """Of the index that has room for so many, and not again soon for another one."""
        level = int(self.header[W_LEVEL])
        wanted = index.level_for(slots)
        return min(wanted + 1, self._levels[-1]) if wanted > level else level

    def _reserve_level(self, level: int) -> None:
        start = 8 * HEADER_WORDS + ((1 << level) - (1 << self._levels[0])) * index.LINE_BYTES
        try:
            _reserve(self._file, start, start + (index.LINE_BYTES << level))
        except OSError as error:
            raise no_room(Path(f"/proc/self/fd/{self._file}"), error) from None


def no_room(path: Path, error: OSError) -> LocalError:
    """The file system is full, or refuses the file."""
    return LocalError(
        f"item cache {path}",
        required="room for the cached items",
        got=error.strerror or type(error).__name__,
        do="free some, give /dev/shm more (shm_size in a container), or set item_cache_dir",
    )


def _reserve(file: int, start: int, stop: int) -> None:
    os.posix_fallocate(file, start, stop - start)


def _places(codec: ItemCodec, capacity: int) -> tuple[int, int, int]:
    """Where records and rows begin, and the file's size."""
    levels = index.LINE_BYTES << (index.level_for(capacity) + 1)
    records = _aligned(8 * HEADER_WORDS + levels)
    rows = _aligned(records + capacity * codec.dtype.itemsize)
    return records, rows, _aligned(rows + capacity * codec.row_bytes)


def _aligned(position: int) -> int:
    assert _BLOCK % LINE_BYTES == 0
    return -(-position // _BLOCK) * _BLOCK
