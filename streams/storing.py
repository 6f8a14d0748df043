"""Micro-batches on their way into rows, two at once, and what trails behind them.

The rows' order is settled as soon as a micro-batch is handed over (`streams.lanes`); micro-batches
end in the order in which they came (`streams.pipeline`). What then speaks of them, marks or pairs,
trails behind: one call is under way, and speaks of all that was in its rows when it began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Generic

from faust.types import TP

from streams.folding import Folder
from streams.messages import ActionRun, DeadLetter
from streams.overlap import ended
from streams.pipeline import Pipeline
from streams.side_outputs import SideOutputs
from streams.trailing import Trailing, Upto

#: Micro-batches under way at once: one is written, one is folded.
UNDER_WAY: Final = 2


class Storing(Generic[Upto]):
    """Used by one event loop. mark: records that all before these places is stored; it is called
    with the newest place of each partition.

    After a failure of either nothing more is begun: all but `add`'s caller's own work ends, and
    every method raises what failed.
    """

    def __init__(self, mark: Callable[[dict[TP, Upto]], Awaitable[None]]) -> None:
        self._under_way, self._marking = Pipeline(UNDER_WAY), Trailing(mark)

    async def add(
        self,
        folder: Folder,
        aside: SideOutputs,
        run: ActionRun,
        dead: list[DeadLetter],
        same_log: asyncio.Future[None],
        done: Callable[[], Mapping[TP, Upto]],
    ) -> None:
        """Begin to store a micro-batch: its actions by the folder, what was refused of it aside.

        same_log: awaited before the first write. done: called once it and all before it are
        stored; up to where that is. Returns when there is room for another.
        """
        folding = folder.begin(run, lambda: asyncio.shield(same_log))

        async def store() -> None:
            try:
                await aside.send_dead(dead)
                await folding
            finally:
                await ended(folding)

        try:
            await self._under_way.enter(store, lambda: self._marking.add(done()))
        except BaseException:
            await ended(folding)
            raise

    def check(self) -> None:
        """Raises what storing or marking failed with."""
        self._under_way.check()
        self._marking.check()

    async def settle(self) -> None:
        """Return once all that was added is stored and marked. Raises what that failed with."""
        await self._under_way.settle()
        await self._marking.settle()
