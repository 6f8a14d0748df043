"""Child processes that never outlive their parent.

A child is started through `guard.py` (the kernel kills it when this process dies, by whatever
cause), in a process group of its own (Ctrl-C in a terminal reaches only the parent, which then
stops its children in order), with its output in a log file, and it is always reaped.

The kernel watches the *thread* that started a child, so children are started from the main thread.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from schemas.errors import LocalError
from store.cores import unpinned

_GUARD = Path(__file__).with_name("guard.py")
_POLL_S = 0.005
_LONGEST_POLL_S = 0.2  # what is longer is a stall
_LOG_TAIL_BYTES = 4096
_LOG_TAIL_LINES = 3


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run. `log` is appended to, None shares the parent's output; `environment` replaces
    the parent's when given."""

    name: str
    command: Sequence[str]
    log: Path | None
    directory: Path | None = None
    environment: Mapping[str, str] | None = None


class Child:
    """A running or ended child. Use `spawn` to make one."""

    def __init__(
        self, spec: ChildSpec, process: subprocess.Popen[bytes], log_start_bytes: int
    ) -> None:
        self.spec = spec
        self._process = process
        self._log_start_bytes = log_start_bytes

    @property
    def name(self) -> str:
        """The name it was given."""
        return self.spec.name

    @property
    def pid(self) -> int:
        """Its process id, also the id of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; else its exit code, or minus the signal that ended it."""
        if self._process.returncode is None and self._has_ended():
            self._reap()
        return self._process.returncode

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.exit_code is None

    def log_tail(self) -> str:
        """The last lines that it logged, as one line for an error message; empty for none."""
        if self.spec.log is None:
            return ""
        try:
            with self.spec.log.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_start_bytes, end - _LOG_TAIL_BYTES))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return " | ".join([line.strip() for line in lines if line.strip()][-_LOG_TAIL_LINES:])

    def signal(self, number: int) -> None:
        """Send a signal to the child itself; nothing happens when it has ended."""
        if self.running:
            os.kill(self.pid, number)  # not reaped yet, so the id is still its own

    def terminate(self) -> None:
        """Send SIGTERM and do not wait."""
        self.signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code once it has ended, None when it still runs after `timeout_s`.

        Time in which this process stood still counts little: on a machine that stalls the child
        stood still, too, and could not end.
        """
        left_s, before_s = timeout_s, time.monotonic()
        while self.running and left_s > 0:
            time.sleep(_POLL_S)
            now_s = time.monotonic()
            left_s -= min(now_s - before_s, _LONGEST_POLL_S)
            before_s = now_s
        return self.exit_code

    def stop(self, grace_s: float = 10.0) -> int:
        """End it: SIGTERM, `grace_s` to finish its work, then SIGKILL to its whole group.

        Returns its exit code. May be called again, and on a child that has already ended.
        """
        if self.running:
            os.kill(self.pid, signal.SIGTERM)
            if self.wait(grace_s) is None:
                self._kill_group()
                self._process.wait()
        code = self.exit_code
        assert code is not None
        return code

    def kill(self) -> int:
        """End it and its whole group at once by SIGKILL; returns its exit code."""
        if self.running:
            self._kill_group()
            self._process.wait()
        code = self.exit_code
        assert code is not None
        return code

    def _has_ended(self) -> bool:
        flags = os.WEXITED | os.WNOWAIT | os.WNOHANG
        try:
            return os.waitid(os.P_PID, self.pid, flags) is not None
        except ChildProcessError:  # reaped by Popen
            return True

    def _reap(self) -> None:
        # The group is killed before its leader is reaped: until then its id cannot be reused.
        self._kill_group()
        self._process.wait()

    def _kill_group(self) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # macOS says EPERM for a group of zombies
            return


def spawn(spec: ChildSpec) -> Child:
    """Start a child of the calling process. Returns at once; the program may still fail to start.

    Raises LocalError when not called from the main thread, or when no process can be made.
    """
    if threading.current_thread() is not threading.main_thread():
        raise LocalError(
            f"local.{spec.name}",
            required="to be started from the main thread, whose death ends it",
            got=threading.current_thread().name,
        )
    guarded = [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), *spec.command]
    try:
        with _output(spec.log) as log, unpinned():
            log_start_bytes = 0 if log is None else log.tell()
            process = subprocess.Popen(
                guarded,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=None if log is None else subprocess.STDOUT,
                cwd=spec.directory,
                env=None if spec.environment is None else dict(spec.environment),
                process_group=0,
            )
    except OSError as error:
        raise LocalError(
            f"local.{spec.name}", required="a program that can be run", got=str(error)
        ) from error
    return Child(spec, process, log_start_bytes)


def _output(log: Path | None) -> AbstractContextManager[IO[bytes] | None]:
    """Where its output goes; None: where the parent's goes."""
    if log is None:
        return nullcontext()
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("ab")


def wait_ready(child: Child, ready: Callable[[], bool], timeout_s: float) -> None:
    """Call `ready` until it says True while the child runs.

    Raises LocalError with the end of the child's log when it ended, or when `timeout_s` passed; in
    both cases the child is gone afterwards.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        # Asked before the exit code: a foreign server on the same port must not pass for ours.
        answered = ready()
        if not child.running:
            raise LocalError(
                f"local.{child.name}",
                required="to come up",
                got=f"exit code {child.exit_code}: {child.log_tail() or 'nothing in its log'}",
                do=f"read {child.spec.log}",
            )
        if answered:
            return
        if time.monotonic() > deadline:
            child.kill()
            raise LocalError(
                f"local.{child.name}",
                required=f"to be ready within {timeout_s:g} s",
                got=child.log_tail() or "nothing in its log",
                do=f"read {child.spec.log}",
            )
        time.sleep(_POLL_S)
