"""SIGTERM and a closed terminal end a command in order: everything unwinds."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_TERMINATE: Final = (signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(_TERMINATE, interrupt):
        yield


@contextmanager
def terminate_as_exit() -> Iterator[None]:
    """Within, SIGTERM, SIGHUP and Ctrl-C end the process with exit code 0.

    For a service that handles them itself while it runs: what remains is the time before, and the
    signal that uvicorn raises once more after its own shutdown.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    with _handled((*_TERMINATE, signal.SIGINT), leave):
        yield


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: Handler) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
