"""Child processes that are kept running: one that ends by itself, or hangs, is started again.

A kept process tells how it is over a Unix socket of its own, where it answers the HTTP that it
serves, so that each of many processes behind one port can be asked. The pause before a start
doubles with every end, and is short again after a while without one.
"""

from __future__ import annotations

import http.client
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from encore.children import Child, ChildSpec, spawn
from schemas.errors import LocalError

log: Final = logging.getLogger(__name__)
READY_PATH: Final = "/v2/health/ready"
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 10.0
#: A process that ran so long is not held to be failing again and again.
STEADY_S: Final = 30.0
#: A process that has answered and then says nothing for so long is killed.
SILENCE_S: Final = 30.0
ASK_EVERY_S: Final = 1.0
_ASK_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class KeptSpec:
    """What to keep. arguments: of `python -m encore`. environment: over the parent's own. socket:
    where it answers, None for a process that is asked nothing."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    socket: Path | None = None


class Kept:
    """One of them. `look` is called again and again, from the main thread."""

    def __init__(self, spec: KeptSpec) -> None:
        self.spec = spec
        self.ready = False
        self.was_ready = False
        self.restarts = 0
        self.child: Child | None = None
        self._pause_s = FIRST_PAUSE_S
        self._start_at_s = float("-inf")
        self._started_s = 0.0
        self._asked_s = float("-inf")
        self._answered = False  # since it was started
        self._silent_s = 0.0

    @property
    def pid(self) -> int | None:
        """The process id, None where none was started."""
        return self.child.pid if self.child is not None else None

    def look(self, now_s: float) -> None:
        """Start it when it is time, ask it, note its end. now_s: a clock that never goes back.

        Raises LocalError where it cannot even be started once. Later it is tried again: a machine
        that is short of something for a moment must not end whoever looks after others, too.
        """
        if self.child is None:
            if now_s >= self._start_at_s:
                self._try_to_start(now_s)
            return
        if self.spec.socket is not None and now_s - self._asked_s >= self._ask_every_s:
            self._ask(self.spec.socket, now_s)
        if not self.child.running:
            self._ended(self.child, now_s)

    def ask_to_end(self) -> None:
        """SIGTERM; `end` waits."""
        if self.child is not None:
            self.child.terminate()

    def end(self, grace_s: float) -> int:
        """Wait for its end, then SIGKILL. Returns its exit code, 0 for one that was not there."""
        child, self.child, self.ready = self.child, None, False
        return child.stop(grace_s) if child is not None else 0

    @property
    def _ask_every_s(self) -> float:
        return ASK_EVERY_S if self._answered else 0.0

    def _try_to_start(self, now_s: float) -> None:
        try:
            self._start(now_s)
        except LocalError as error:
            if not self.restarts:
                raise
            log.error("%s; again in %g s", error, self._pause_s)
            self._wait(now_s)

    def _start(self, now_s: float) -> None:
        spec = self.spec
        if spec.socket is not None:
            spec.socket.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **spec.environment}
        command = [sys.executable, "-m", "encore", *spec.arguments]
        self.child = spawn(ChildSpec(spec.name, command, None, environment=environment))
        self._started_s, self._answered, self._silent_s = now_s, False, 0.0

    def _ask(self, path: Path, now_s: float) -> None:
        since_s, self._asked_s = now_s - self._asked_s, now_s
        answer = ask(path, READY_PATH)
        if answer is not None:
            self._answered, self._silent_s = True, 0.0
            self.ready = answer[0] == http.client.OK
            self.was_ready |= self.ready
            return
        self.ready = False
        # Who asks may have been stopped for a while itself: that was nobody's silence.
        self._silent_s += min(since_s, ASK_EVERY_S + _ASK_TIMEOUT_S)
        if self._answered and self._silent_s > SILENCE_S:
            log.error("%s: no answer for %g s; it is killed", self.spec.name, SILENCE_S)
            assert self.child is not None
            self.child.kill()

    def _ended(self, child: Child, now_s: float) -> None:
        if now_s - self._started_s >= STEADY_S:
            self._pause_s = FIRST_PAUSE_S
        self.child, self.ready = None, False
        self.restarts += 1
        log.error(
            "%s: ended with exit code %s; again in %g s",
            self.spec.name,
            child.exit_code,
            self._pause_s,
        )
        self._wait(now_s)

    def _wait(self, now_s: float) -> None:
        """Before it is started again, the next time for twice as long."""
        self._start_at_s = now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, target: str, timeout_s: float = _ASK_TIMEOUT_S) -> tuple[int, bytes] | None:
    """Status and body of a GET over a Unix socket; None where nobody answers in time."""
    connection = _UnixConnection(path, timeout_s)
    try:
        connection.request("GET", target)
        reply = connection.getresponse()
        return reply.status, reply.read()
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
