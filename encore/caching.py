"""The process that keeps the item cache, beside the serving processes that read it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from encore.children import Child, ChildSpec, spawn
from encore.settings import Settings

GRACE_S = 5.0


@contextmanager
def kept_cache(settings: Settings) -> Iterator[Child | None]:
    """`encore cache --standby` for as long as the block lasts; None where there is to be none.

    On standby, so that each of several servers on one machine may start one: one of them keeps the
    cache. Call it from the main thread. Raises LocalError where no process can be made.
    """
    from aggregation.cache.memory import usable_here

    if not settings.item_cache or not usable_here():
        yield None
        return
    child = spawn(
        ChildSpec(
            "cache",
            [sys.executable, "-m", "encore", "cache", "--standby"],
            settings.runs / "cache.log",
            environment={**os.environ, **settings.environment()},
        )
    )
    try:
        yield child
    finally:
        child.stop(GRACE_S)
