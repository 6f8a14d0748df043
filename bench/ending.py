"""How a benchmark ends that is told to: Ctrl-C, SIGTERM or a closed terminal.

The main thread unwinds from wherever it is (`encore.signals`), so servers, processes and
directories go in the order in which their blocks close. What still runs then breaks because of
that: threads whose store is gone, tasks that were cancelled. None of it is worth a word any more.

Processes that talk over pipes are started by `bench.processes`, servers by `encore.children`: the
kernel ends both with this one, whatever becomes of the unwinding. Threads that load a server until
they are through are daemons, so that nobody waits for them.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from encore.signals import terminate_as_interrupt

#: Of a shell, for a process that a signal ended.
_SIGNALLED: Final = 128
_NUMBERS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def ended_in_order(run: Callable[[], int]) -> int:
    """What `run` returns, or 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    told: list[int] = []
    hook = threading.excepthook
    try:
        with terminate_as_interrupt() as interruption:
            for number in _NUMBERS:
                _note(number, told)
            code = run()
            interruption.check()
        return code
    except KeyboardInterrupt:
        return _SIGNALLED + (told[0] if told else signal.SIGINT)
    finally:
        threading.excepthook = hook
        logging.disable(logging.NOTSET)


def _note(number: signal.Signals, told: list[int]) -> None:
    """Notes the signal, and ends all talk, before what handles it now does."""
    handler: Any = signal.getsignal(number)
    if not callable(handler):  # ignored: it stays so
        return

    def handle(struck: int, frame: FrameType | None) -> None:
        told.append(struck)
        logging.disable(logging.CRITICAL)
        threading.excepthook = _say_nothing
        handler(struck, frame)

    signal.signal(number, handle)


def _say_nothing(_: threading.ExceptHookArgs) -> None:
    """A thread that breaks now does so because of the signal."""
