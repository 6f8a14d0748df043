"""Several coroutines under way at once, a bounded number of them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable


async def overlapped(work: Iterable[Coroutine[None, None, None]], most: int) -> None:
    """Run all; at most `most` are under way, and the next is made when one of them ended.

    Raises what the first of them raised; the others are cancelled and have ended by then.
    """
    running: set[asyncio.Future[None]] = set()
    try:
        for each in work:
            running.add(asyncio.ensure_future(each))
            await asyncio.sleep(0)  # let it send before the next is prepared
            if len(running) == most:
                await _one_of(running)
        while running:
            await _one_of(running)
    finally:
        await ended(*running)


async def _one_of(running: set[asyncio.Future[None]]) -> None:
    """Take out one that ended, or more, and raise what one of them raised."""
    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()  # what is raised here leaves the others to be looked after
        running.discard(task)


async def ended(*tasks: asyncio.Future[None] | None) -> None:
    """Cancel those that still run; return once all have ended. What they raised is dropped."""
    given = [task for task in tasks if task is not None]
    for task in given:
        task.cancel()
    await asyncio.gather(*given, return_exceptions=True)
