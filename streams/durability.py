"""Commits follow durability: a partition is committed up to what the store's disk has confirmed.

Rows and marks are readable as soon as they are written. The store's disk comes a moment later
(`appendfsync everysec`: within a second or so), so confirmation is asked for beside the work: one
request at a time, each for everything that was stored when it began. A confirmed position moves its
mark in `streams.transport.Marks`, and only marks are committed.

Reading starts at the store's own marks, which lie behind the rows in one history (`store.base`): a
store that went back took them along. The broker's commit is the witness outside the store: where
the store knows less than was committed, it lost what it had confirmed.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Mapping

from faust.types import TP

from schemas.errors import StoreError
from store.base import AsyncRowStore
from streams.config import StreamConfig
from streams.patience import patiently
from streams.trailing import Trailing
from streams.transport import Marks

log = logging.getLogger("encore.streams")


async def open_confirmations(
    store: AsyncRowStore, marks: Marks, config: StreamConfig
) -> Confirmations:
    """Confirmations of a store whose history is fixed. What it holds by now, epochs of the logs
    among it, it has for good afterwards. Raises StoreError where it cannot confirm anything."""
    if config.fsynced:
        await store.confirm()
    return Confirmations(store, marks, config.patience_ms, config.fsynced)


def tell_of_a_wipe(tps: Iterable[TP], known: Container[int], marks: Marks) -> list[TP]:
    """Partitions that were committed and of which the store knows nothing, told in the log.

    known: partitions that the store has a mark of. What the topic still holds is read again; what
    it does not only a rebuild brings back.
    """
    lost = sorted(tp for tp in tps if tp.partition not in known and marks.committed.get(tp, 0))
    if lost:
        committed = {f"{tp.topic}/{tp.partition}": marks.committed[tp] for tp in lost}
        log.error(
            "the store was wiped: %s were committed, and it knows nothing of them. What the topics"
            " still hold is read again; for the rest, and for rows that were written while it was"
            " wiped, run `encore rebuild` for every streamed view",
            committed,
        )
    return lost


class Confirmations:
    """Advances marks once the store confirmed what lies before them. Used by one task.

    wanted: False where a setting says that the store's answer is enough, at once then.
    """

    def __init__(
        self, store: AsyncRowStore, marks: Marks, patience_ms: int, wanted: bool = True
    ) -> None:
        self._store, self._marks, self._patience_ms = store, marks, patience_ms
        self._wanted = wanted
        self._trailing = Trailing(self._confirm)

    def stored(self, upto: Mapping[TP, int]) -> None:
        """All before these offsets is in the store, marks included. Returns at once.

        Raises what an earlier confirmation failed with: HistoryError, StreamError.
        """
        if self._wanted:
            self._trailing.add(upto)
        else:
            self._advance(upto)

    def check(self) -> None:
        """Raises what a confirmation failed with."""
        self._trailing.check()

    async def settle(self) -> None:
        """Return once all that was stored is confirmed. Raises HistoryError, StreamError."""
        await self._trailing.settle()

    async def _confirm(self, upto: Mapping[TP, int]) -> None:
        await patiently("the store's disk", self._store.confirm, self._patience_ms, (StoreError,))
        self._advance(upto)

    def _advance(self, upto: Mapping[TP, int]) -> None:
        for tp, next_offset in upto.items():
            self._marks.advance(tp, next_offset)
