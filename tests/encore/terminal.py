"""What a terminal gives a program that it starts."""

from __future__ import annotations

import signal


def hear_interrupts() -> None:
    """For `preexec_fn`: Ctrl-C and the terminal's end reach the program, also where a suite runs in
    the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
