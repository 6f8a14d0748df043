"""Processes forked from one that has imported what a stream process needs.

They are as much on their own as those that are started: a log, signals, an exit code. To import it
all takes a second and a half of a core, and the tests start a hundred of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

from bench.chaos_nursery import die_with_parent

PRELOADED = ["tests.streams.process", "tests.streams.forked"]


@cache
def _server() -> ForkServerContext:
    """Starts with the first process and ends with this one."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


class Forked:
    """One of them; `main` is a function of a module. log: the file that gets what it prints.

    Its exit code is what `main` returns; negative: the signal that ended it.
    """

    def __init__(
        self, main: Callable[..., int], arguments: tuple[str, ...], directory: Path, log: Path
    ) -> None:
        log.touch()
        self._process = _server().Process(
            target=_live, args=(main, arguments, directory, log), daemon=True
        )
        self._process.start()
        pid = self._process.pid
        assert pid is not None
        self.pid = pid

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout_s: float) -> int:
        self._process.join(timeout_s)
        code = self._process.exitcode
        assert code is not None, f"it did not end within {timeout_s} s"
        return code

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _live(main: Callable[..., int], arguments: tuple[str, ...], directory: Path, log: Path) -> None:
    die_with_parent()  # which ends with the tests, killed or not
    with log.open("wb") as out:
        for number in (1, 2):
            os.dup2(out.fileno(), number)
    os.chdir(directory)
    raise SystemExit(main(*arguments))
