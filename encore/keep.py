"""Child processes that are kept running: one that ends by itself, or hangs, is started again.

A kept process tells how it is over a Unix socket of its own, where it answers the HTTP that it
serves, so that each of many processes behind one port can be asked; one that serves nobody has a
pulse instead (`aggregation.cache.pulse`). The pause before a start
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

from aggregation.cache.pulse import Pulse
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
    where it answers. pulse: the file in which it beats; without either nobody sees that it hangs.
    silence_s: without an answer or a beat for so long it is killed."""

    name: str
    arguments: Sequence[str]
    environment: Mapping[str, str]
    socket: Path | None = None
    pulse: Path | None = None
    silence_s: float = SILENCE_S


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
        self._pulse: Pulse | None = None
        self._beat_ns = 0

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
        tells = self.spec.socket is not None or self._pulse is not None
        if tells and now_s - self._asked_s >= self._ask_every_s:
            self._ask(now_s)
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
        try:
            self._make_places()
        except OSError as error:
            raise LocalError(
                spec.name,
                required="room for a file in the directory for temporary files",
                got=error.strerror or type(error).__name__,
                do="free some",
            ) from None
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **spec.environment}
        command = [sys.executable, "-m", "encore", *spec.arguments]
        self.child = spawn(ChildSpec(spec.name, command, None, environment=environment))
        self._started_s, self._answered, self._silent_s = now_s, False, 0.0

    def _make_places(self) -> None:
        """Where it is heard, as new. Their directory may have been tidied away in the meantime."""
        for path in (self.spec.socket, self.spec.pulse):
            if path is not None:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
        if self.spec.pulse is not None:
            self._pulse, self._beat_ns = Pulse.create(self.spec.pulse), 0

    def _heard(self) -> bool | None:
        """Whether it is ready; None where it says nothing."""
        if self._pulse is not None:
            before, self._beat_ns = self._beat_ns, self._pulse.beat_ns
            return True if self._beat_ns != before else None
        assert self.spec.socket is not None
        answer = ask(self.spec.socket, READY_PATH)
        return None if answer is None else answer[0] == http.client.OK

    def _ask(self, now_s: float) -> None:
        since_s, self._asked_s = now_s - self._asked_s, now_s
        heard = self._heard()
        if heard is not None:
            self._answered, self._silent_s = True, 0.0
            self.ready = heard
            self.was_ready |= self.ready
            return
        self.ready = False
        # Who asks may have been stopped for a while itself: that was nobody's silence.
        self._silent_s += min(since_s, ASK_EVERY_S + _ASK_TIMEOUT_S)
        if self._answered and self._silent_s > self.spec.silence_s:
            stands = "no answer" if self._pulse is None else "it stands still, no beat"
            log.error("%s: %s for %g s; it is killed", self.spec.name, stands, self.spec.silence_s)
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
