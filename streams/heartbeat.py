"""What only a running process knows of its partitions, told to the store: owner, rate, counts.

One small text a partition, written every two seconds beside the marks and read by `streams.status`.
It is for people: nothing depends on it, a store that does not take it is no error, and what is
further than FRESH_MS from now is of a process that is gone.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Final

from schemas.errors import StoreError
from schemas.names import worker_key
from store.base import AsyncRowStore
from streams.servers import Servers

BEAT_S: Final = 2.0
FRESH_MS: Final = 10_000


@dataclass(slots=True)
class Counts:
    """What was counted since the process took the partition. late, future: actions, once for each
    view that did not take them. dead: refused messages."""

    actions: int = 0
    late: int = 0
    future: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True)
class Beat:
    """What was told last. owner: host:pid, empty after a drain. rate: actions a second."""

    owner: str
    at_ms: int
    rate: float
    counts: Counts


@dataclass(slots=True)
class Tally:
    """Counts by partition."""

    counts: dict[int, Counts] = field(default_factory=dict)

    def of(self, partition: int) -> Counts:
        """The counts of a partition, to add to."""
        return self.counts.setdefault(partition, Counts())


class Heartbeat:
    """Tells of one group in one topic, from one process. Used by one task."""

    def __init__(
        self, store: AsyncRowStore, place: tuple[str, str], tally: Tally, servers: Servers
    ) -> None:
        """place: topic and group."""
        self._store, self._place, self._servers = store, place, servers
        self.tally = tally
        self._partitions: tuple[int, ...] = ()
        self._owner = f"{socket.gethostname()}:{os.getpid()}"
        self._told_s = servers.clock_s()
        self._before: dict[int, int] = {}

    def begin(self, partitions: Iterable[int]) -> None:
        """These partitions are this process's from now on; counts of others are dropped."""
        self._partitions = tuple(partitions)
        kept = self.tally.counts
        self.tally.counts = {p: kept.get(p, Counts()) for p in self._partitions}

    async def now_and_then(self) -> None:
        """Tell, if the last time was BEAT_S ago."""
        now_s = self._servers.clock_s()
        if now_s - self._told_s >= BEAT_S:
            await self._tell(self._owner, now_s)

    async def leave(self) -> None:
        """The last word: nobody has the partitions."""
        await self._tell("", self._servers.clock_s())

    async def _tell(self, owner: str, now_s: float) -> None:
        elapsed_s, self._told_s = max(now_s - self._told_s, 1e-3), now_s
        for partition in self._partitions:
            counts = self.tally.of(partition)
            rate = (counts.actions - self._before.get(partition, 0)) / elapsed_s
            self._before[partition] = counts.actions
            beat = Beat(owner, self._servers.wall_ms(), round(max(rate, 0.0), 1), counts)
            with suppress(StoreError):
                await self._store.put_text(
                    worker_key(*self._place, partition), json.dumps(asdict(beat))
                )


def parse_beat(text: str | None) -> Beat | None:
    """The inverse; None where there is none, or where it is of another version.

    >>> parse_beat('{"owner": "a:1", "at_ms": 5, "rate": 2.0, "counts": {"actions": 7}}').counts
    Counts(actions=7, late=0, future=0, dead=0)
    """
    if text is None:
        return None
    try:
        held = json.loads(text)
        counts = {each.name: int(held["counts"].get(each.name, 0)) for each in fields(Counts)}
        return Beat(str(held["owner"]), int(held["at_ms"]), float(held["rate"]), Counts(**counts))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
