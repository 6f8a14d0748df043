"""The one process that writes an item cache: rows into slots, and old values made anew.

It knows no store and no clock; `aggregation.cache.feed` brings rows and time.
"""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.cache.index import NONE, Slots
from aggregation.cache.memory import (
    LIVE,
    LOADING,
    RETIRED,
    W_AGED,
    W_CHANGED,
    W_COMPLETE,
    W_STATE,
    W_SYNCED_NS,
    W_SYNCS,
    W_WALKED,
    CacheMemory,
)
from aggregation.cache.record import FROM, SEQUENCE, UNTIL, Encoded, Raw
from aggregation.cache.validity import NEVER
from schemas.errors import LocalError
from schemas.stored import StoredRows

log: Final = logging.getLogger(__name__)
AT_ONCE: Final = 1_024  # items encoded together
_WHILE_ODD: Final = 64  # records written together: readers of these try again
_ONE: Final = np.uint64(1)

Array = NDArray[Any]


class CacheWriter:
    """Writes one `CacheMemory`. due_ms: when some record is to be made again, NEVER for none.

    full: there is no room for further items, so that what has no slot may still be in the store.
    """

    def __init__(self, memory: CacheMemory) -> None:
        self.memory = memory
        self.codec = memory.codec
        self.full = self._by_capacity = False
        self._latest_ms = NEVER  # what time it was; of a file that is taken up nobody knows
        count = memory.count
        self._due = np.full(max(count, 1), NEVER)  # (slots,) i64
        if count:
            lost = memory.lost()
            memory.index_new(memory.entities[lost], lost)
            self._due[:count] = memory.words[:count, UNTIL].view(np.int64)
        self.due_ms = int(self._due.min())

    def torn(self) -> Slots:
        """Slots whose writing was cut off, by the end of the process that did it."""
        sequence = self.memory.words[: self.memory.count, SEQUENCE]
        return np.flatnonzero(sequence & _ONE)

    # --- rows --------------------------------------------------------------------------------

    def put(self, item_ids: NDArray[np.int64], raw: Raw, now_ms: int) -> None:
        """Rows of n items, all different. raw: (V * n,) as the store holds them now."""
        views, n = len(self.codec.program.item_views), len(item_ids)
        self.memory.header[W_CHANGED] += np.uint64(n)
        if n <= AT_ONCE:
            self._write(item_ids, self.codec.encode(item_ids, raw, now_ms))
            return
        for start in range(0, n, AT_ONCE):
            ids = item_ids[start : start + AT_ONCE]
            part = [
                row
                for view in range(views)
                for row in raw[view * n + start : view * n + start + len(ids)]
            ]
            self._write(ids, self.codec.encode(ids, part, now_ms))

    def rows_of(self, slots: Slots) -> StoredRows:
        """What the store held of those slots, (V * n,)."""
        status = self.memory.records["status"][slots]  # (n, V)
        return self.codec.raw(self.memory.rows[slots], status)

    def refresh(self, now_ms: int, most: int = 4 * AT_ONCE) -> int:
        """Make records anew whose values have aged, so many at most, and where the clock was set
        back those that are of a time to come. Returns how many it made."""
        if now_ms < self._latest_ms:
            self._set_back(now_ms)
        self._latest_ms = now_ms
        if now_ms < self.due_ms:
            return 0
        due = np.flatnonzero(self._due[: self.memory.count] <= now_ms)
        for start in range(0, min(len(due), most), AT_ONCE):
            slots = due[start : min(start + AT_ONCE, most)]
            ids = self.memory.entities[slots]
            rows = self.memory.rows[slots]  # (n, R)
            raw = self.codec.raw(rows, self.memory.records["status"][slots])
            self._write(ids, self.codec.encode(ids, raw, now_ms, rows), slots)
        if len(due) <= most:
            self.due_ms = int(self._due[: self.memory.count].min(initial=NEVER))
        done = min(len(due), most)
        self.memory.header[W_AGED] += np.uint64(done)
        return done

    def _set_back(self, now_ms: int) -> None:
        """Readers would make these anew at each request until that time has come."""
        from_ms = self.memory.words[: self.memory.count, FROM].view(np.int64)  # (slots,)
        to_come = np.flatnonzero(from_ms > now_ms)
        self._note_due(to_come, np.full(len(to_come), now_ms))

    def _write(self, ids: NDArray[np.int64], encoded: Encoded, slots: Slots | None = None) -> None:
        """slots: of the ids, where they are known."""
        found = self.memory.find(ids) if slots is None else slots  # (n,)
        new = found == NONE
        if new.any():
            room = self._room(int(new.sum()))
            fresh = np.flatnonzero(new)
            found[fresh[:room]] = self.memory.count + np.arange(room)
            new[fresh[room:]] = False
        kept = np.flatnonzero(found != NONE)
        words = encoded.records.view(np.uint64).reshape(len(ids), -1)  # (n, W)
        for start in range(0, len(kept), _WHILE_ODD):
            of = kept[start : start + _WHILE_ODD]
            self._write_some(found[of], words[of], encoded.rows[of])
        self._note_due(found[kept], encoded.due_ms[kept])
        if new.any():
            self.memory.index_new(ids[new], found[new])

    def _write_some(self, slots: Slots, words: Array, rows: Array) -> None:
        """One after the other in memory: odd, the data, even. words: (n, W). rows: (n, R)."""
        target = self.memory.words
        odd = target[slots, SEQUENCE] | _ONE
        target[slots, SEQUENCE] = odd
        target[slots, SEQUENCE + 1 :] = words[:, SEQUENCE + 1 :]
        self.memory.rows[slots] = rows
        target[slots, SEQUENCE] = odd + _ONE

    def has_room_again(self) -> bool:
        """Whether there is room for a good part more than there is. If so it is kept, and `full` is
        over: what has no slot is to be looked for in the store."""
        if not self.full or self._by_capacity or not self.memory.grow():
            return False
        self.full = False
        return True

    def _room(self, wanted: int) -> int:
        """How many new slots there are, at most `wanted`."""
        count = self.memory.count
        try:
            self.memory.reserve(count + wanted)
        except LocalError as error:
            if not self.full:
                log.warning("%s; further items are read from the store", error)
            self.full = True
            self._by_capacity |= count + wanted > self.memory.capacity
            self.memory.header[W_COMPLETE] = 0
            return 0
        return wanted

    def _note_due(self, slots: Slots, due_ms: Array) -> None:
        if not len(slots):
            return
        needed = int(slots.max()) + 1
        if needed > len(self._due):
            grown = np.full(max(needed, 2 * len(self._due)), NEVER)
            grown[: len(self._due)] = self._due
            self._due = grown
        self._due[slots] = due_ms
        self.due_ms = min(self.due_ms, int(due_ms.min()))

    # --- what readers are told ---------------------------------------------------------------

    def live(self, synced_ns: int) -> None:
        """All that the store had answered by then is in the cache."""
        self.memory.header[W_SYNCED_NS] = synced_ns
        self.memory.header[W_STATE] = LIVE

    def walked(self, rows: int) -> None:
        """Count rows that were looked at, for whoever waits for this cache."""
        self.memory.header[W_WALKED] += np.uint64(rows)

    def verified(self) -> None:
        """Everything was compared with the store; an item without a slot has no rows there."""
        self.memory.header[W_COMPLETE] = 0 if self.full else 1
        self.memory.header[W_SYNCS] += _ONE

    def unsure(self) -> None:
        """What changed meanwhile is not known: nobody may read."""
        self.memory.header[W_STATE] = LOADING
        self.memory.header[W_COMPLETE] = 0

    def retire(self) -> None:
        """Nobody shall read this file any more."""
        self.memory.header[W_STATE] = RETIRED
        self.memory.close()
