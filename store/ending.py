"""Signals that ask a process to end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def heard() -> tuple[signal.Signals, ...]:
    """SIGTERM, and Ctrl-C and a closed terminal unless the process was started to ignore them, as
    `nohup` and a shell's background do. Ask before handling them; call it in the main thread."""
    others = (signal.SIGINT, signal.SIGHUP)
    return signal.SIGTERM, *(n for n in others if signal.getsignal(n) is not signal.SIG_IGN)


def call_when_asked(call: Callable[[], object]) -> None:
    """From now on the running loop, of the main thread, calls this for each of those signals. One
    call at a time: it takes the place of an earlier one."""
    for number in heard():
        asyncio.get_running_loop().add_signal_handler(number, call)


def cancel_when_asked() -> None:
    """The same cancels the task that calls this."""
    task = asyncio.current_task()
    assert task is not None
    call_when_asked(task.cancel)
