"""Rows as this process wrote them last, so that it need not read its own writes.

A row here is a guess: compare-and-set on its fence tells whether it still stands in the store, and
a wrong guess costs one more round. Bounded in bytes. Rows are of two ages; when the young ones fill
half of the room they become the old ones, and those that were old and not written since are gone:
so no row is moved or counted by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

ROOM_BYTES: Final = 64 << 20
#: What a row takes beside its bytes: the key, two object heads, a place in the dictionary.
BESIDE_BYTES: Final = 300


class HotRows:
    """room_bytes: of memory, about. Used by one event loop."""

    def __init__(self, room_bytes: int = ROOM_BYTES) -> None:
        self._half_bytes = room_bytes // 2
        self._young: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}
        self._young_bytes = self._old_bytes = 0

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())

    @property
    def used_bytes(self) -> int:
        """At most so many; never more than the room."""
        return self._young_bytes + self._old_bytes

    def get(self, key: str) -> bytes | None:
        """The row as it was written last, None where it is not known."""
        return self._young.get(key) or self._old.get(key)

    def take(self, keys: Sequence[str]) -> list[bytes | None]:
        """The rows in the order of `keys`."""
        young, old = self._young.get, self._old.get
        return [young(key) or old(key) for key in keys]

    def keep(self, keys: Sequence[str], rows: Sequence[bytes]) -> None:
        """These rows landed, a key once. More than half of the room at once are not kept."""
        if not keys:
            return
        each_bytes = max(map(len, rows)) + BESIDE_BYTES
        if self._young_bytes + len(keys) * each_bytes > self._half_bytes:
            self._old, self._old_bytes = self._young, self._young_bytes
            self._young, self._young_bytes = {}, 0
        if len(keys) * each_bytes > self._half_bytes:
            for key in keys:
                self._old.pop(key, None)
            return
        before = len(self._young)
        self._young.update(zip(keys, rows, strict=True))
        self._young_bytes += (len(self._young) - before) * each_bytes

    def clear(self) -> None:
        """Someone else may own these rows now."""
        self._young, self._old = {}, {}
        self._young_bytes = self._old_bytes = 0
