"""Files that are whole, and there, after a power failure.

A file has its name durably once its bytes are on the disk, then the name, then the directory that
holds the name: `replacing` does the three in that order, so a reader sees the old file or the new.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def replacing(path: Path, aside: Path) -> Iterator[IO[bytes]]:
    """A file to be written inside the block, that is durably at `path` when the block ends.

    aside: where it is until then, in the same directory; it stays there, and what is at `path`
    stays, where the block raises. Raises OSError.
    """
    with aside.open("wb") as file:
        yield file
        _sync(file)
    os.replace(aside, path)
    sync_directory(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """A file's bytes on the disk; its name is durable after `sync_directory`. Raises OSError."""
    with path.open("wb") as file:
        file.write(data)
        _sync(file)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory durable. Raises OSError."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
