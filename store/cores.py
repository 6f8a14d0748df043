"""On which of the machine's cores a serving or stream process runs.

Two threads of Python that both have work, on two cores, spend more on handing each other the
interpreter than the second core is worth; on one core the one goes on until it waits. For that the
threads of a pinned process are batch jobs (SCHED_BATCH): one that is woken does not take the core
from the one that has it, so that what comes in meanwhile is worked through at once, and not with
two changes of threads for each request. Linux only.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final

from schemas.errors import SettingsError

AUTO: Final = "auto"
#: `auto`, or numbers and ranges.
PATTERN: Final = rf"^({AUTO}|\d+(-\d+)?(,\d+(-\d+)?)*)$"

#: Where the process runs, and ran before, once it is pinned.
_own: Final[set[int]] = set()
_before: Final[set[int]] = set()


def core_of(cores: str, number: int, setting: str = "cores") -> int:
    """The core of process `number`: they take theirs in turn.

    cores: like 2,4-7 in that order, or auto: all that this process may use, the last first, since
    a machine does most of its own work on its first. setting: that `cores` came from. Raises
    SettingsError where the process may not use one of them, or the system knows no such thing.

    >>> core_of("0-0", 3)
    0
    """
    if not hasattr(os, "sched_getaffinity"):
        raise _error(setting, "Linux", "another system")
    usable = sorted(os.sched_getaffinity(0))
    chosen = usable[::-1] if cores == AUTO else _listed(cores, usable, setting)
    return chosen[number % len(chosen)]


def pin(core: int) -> None:
    """Run this process on one core: its threads (libraries start some when they are imported), and
    those that it starts from now on. They take turns; one that its operator gave another policy of
    scheduling keeps that."""
    _before.update(os.sched_getaffinity(0))
    _own.add(core)
    _place(_own, os.SCHED_OTHER, os.SCHED_BATCH)


@contextmanager
def pinned(core: int | None, setting: str) -> Iterator[None]:
    """Run this process on one core inside the block, and afterwards where it might before.

    core: None leaves it as it is. setting: that it came from. Raises SettingsError as `core_of`.
    """
    if core is None:
        yield
        return
    pin(core_of(str(core), 0, setting))
    try:
        yield
    finally:
        _place(_before, os.SCHED_BATCH, os.SCHED_OTHER)
        _own.clear()
        _before.clear()


@contextmanager
def unpinned() -> Iterator[None]:
    """What this thread starts inside may run wherever the process might before it was pinned, and
    as any other."""
    if not _before:
        yield
        return
    os.sched_setaffinity(0, _before)
    _change_policy(0, os.SCHED_BATCH, os.SCHED_OTHER)
    try:
        yield
    finally:
        os.sched_setaffinity(0, _own)
        _change_policy(0, os.SCHED_OTHER, os.SCHED_BATCH)


def _place(cores: set[int], old: int, new: int) -> None:
    """All threads of this process there, and those of the old policy to the new one."""
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread, cores)
            _change_policy(thread, old, new)


def _change_policy(thread: int, old: int, new: int) -> None:
    """Of a thread that has the old one, 0 for this one. Where that is not allowed it is slower."""
    with suppress(PermissionError):
        if os.sched_getscheduler(thread) == old:
            os.sched_setscheduler(thread, new, os.sched_param(0))


def _listed(cores: str, usable: Sequence[int], setting: str) -> list[int]:
    """Numbers and ranges, written out."""
    found: list[int] = []
    for part in cores.split(","):
        first, _, last = part.partition("-")
        ends = int(first), int(last or first)
        if not set(ends) <= set(usable) or ends[0] > ends[1]:
            told = f"cores of those that it may use, {', '.join(map(str, usable))}"
            raise _error(setting, told, part)
        found += [core for core in range(ends[0], ends[1] + 1) if core in usable]
    return found


def _error(setting: str, required: str, got: str) -> SettingsError:
    return SettingsError(setting, required=required, got=got, do="unset it to run anywhere")
