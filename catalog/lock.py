"""`plan.lock.json`: the record of what was applied. Read whole, replaced by rename."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from schemas.errors import PlanError
from schemas.plan import Plan, dump_plan, load_plan
from store.durable import replacing

LOCK_NAME: Final = "plan.lock.json"


def read_lock(path: Path) -> Plan | None:
    """The plan of a lock file, None where there is no file. Raises PlanError for any other text."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    return load_plan(text, str(path))


def require_lock(path: Path) -> Plan:
    """As `read_lock`, but a missing file is a PlanError."""
    plan = read_lock(path)
    if plan is None:
        raise PlanError(str(path), required="a lock file", got="none", do="run `encore apply`")
    return plan


def write_lock(path: Path, plan: Plan) -> bool:
    """Replaces the file; a reader sees the old text or the new, also after a crash.

    Returns False, and touches nothing, where the file already holds this plan to the byte.
    """
    text = dump_plan(plan).encode()
    if path.exists() and path.read_bytes() == text:
        return False
    replace_file(path, text)
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Replaces a file durably, or leaves it as it is and nothing beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    aside = Path(name)
    try:
        aside.chmod(0o644)
        with replacing(path, aside) as file:
            file.write(data)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
