"""A Ctrl-C ends a command also where Python loses its exception."""

from __future__ import annotations

import subprocess
import sys

from tests.encore.terminal import hear_interrupts

LOST = """
import os, signal
from encore.signals import terminate_as_interrupt

class Struck:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass  # the signal's handler runs in here, where an exception goes nowhere

with terminate_as_interrupt() as interruption:
    try:
        interruption.check()
        struck = Struck()
        del struck
        print("went on")
        interruption.check()
        print("lost")
    except KeyboardInterrupt:
        print("ended")
"""


def run(name: str) -> list[str]:
    ended = subprocess.run(
        [sys.executable, "-c", LOST.format(name=name)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=hear_interrupts,
    )
    return ended.stdout.split("\n")


def test_an_interrupt_inside_a_finaliser_is_not_lost() -> None:
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        assert run(name) == ["went on", "ended", ""]
