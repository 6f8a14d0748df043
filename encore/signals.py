"""Ctrl-C, SIGTERM and a closed terminal end a command in order: everything unwinds."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

_TERMINATE: Final = (signal.SIGTERM, signal.SIGHUP)

Handler = Callable[[int, FrameType | None], None]


@dataclass(slots=True)
class Interruption:
    """Whether a signal asked to end."""

    asked: bool = False

    def check(self) -> None:
        """Raises KeyboardInterrupt where one was asked for: call it between steps.

        A signal's exception is lost when it strikes inside a `__del__` or another callback that
        Python runs by itself; then this one ends the command instead.
        """
        if self.asked:
            raise KeyboardInterrupt


@contextmanager
def terminate_as_interrupt() -> Iterator[Interruption]:
    """Within, Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread.

    A Ctrl-C that the command was started to ignore (`nohup`, a shell's background) stays ignored.
    """
    interruption = Interruption()

    def interrupt(number: int, frame: FrameType | None) -> None:
        interruption.asked = True
        raise KeyboardInterrupt

    heard = signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    with _handled((*_TERMINATE, signal.SIGINT) if heard else _TERMINATE, interrupt):
        yield interruption


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
