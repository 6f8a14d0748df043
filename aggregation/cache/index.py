"""Id → slot: a hash table of cache lines, in arrays that processes share.

A bucket is one line of 64 bytes: eight u4 tags, then the slots of their ids. An id belongs into the
bucket that its hash names, or, when that is full, the next one. Tags are the hash's other
half, never 0, which marks a free place; places fill from the left and are never given back. Two ids
may have one tag: whoever looks up compares the id in the record.

Symbols: n ids, b buckets, a power of two.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

PLACES: Final = 8
WORDS: Final = 2 * PLACES  # u4 of a bucket
LINE_BYTES: Final = 4 * WORDS
FULLEST: Final = 0.3  # of all places: beyond, one id in a hundred lies in the next bucket
NONE: Final = -1

_FIRST: Final = np.uint64(0x9E3779B97F4A7C15)
_SECOND: Final = np.uint64(0xD6E8FEB86659FD93)
_HALF: Final = np.uint64(32)

Buckets = NDArray[np.uint32]
Slots = NDArray[np.int64]
Array = NDArray[Any]


def level_for(items: int) -> int:
    """log2 of the number of buckets that so many items need."""
    return max(6, int(np.ceil(np.log2(max(items, 1) / (PLACES * FULLEST)))))


def hashed(ids: NDArray[np.int64], level: int) -> tuple[Array, NDArray[np.uint32]]:
    """The bucket of each id, (n,) u8, and its tag, (n,) u4."""
    mixed = ids.view(np.uint64) * _FIRST
    mixed ^= mixed >> _HALF
    mixed *= _SECOND
    tags = mixed.astype(np.uint32) | np.uint32(1)
    return mixed >> np.uint64(64 - level), tags


def probe(buckets: Buckets, ids: NDArray[np.int64]) -> Slots | None:
    """The slot of each id in few array calls, if each lies in its bucket, as almost always.

    Not checked: whoever reads the records there compares their ids. None, or other records, where
    it is not that simple: ask `find` then. Returns (n,).
    """
    bucket, tags = hashed(ids, len(buckets).bit_length() - 1)
    lines = buckets.take(bucket.view(np.int64), axis=0)  # (n, WORDS)
    at = np.flatnonzero(lines == tags[:, None])
    if len(at) != len(ids):
        return None
    at += PLACES
    return lines.reshape(-1).take(at, mode="clip").astype(np.int64)


def find(buckets: Buckets, ids: NDArray[np.int64], entity_of: Array) -> Slots:
    """The slot of each id, NONE where it is not there. Returns (n,).

    buckets: (b, WORDS). entity_of: (slots,) the id that each slot holds, any stride.
    """
    bucket, tags = hashed(ids, len(buckets).bit_length() - 1)
    lines = buckets.take(bucket.view(np.int64), axis=0)  # (n, WORDS)
    match = lines[:, :PLACES] == tags[:, None]  # (n, PLACES)
    at = np.flatnonzero(match)
    row = at // PLACES
    slots = np.full(len(ids), NONE, np.int64)
    once = match.sum(axis=1) == 1  # (n,)
    kept = once[row]
    slots[row[kept]] = lines.reshape(-1).take(at[kept] + (row[kept] + 1) * PLACES)
    good = once & (entity_of[np.maximum(slots, 0)] == ids)
    slots[~good] = NONE
    # With a free place in its bucket and no such tag, an id is not there.
    absent = (lines[:, PLACES - 1] == 0) & ~match.any(axis=1)
    for place in np.flatnonzero(~good & ~absent).tolist():
        start, tag, wanted = int(bucket[place]), int(tags[place]), int(ids[place])
        slots[place] = _find_one(buckets, start, tag, wanted, entity_of)
    return slots


def _find_one(buckets: Buckets, bucket: int, tag: int, wanted: int, entity_of: Array) -> int:
    for step in range(len(buckets)):
        line = buckets[(bucket + step) & (len(buckets) - 1)].tolist()
        for place in range(PLACES):
            if line[place] == tag and int(entity_of[line[PLACES + place]]) == wanted:
                return int(line[PLACES + place])
        if not line[PLACES - 1]:
            break
    return NONE


def insert(buckets: Buckets, ids: NDArray[np.int64], slots: Slots) -> None:
    """Adds ids that are not there. A reader finds each from the moment its tag is written."""
    level = len(buckets).bit_length() - 1
    bucket, tags = hashed(ids, level)
    bucket = bucket.astype(np.int64)
    while len(bucket):
        order = np.argsort(bucket, kind="stable")
        bucket, tags, slots = bucket[order], tags[order], slots[order]
        first = np.searchsorted(bucket, bucket)  # (n,) where the run of its bucket begins
        taken = (buckets[bucket, :PLACES] != 0).sum(axis=1)
        place = taken + np.arange(len(bucket)) - first  # (n,)
        fits = place < PLACES
        there, at = bucket[fits], place[fits]
        buckets[there, PLACES + at] = slots[fits]
        buckets[there, at] = tags[fits]
        bucket, tags, slots = (bucket[~fits] + 1) & (len(buckets) - 1), tags[~fits], slots[~fits]
