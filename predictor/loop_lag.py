"""How late the event loop is: how long what is ready waits for its turn.

A probe asks to be woken every few milliseconds and looks how much later that happens. While it is
overdue it tells even more: the loop has been busy for so long without coming round, and whatever
came in since waits at least until it does. So the lag is known in the middle of a long turn, when
requests are to be refused, and not only behind it. (Measuring the wait itself instead of guessing
it from rates: as CoDel does, see `predictor.admission`.)
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Final

EVERY_S: Final = 0.01


class LoopLag:
    """How late one event loop is; `run` is the probe, a task of it. Without one the lag is 0."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, every_s: float = EVERY_S
    ) -> None:
        self._clock = clock
        self._every_s = every_s
        self._due_s = math.inf
        self._late_s = 0.0

    def __call__(self) -> float:
        """Seconds by which the loop is late now: at the last look, or since it is overdue."""
        return max(self._late_s, self._clock() - self._due_s)

    async def run(self, told: Callable[[float], None]) -> None:
        """Look until cancelled. told: gets the seconds of each look."""
        try:
            while True:
                self._due_s = self._clock() + self._every_s
                await asyncio.sleep(self._every_s)
                self._late_s = max(self._clock() - self._due_s, 0.0)
                told(self._late_s)
        finally:
            self._due_s, self._late_s = math.inf, 0.0
