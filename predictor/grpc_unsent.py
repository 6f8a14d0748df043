"""Calls that have begun and whose message is still to come.

A call's headers and its message nearly always come together, so who was let in by its headers
counts as coming: admission must not let in all of a burst before the first of them is admitted. But
a caller may begin calls and send nothing. Such a call counts no longer than `BURST_S`, keeps no
other call from being asked for, and is ended after as long as a body may take.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc.aio

from predictor.admission import Admission

#: Messages that come later are of no burst.
BURST_S: Final = 0.05


class Unsent:
    """One such call. Create it in its task.

    end: called once where the message did not come in `most_s`; it ends the call, whose reading
    ends with it. The reading itself is never cancelled here: the library writes into its memory.
    """

    __slots__ = ("_admission", "_end", "_ending", "_late", "_loop", "_most_s", "_timer")

    def __init__(
        self, admission: Admission, most_s: float, end: Callable[[], Awaitable[None]]
    ) -> None:
        self._admission = admission
        self._most_s = most_s
        self._end = end
        self._ending: asyncio.Future[None] | None = None
        self._late = False

    async def message(self, context: Any) -> bytes | None:
        """The call's message; None of a caller who left, or was too slow."""
        self._loop = asyncio.get_running_loop()
        self._admission.coming += 1
        self._timer = self._loop.call_later(BURST_S, self._lingers)
        try:
            data = await context.read()
        finally:
            self._timer.cancel()
            if self._late:
                self._admission.unsent -= 1
            else:
                self._admission.coming -= 1
        return None if data is grpc.aio.EOF or self._ending is not None else bytes(data)

    def _lingers(self) -> None:
        self._late = True
        self._admission.coming -= 1
        self._admission.unsent += 1
        self._timer = self._loop.call_later(self._most_s - BURST_S, self._too_slow)

    def _too_slow(self) -> None:
        self._ending = asyncio.ensure_future(self._end())
