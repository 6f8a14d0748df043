"""Work on rows, as much of it at once as their order allows.

A row must see its messages in the order of the log: were a later one written first, its fence would
pass over the earlier one, which would never count. So every row has a *lane*, by a hash of its id,
and a piece of work begins once all work that entered its lanes before has ended well. Lanes know
nothing of each other: while one micro-batch is written, the next is folded, row for row behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Pieces of one micro-batch at most, of one view.
LANES: Final = 64
_LANE_BITS: Final = 6
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Fibonacci hashing


def lanes_of(ids: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(n,) the lane of each id, in [0, LANES)."""
    return (ids.view(np.uint64) * _GOLDEN >> np.uint64(64 - _LANE_BITS)).astype(np.uint8)


class Lanes:
    """Used by one event loop at a time."""

    def __init__(self) -> None:
        self._last: dict[tuple[Hashable, int], asyncio.Task[None]] = {}

    def enter(
        self,
        of: Hashable,
        lanes: range,
        work: Callable[[], Awaitable[None]],
        after: asyncio.Task[None] | None = None,
    ) -> asyncio.Task[None]:
        """Begin `work` behind all that entered any of these lanes before.

        of: whose lanes. after: a task that it begins behind as well. Where earlier work failed or
        was cancelled, the task raises what that did, and all that enters later does: rows of these
        lanes lack what the earlier work had.
        """
        last = (after, *(self._last.get((of, lane)) for lane in lanes))
        before = [task for task in dict.fromkeys(last) if task is not None]
        task = asyncio.create_task(_behind(before, work))
        self._last.update(dict.fromkeys(((of, lane) for lane in lanes), task))
        return task


async def _behind(before: list[asyncio.Task[None]], work: Callable[[], Awaitable[None]]) -> None:
    under_way = [task for task in before if not task.done()]
    if under_way:
        await asyncio.wait(under_way)
    for task in before:
        task.result()
    before.clear()  # or each task would keep all that ever went before it
    await work()
