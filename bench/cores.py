"""Which cores the processes of a benchmark share.

Where there are two, what is measured can have one to itself, as its operator would give it, and
clients, store and broker the others: they would else take from it what they need for themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from encore.children import Child, ChildSpec, spawn


@dataclass(frozen=True, slots=True)
class Cores:
    """usable: where this process may run."""

    usable: frozenset[int]

    @classmethod
    def here(cls) -> Cores:
        """All that this process may use."""
        return cls(frozenset(os.sched_getaffinity(0)))

    @property
    def service(self) -> int | None:
        """The core that what is measured has to itself: the last one, if there are two."""
        return max(self.usable) if len(self.usable) > 1 else None

    @contextmanager
    def others(self, pids: Sequence[int] = ()) -> Iterator[None]:
        """This thread, what it starts, and those processes leave the service's core alone."""
        others = set(self.usable) - {self.service}
        _place(pids, others)
        try:
            yield
        finally:
            _place(pids, set(self.usable))

    def spawn(self, spec: ChildSpec) -> Child:
        """Start the service."""
        now = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.usable)
        try:
            return spawn(spec)
        finally:
            os.sched_setaffinity(0, now)


def _place(pids: Sequence[int], cores: set[int]) -> None:
    """This thread, and all threads of those processes."""
    os.sched_setaffinity(0, cores)
    for pid in pids:
        for thread in list(Path(f"/proc/{pid}/task").iterdir()):
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(int(thread.name), cores)
