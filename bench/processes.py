"""Processes that a benchmark talks to over pipes, and that never outlive it.

As `encore.children` starts a server: the kernel kills the process when the benchmark's dies, by
whatever cause; and a group of its own keeps a terminal's Ctrl-C from it, so that the benchmark
alone decides in which order things end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from encore import guard

_GUARD: Final = str(Path(guard.__file__))

#: A running process whose standard input and output are pipes of text.
Piped = subprocess.Popen[str]


@contextmanager
def piped(command: Sequence[str], errors: IO[str] | int | None = None) -> Iterator[Piped]:
    """The command, killed with its group and reaped at the end of the block.

    errors: where its standard error goes, as `Popen` takes it. Call it in the main thread, whose
    death ends the process.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", _GUARD, str(os.getpid()), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        process_group=0,
    )
    try:
        yield process
    finally:
        end(process)


def end(process: Piped) -> None:
    """Kill it with its group, and reap it."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):  # what it did not read any more
                pipe.close()
