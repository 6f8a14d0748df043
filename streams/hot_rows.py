"""Rows as this process wrote them last, so that it need not read its own writes.

A row here is a guess: compare-and-set on its fence tells whether it still stands in the store, and
a wrong guess costs one more round. Bounded in bytes; the rows that were not written for longest go
first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import repeat
from typing import Final

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
        return list(map(self._rows.get, keys))

    def keep(self, keys: Sequence[str], rows: Sequence[bytes]) -> None:
        """These rows landed, a key once."""
        held = self._rows
        before = list(filter(None, map(held.pop, keys, repeat(b""))))  # they go to the end
        held.update(zip(keys, rows, strict=True))
        self.used_bytes += sum(map(len, rows)) - sum(map(len, before))
        self.used_bytes += (len(keys) - len(before)) * BESIDE_BYTES
        while self.used_bytes > self._room_bytes:
            self.used_bytes -= len(held.popitem(last=False)[1]) + BESIDE_BYTES

    def clear(self) -> None:
        """Someone else may own these rows now."""
        self._rows.clear()
        self.used_bytes = 0
