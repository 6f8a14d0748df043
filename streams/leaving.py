"""How a stream process ends: told by a signal, and within a time whatever hangs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Self, TypeVar

from store.ending import call_when_asked

#: From the moment Faust is told to stop.
LEAVE_S: Final = 15.0
#: The same of a process that was told to stop before it was given anything to read.
LEAVE_UNBEGUN_S: Final = 3.0

T = TypeVar("T")


class Leaving:
    """The process ends within a time of `begin` unless the block does, whatever hangs.

    A task of Faust's that does not take its cancellation holds up its stop, or `asyncio.run`, and
    nobody starts a process again that does not end. What has to be stored and told is by then.
    """

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def begin(self, code: int, within_s: float | None = None) -> None:
        """code: the exit code. within_s: LEAVE_S unless given. Called once."""
        self._timer = threading.Timer(LEAVE_S if within_s is None else within_s, os._exit, (code,))
        self._timer.daemon = True
        self._timer.start()


def ending(code: int) -> int:
    """The same exit code, of a process that ends with it now: a thread may be left that does not
    end, for which the interpreter would wait."""
    Leaving().begin(code)
    return code


def told_to_stop() -> asyncio.Event:
    """Set by SIGTERM, SIGINT and SIGHUP from now on, as long as this event loop runs."""
    told = asyncio.Event()
    call_when_asked(told.set)
    return told


class StoppedError(Exception):
    """Told to stop before something that was waited for."""


async def unless(told: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled where `told` comes first, and not waited for then.

    Raises StoppedError then, and what `work` raises.
    """
    doing, stop = asyncio.ensure_future(work), asyncio.ensure_future(told.wait())
    try:
        await asyncio.wait({doing, stop}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise StoppedError
    finally:
        stop.cancel()
        if not doing.done():
            doing.cancel()
            doing.add_done_callback(_seen)


def run_until_told(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run until SIGTERM or SIGINT, of a process that ends then: it has LEAVE_UNBEGUN_S to do so, be
    it that a thread waits for a server. Blocking. Raises what `work` raises."""

    async def run() -> None:
        try:
            await unless(told_to_stop(), work())
        except StoppedError:
            Leaving().begin(0, LEAVE_UNBEGUN_S)

    asyncio.run(run())


def _seen(done: asyncio.Future[Any]) -> None:
    """Nobody waits for it any more: its error is none of the event loop's business."""
    with suppress(asyncio.CancelledError):
        done.exception()
