"""A store for one benchmark run: a Valkey of its own on a free loopback port."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from encore.local import start_store


@contextmanager
def own_store() -> Iterator[tuple[str, int]]:
    """(host, port) of an empty store that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        server = start_store(Path(directory))
        try:
            yield "127.0.0.1", server.port
        finally:
            server.child.kill()
