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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from encore import guard

_GUARD: Final = str(Path(guard.__file__))

#: A running process whose standard input and output are pipes of text.
Piped = subprocess.Popen[str]


def start(
    command: Sequence[str],
    errors: IO[str] | int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Piped:
    """The command as a process. Call it in the main thread, whose death ends the process.

    errors: where its standard error goes, as `Popen` takes it. environment: replaces the parent's.
    """
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _GUARD, str(os.getpid()), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=None if environment is None else dict(environment),
        text=True,
        process_group=0,
    )


def kill(process: Piped) -> None:
    """End it with its group, if it has not ended, and reap it."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def close(process: Piped) -> None:
    """Its pipes, once nobody reads them."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):  # what it did not read any more
                pipe.close()


@contextmanager
def piped(
    command: Sequence[str],
    errors: IO[str] | int | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Piped]:
    """As `start`; killed, reaped and closed at the end of the block."""
    process = start(command, errors, environment)
    try:
        yield process
    finally:
        kill(process)
        close(process)
