"""Whether the store still holds what a stream process believes of it: asked while nothing comes.

With an action in hand it shows by itself: marks and tables are compared before they are written, a
confirmation names its history, a new connection is checked (`store.base`). A process without
traffic writes nothing, and a store that is flushed or put back under it cuts no connection off. So
it looks: first at the history, whose marker goes with a wipe, then at what keys put back one by
one leave as they were, its own marks and tables. What is missing ends the process, as with an
action in hand; its successor goes on from what is there.

Never taken for a loss: a store that does not answer; a later mark or table than one's own, since
whoever took the partition over wrote it; what is on its way, because only that counts as believed
which the store had answered before it was asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

from schemas.errors import StoreError
from store.base import AsyncRowStore

WATCH_S: Final = 2.0


class Holding:
    """Of one process. Used by one task.

    beliefs: each asks the store for what this process read or wrote there, and raises StreamError
    where that is gone.
    """

    def __init__(
        self,
        store: AsyncRowStore,
        clock_s: Callable[[], float],
        *beliefs: Callable[[], Awaitable[None]],
    ) -> None:
        self._store, self._clock_s, self._beliefs = store, clock_s, beliefs
        self._next_watch_s = clock_s() + WATCH_S

    async def watch(self) -> None:
        """Look, unless the last time was just now. Raises HistoryError, StreamError."""
        now_s = self._clock_s()
        if now_s < self._next_watch_s:
            return
        self._next_watch_s = now_s + WATCH_S
        with suppress(StoreError):  # it is away: whoever follows the plan says so
            await self._store.check_history()
            for still_there in self._beliefs:
                await still_there()
