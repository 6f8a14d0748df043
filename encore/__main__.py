"""`python -m encore`, and the program `encore`: a signal ends it in order, from the first moment.

An interrupted command says `stopped` and ends with exit code 130; a service ends with 0.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType
from typing import Final

from store.ending import heard

INTERRUPTED: Final = 130
#: For threads that are still at work when all has unwound.
LEAVE_S: Final = 2.0


def main() -> int:
    """Run the command of `sys.argv`. Returns its exit code."""
    for number in heard():  # what is left of the process's life before and after: imports, its end
        signal.signal(number, _leave)
    from encore.signals import terminate_as_interrupt

    code = 0
    try:
        with terminate_as_interrupt() as interruption:
            from encore.cli import main as run

            code = run()
            if code:
                interruption.check()
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        _say_stopped()
        _leave_soon()
    return code


def _leave_soon() -> None:
    """The interpreter waits for threads before it calls what `atexit` holds.

    And it ends itself by SIGINT once a KeyboardInterrupt came out of an `exec`, though it was taken
    (a dataclass is made by one, while modules are imported): held back, that leaves the exit code.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    signal.signal(signal.SIGALRM, lambda *_: os._exit(INTERRUPTED))
    signal.setitimer(signal.ITIMER_REAL, LEAVE_S)
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


def _leave(number: int, frame: FrameType | None) -> None:
    _say_stopped()
    os._exit(INTERRUPTED)


def _say_stopped() -> None:
    try:
        os.write(2, b"stopped\n")
    except OSError:  # the terminal is closed
        return


if __name__ == "__main__":
    sys.exit(main())
