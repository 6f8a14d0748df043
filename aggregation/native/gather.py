"""Items out of the mapped cache by the kernels: index, copy and check in one call.

Symbols: N items, W words of a record.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.cache.memory import W_LEVEL, CacheMemory
from aggregation.native.library import Kernels, address, address_of_new, plain

HELD, ABSENT, TORN, AGED = range(4)
_BEHIND: Final = 2  # numbers behind the slots and states


class CacheFile(ctypes.Structure):
    """`struct cache` of gather.c."""

    _fields_ = (
        ("records", ctypes.c_void_p),
        ("record_words", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
    )


@dataclass(frozen=True, slots=True)
class Gathered:
    """words: (N, W) u8, zero but where HELD or AGED. slots: (N,), -1 where there is none. states:
    (N,). left: how many are not HELD. newest_ms: newest event of those that are, 0 for none.
    retried: copies made again, since a record was being written."""

    words: NDArray[np.uint64]
    slots: NDArray[np.int64]
    states: NDArray[np.int64]
    left: int
    newest_ms: int
    retried: int


class Gather:
    """Reads one mapped file, which it keeps mapped. Safe to share between threads."""

    def __init__(self, library: Kernels, memory: CacheMemory) -> None:
        self._memory, self._width = memory, memory.words.shape[1]
        self._cache = CacheFile(address(memory.words), self._width, memory.capacity)
        self._at, self._gather = ctypes.addressof(self._cache), library.gather
        self._levels: dict[int, tuple[int, Any]] = {}  # address of an index, and the index

    def __call__(self, item_ids: NDArray[np.int64], now_ms: int) -> Gathered:
        """The records of N items at now_ms."""
        n, level = len(item_ids), int(self._memory.header[W_LEVEL])
        buckets = self._levels.get(level)
        if buckets is None:
            index = self._memory.level(level)
            buckets = self._levels[level] = address(index), index
        item_ids = plain(item_ids, np.int64)
        words = np.empty((n, self._width), np.uint64)  # (N, W)
        places = np.empty(2 * n + _BEHIND, np.int64)
        left = self._gather(
            self._at,
            buckets[0],
            level,
            address(item_ids),
            n,
            now_ms,
            address_of_new(words),
            address_of_new(places),
        )
        newest_ms, retried = places[2 * n :].tolist()
        return Gathered(words, places[:n], places[n : 2 * n], left, newest_ms, retried)
