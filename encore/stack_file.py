"""How commands find the running local stack: `<data_dir>/run/stack.json`.

`encore up` and `encore demo` write it when everything is ready and remove it when they end. It
names its writer's process, so what a killed writer left behind is recognised and ignored. A lock
beside it keeps two stacks off one directory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import psutil

from encore.alone import alone_in
from encore.settings import LOCAL, Settings
from schemas.errors import LocalError, SettingsError

ADDRESSES: Final = ("bootstrap", "store_url")
#: The system tells when it started in whole seconds, and another one when its clock is set.
_SAME_START_S: Final = 1.5


@dataclass(frozen=True, slots=True)
class StackFile:
    """Where the parts of a running local stack listen. url: empty while nothing serves. started_s:
    of its writer, since the machine's start: the time of day may be set meanwhile."""

    bootstrap: str
    store_url: str
    url: str
    pid: int
    started_s: float


def _path(run_dir: Path) -> Path:
    return run_dir / "stack.json"


@contextmanager
def owned(run_dir: Path) -> Iterator[None]:
    """Hold `run_dir` for one stack. Raises LocalError when another process holds it."""
    with alone_in(run_dir) as alone:
        if not alone:
            raise LocalError(
                str(run_dir),
                required="a directory of its own for each local stack",
                got="one where a stack is running",
                do="stop it, or set another data_dir",
            )
        _path(run_dir).unlink(missing_ok=True)  # of one that was killed
        try:
            yield
        finally:
            _path(run_dir).unlink(missing_ok=True)


def announce(run_dir: Path, *, bootstrap: str, store_url: str, url: str = "") -> None:
    """Write the stack file of this process, by rename."""
    pid = os.getpid()
    stack = StackFile(bootstrap, store_url, url, pid, _started_s(pid))
    scratch = run_dir / "stack.json.new"
    scratch.write_text(json.dumps(asdict(stack), indent=2) + "\n", encoding="utf-8")
    scratch.replace(_path(run_dir))


def running_stack(run_dir: Path) -> StackFile | None:
    """The stack that runs in `run_dir`; None when there is none, or its owner is gone."""
    try:
        stack = StackFile(**json.loads(_path(run_dir).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    with suppress(psutil.NoSuchProcess):
        if abs(_started_s(stack.pid) - stack.started_s) < _SAME_START_S:
            return stack
    return None


def _started_s(pid: int) -> float:
    """When a process started, since the machine did. Raises psutil.NoSuchProcess."""
    return float(psutil.Process(pid).create_time() - psutil.boot_time())


def resolved(settings: Settings, names: Sequence[str] = ADDRESSES) -> Settings:
    """The settings with `local` replaced by where the running local stack listens.

    names: those of ADDRESSES that are needed. Raises SettingsError when one of them is `local` and
    no stack runs.
    """
    changes = {}
    stack = running_stack(settings.runs)
    for name in names:
        if getattr(settings, name) == LOCAL:
            if stack is None:
                raise SettingsError(
                    name,
                    required="a running local stack, or an address",
                    got=f"{LOCAL!r}, and nothing runs in {settings.runs}",
                    do=f"start `encore up`, or set {name}",
                )
            changes[name] = getattr(stack, name)
    return settings.model_copy(update=changes)
