"""What a worker says in its log of what it did: now and then, and only where it is news."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

EVERY_S: Final = 10.0

log = logging.getLogger("encore.streams")


class Reporter:
    """line: what was done so far, as one line of the log. clock_s: seconds that only grow."""

    def __init__(self, line: Callable[[], str], clock_s: Callable[[], float]) -> None:
        self._line, self._clock_s = line, clock_s
        self._looked_s, self._told = clock_s(), ""

    def look(self) -> None:
        """Cheap enough for every micro-batch: looks every ten seconds."""
        now_s = self._clock_s()
        if now_s - self._looked_s >= EVERY_S:
            self._looked_s = now_s
            line = self._line()
            if line != self._told:
                self._tell(line)

    def end(self) -> None:
        """The last line, whether it is news or not."""
        self._tell(self._line())

    def _tell(self, line: str) -> None:
        self._told = line
        log.info("%s", line)
