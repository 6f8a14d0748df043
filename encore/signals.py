"""SIGTERM and a closed terminal end a command as Ctrl-C does: everything unwinds, in order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_AS_INTERRUPT: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _AS_INTERRUPT}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
