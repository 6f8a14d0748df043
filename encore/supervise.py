"""encore's own processes (`python -m encore stream` …) as children of one parent.

    with Supervisor(run_dir, settings.environment()) as processes:
        processes.start("stream", ["stream"], ready=joined)
        processes.start("serve", ["serve"], ready=answers)
        ...
        processes.check()            # LocalError when one of them has ended by itself

They are stopped in the reverse order of their start, so what feeds on another ends before it, and
each has its grace to drain. The guarantees of `encore.children` hold for all of them.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from encore.children import Child, ChildSpec, spawn, wait_ready
from schemas.errors import LocalError

READY_TIMEOUT_S: Final = 300.0
GRACE_S: Final = 60.0


class Supervisor:
    """Starts, watches and stops encore's processes."""

    def __init__(self, run_dir: Path, environment: Mapping[str, str]) -> None:
        """run_dir: gets `<name>.log` of each. environment: put over the parent's own variables."""
        self._run_dir = run_dir
        self._environment = {**os.environ, "PYTHONUNBUFFERED": "1", **environment}
        self._children: dict[str, Child] = {}

    @property
    def children(self) -> tuple[Child, ...]:
        """All that were started and not stopped, in the order of their start."""
        return tuple(self._children.values())

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        ready: Callable[[], bool] | None = None,
        timeout_s: float = READY_TIMEOUT_S,
    ) -> Child:
        """Start `python -m encore ARGUMENTS`, wait until `ready` says True.

        ready: asked every few milliseconds; None does not wait. Raises LocalError with the end of
        the log when the process ends first or the time is over, and when `name` is taken.
        """
        if name in self._children:
            raise LocalError(
                f"local.{name}", required="a name not in use", got="a process of that name"
            )
        command = [sys.executable, "-m", "encore", *arguments]
        log = self._run_dir / f"{name}.log"
        child = spawn(ChildSpec(name, command, log, environment=self._environment))
        self._children[name] = child
        if ready is not None:
            try:
                wait_ready(child, ready, timeout_s)
            except BaseException:
                child.kill()
                del self._children[name]
                raise
        return child

    def check(self) -> None:
        """Raises LocalError, naming log and exit code, when a process has ended by itself."""
        for name, child in self._children.items():
            if not child.running:
                raise LocalError(
                    f"local.{name}",
                    required="to go on running",
                    got=f"exit code {child.exit_code}: {child.log_tail() or 'nothing in its log'}",
                    do=f"read {child.spec.log}",
                )

    def watch(self, go_on: Callable[[], None], interval_s: float = 0.2) -> None:
        """Block until a process ends by itself, the LocalError of `check`, or `go_on` raises."""
        while True:
            go_on()
            self.check()
            time.sleep(interval_s)

    def stop(self, name: str, grace_s: float = GRACE_S) -> int:
        """Stop one: SIGTERM, `grace_s` to drain, then SIGKILL. Returns its exit code.

        Raises LocalError when no process of that name was started.
        """
        child = self._children.pop(name, None)
        if child is None:
            raise LocalError(
                f"local.{name}",
                required=f"one of {', '.join(self._children) or 'no processes'}",
                got=repr(name),
            )
        return child.stop(grace_s)

    def stop_all(self, grace_s: float = GRACE_S) -> dict[str, int]:
        """Stop all, last started first. Returns {name: exit code}; the log has the rest."""
        codes: dict[str, int] = {}
        try:
            for name in reversed(list(self._children)):
                codes[name] = self.stop(name, grace_s)
        finally:
            # A second Ctrl-C while draining: no more grace, but nothing is left behind.
            for child in self._children.values():
                child.kill()
            self._children.clear()
        return codes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_all()
