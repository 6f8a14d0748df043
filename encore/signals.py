"""Ctrl-C, SIGTERM and a closed terminal end a command in order: everything unwinds.

A signal raises an exception in the main thread, wherever that is. Where an event loop runs there
(`encore.loops`) it cancels the loop's main task instead: out of whatever task or callback happens
to run, the exception would be lost, or told of with a traceback.

What was asked for is not lost. Where a first signal does not end the loop, and where Python drops
its exception (in a `__del__`, in another library's callback), an alarm strikes once more.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

from store.ending import heard

#: From a signal to the alarm that raises where the loop has not ended by then.
GRACE_S: Final = 5.0
#: From an exception that Python dropped to the next one.
AGAIN_S: Final = 0.05


@dataclass(slots=True)
class Interruption:
    """Whether a signal asked to end. error: what is raised then.

    asked: by a signal. forced: by a further one, since the first did not end the loop; what breaks
    from then on is not worth a word.
    """

    error: type[BaseException] = KeyboardInterrupt
    asked: bool = False
    forced: bool = False
    _cancel: Callable[[], None] | None = None
    _over: bool = False
    _before: dict[signal.Signals, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raises `error` where a signal asked for it: call it between steps."""
        if self.asked:
            raise self.error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within, the first signal raises nothing: it calls what `cancelled_by` was given.

        On leaving, `error` is raised where one was asked for, whatever else came out.
        """
        self._cancel = _nothing
        try:
            yield
        finally:
            self._cancel = None
            self._strike_in(0)
            self.check()

    def cancelled_by(self, cancel: Callable[[], None]) -> None:
        """What ends the work within `held`; called here where the signal has come by now."""
        self._cancel = cancel
        if self.asked:
            cancel()

    def strike(self, number: int, frame: FrameType | None) -> None:
        """The signals' handler: called at any moment, in the main thread."""
        again, self.asked = self.asked, True
        if self._over:
            return
        if self._cancel is None:
            raise self.error
        self._strike_in(GRACE_S)
        if again:
            self.forced = True
            raise self.error
        self._cancel()

    def dropped(self, lost: sys.UnraisableHookArgs) -> bool:
        """Told of an exception that Python cannot raise. Returns whether it needs no word."""
        if self.asked and issubclass(lost.exc_type, self.error):
            self._strike_in(AGAIN_S)
            return True
        return self.forced

    def begin(self) -> None:
        """Take over the signals."""
        for number in heard():
            self._before[number] = signal.signal(number, self.strike)

    def end(self) -> None:
        """Give them back."""
        self._over = True
        self._strike_in(0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _strike_in(self, seconds: float) -> None:
        """Once more then; 0: never. An alarm and no thread: whoever the signal interrupted may
        hold a lock that starting a thread takes."""
        if seconds and signal.SIGALRM not in self._before:
            self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self.strike)
        if signal.SIGALRM in self._before:
            signal.setitimer(signal.ITIMER_REAL, seconds)


#: Those in force, the innermost last.
_active: list[Interruption] = []


def interruption_here() -> Interruption | None:
    """The one in force, None in other threads than the main one."""
    is_main = threading.current_thread() is threading.main_thread()
    return _active[-1] if _active and is_main else None


def terminate_as_interrupt() -> AbstractContextManager[Interruption]:
    """Within, Ctrl-C, SIGTERM and SIGHUP end the main thread's work by KeyboardInterrupt.

    What the command was started to ignore (`nohup`, a shell's background) stays ignored. Enter it
    in the main thread. Within another one, it is the inner one's until it is left.
    """
    return _terminate_as(KeyboardInterrupt)


def terminate_as_exit() -> AbstractContextManager[Interruption]:
    """The same by SystemExit with exit code 0.

    For a service that handles them itself while it runs: what remains is the time before, and the
    signal that uvicorn raises once more after its own shutdown.
    """
    return _terminate_as(_Ended)


class _Ended(SystemExit):
    """The exit code is 0."""

    def __init__(self) -> None:
        super().__init__(0)


@contextmanager
def _terminate_as(error: type[BaseException]) -> Iterator[Interruption]:
    interruption, hook = Interruption(error), sys.unraisablehook

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if not interruption.dropped(lost):
            hook(lost)

    _active.append(interruption)
    sys.unraisablehook = unraisable
    try:
        interruption.begin()
        yield interruption
    except BaseException:
        interruption.check()  # what broke then broke because of it
        raise
    finally:
        interruption.end()
        sys.unraisablehook = hook
        _active.remove(interruption)


def _nothing() -> None:
    """There is nothing to cancel yet, or any more."""
