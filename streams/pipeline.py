"""Micro-batches under way at once, finished in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

Work = Callable[[], Awaitable[None]]


class Pipeline:
    """At most `most` pieces of work under way. Used by one event loop.

    Where one fails, the others are cancelled and nothing is begun any more: `enter`, `check` and
    `settle` raise what it raised.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: list[asyncio.Task[None]] = []
        self._failure: BaseException | None = None

    async def enter(self, work: Work, done: Callable[[], None]) -> None:
        """Begin `work`; call `done` once it and all that entered before it have ended well.

        Returns when there is room for another. Raises what any of them failed with.
        """
        self.check()
        before = self._under_way[-1] if self._under_way else None
        task = asyncio.create_task(_in_order(before, work, done))
        self._under_way.append(task)
        task.add_done_callback(self._ended)
        await asyncio.sleep(0)  # it sends before anything else is prepared
        while len(self._under_way) >= self._most:
            await self._first_ended()
        self.check()

    def check(self) -> None:
        """Raises what a piece of work failed with."""
        if self._failure is not None:
            raise self._failure

    async def settle(self) -> None:
        """Return once nothing is under way. Raises what a piece of work failed with."""
        while self._under_way:
            await self._first_ended()
        self.check()

    async def _first_ended(self) -> None:
        await asyncio.wait((self._under_way[0],))
        await asyncio.sleep(0)  # for `_ended`, where the task had ended already

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.remove(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is not None and self._failure is None:
            self._failure = error
            for other in self._under_way:
                other.cancel()


async def _in_order(
    before: asyncio.Task[None] | None, work: Work, done: Callable[[], None]
) -> None:
    await work()
    if before is not None:
        await asyncio.wait((before,))
        before.result()
    done()
