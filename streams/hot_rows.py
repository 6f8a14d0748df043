"""Rows as this process wrote them last, so that it need not read its own writes.

A row here is a guess: compare-and-set on its fence tells whether it still stands in the store, and
a wrong guess costs one more round. Bounded in bytes; the rows that were not used for longest go
first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from store.base import Write

ROOM_BYTES: Final = 64 << 20
#: What a row takes beside its bytes: the key, two object heads, a place in the dictionary.
BESIDE_BYTES: Final = 300


class HotRows:
    """room_bytes: of memory, about. Used by one event loop."""

    def __init__(self, room_bytes: int = ROOM_BYTES) -> None:
        self._room_bytes = room_bytes
        self._rows: OrderedDict[str, bytes] = OrderedDict()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> bytes | None:
        """The row as it was written last, None where it is not known."""
        return self._rows.get(key)

    def take(self, keys: Sequence[str]) -> list[bytes | None]:
        """The rows in the order of `keys`."""
        get = self._rows.get
        return [get(key) for key in keys]

    def keep(self, writes: Sequence[Write]) -> None:
        """These writes landed."""
        rows = self._rows
        for write in writes:
            old = rows.pop(write.key, None)
            if old is not None:
                self.used_bytes -= len(old) + BESIDE_BYTES
            rows[write.key] = write.value
            self.used_bytes += len(write.value) + BESIDE_BYTES
        while self.used_bytes > self._room_bytes:
            self.used_bytes -= len(rows.popitem(last=False)[1]) + BESIDE_BYTES

    def clear(self) -> None:
        """Someone else may own these rows now."""
        self._rows.clear()
        self.used_bytes = 0
