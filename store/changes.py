"""What it takes to keep exact copies of rows: a store that tells what changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from schemas.stored import RowKeys, StoredRows


@dataclass(slots=True)
class Changes:
    """keys: changed since they were taken last. everything: the whole store was flushed."""

    keys: set[bytes] = field(default_factory=set)
    everything: bool = False

    def __bool__(self) -> bool:
        return bool(self.keys) or self.everything


class ChangingRows(Protocol):
    """Rows, and a connection on which the store tells of each change.

    Blocking, for one thread. Every call raises StoreTimeout or StoreError where the connection
    fails, and it is gone then: changes are lost, so `connect` again, `track`, and compare all that
    was kept.
    """

    def another(self) -> ChangingRows:
        """One of its own to the same rows, not connected yet."""
        ...

    def connect(self) -> None:
        """Open the connection, in place of the one there was. Nothing is tracked yet."""

    def track(self, prefixes: Sequence[str]) -> None:
        """Be told of all keys below these prefixes, none of which begins with another.

        What is read from then on is either newer than a change or followed by its key.
        """

    def changes(self, wait_s: float) -> Changes:
        """What has changed; waits for a first change for so long at most. Each is told once."""
        ...

    def read_rows(self, keys: Sequence[RowKeys]) -> StoredRows:
        """As `store.base.RowStore.read_rows`."""
        ...

    def scan(self, prefix: str) -> Iterator[list[bytes]]:
        """All keys below a prefix, some at a time; a key may come twice. Calls may come between.

        Each key that is there from the first to the last step is among them.
        """
        ...

    def get_text(self, key: str) -> str | None:
        """As `store.base.RowStore.get_text`."""
        ...

    def ping(self) -> None:
        """One round trip: all changes answered before it are told before it returns, or with the
        next `changes`."""

    def close(self) -> None:
        """Releases the connection; closing twice is allowed."""
