"""Work that follows behind a stream: one call at a time, each for all that came meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from faust.types import TP

#: How far a partition is: its next offset, or more than that.
Upto = TypeVar("Upto")


class Trailing(Generic[Upto]):
    """Calls `act` with the newest place of each partition. Used by one event loop.

    While a call is under way, what is added waits for the next one, which speaks of all of it.
    After a call that failed there is no other: `add`, `check` and `settle` raise what it raised.
    """

    def __init__(self, act: Callable[[dict[TP, Upto]], Awaitable[None]]) -> None:
        self._act = act
        self._waiting: dict[TP, Upto] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, upto: Mapping[TP, Upto]) -> None:
        """Returns at once."""
        self.check()
        self._waiting |= upto
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(_heard)

    def check(self) -> None:
        """Raises what a call failed with."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def settle(self) -> None:
        """Return once nothing waits. Raises what a call failed with."""
        if self._task is not None and not self._task.done():
            await asyncio.wait((self._task,))
        self.check()

    async def _run(self) -> None:
        while self._waiting:
            upto, self._waiting = self._waiting, {}
            await self._act(upto)


def _heard(task: asyncio.Task[None]) -> None:
    """A process that ends for another reason asks no more; the event loop need not complain."""
    if not task.cancelled():
        task.exception()
