"""A word in a mapped file by which a process that answers nobody shows that it goes on.

    beat_ns    i64, little-endian    when all of it was last seen to move; 0: not yet

On the clock of `aggregation.cache.memory.now_ns`. Who reads it looks whether it changes, so a
writer that is stopped, or whose thread hangs, is told from one that waits: that one beats.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final, Self

_BEAT: Final = struct.Struct("<q")


class Pulse:
    """Of one process. One other may look."""

    def __init__(self, path: Path) -> None:
        """path: of a file that `create` made. Raises OSError where there is none."""
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _BEAT.size)

    @classmethod
    def create(cls, path: Path) -> Self:
        """A new file, also where one was."""
        path.unlink(missing_ok=True)
        path.write_bytes(_BEAT.pack(0))
        return cls(path)

    @property
    def beat_ns(self) -> int:
        """The last one, 0 before the first."""
        return int(_BEAT.unpack_from(self._map)[0])

    def beat(self, moved_ns: int) -> None:
        """All of the process moved at that moment."""
        _BEAT.pack_into(self._map, 0, moved_ns)
