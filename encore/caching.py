"""The process that keeps the item cache, beside the serving processes that read it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from encore.keep import Kept, KeptSpec
from encore.settings import Settings

GRACE_S = 5.0


def cache_spec(settings: Settings) -> KeptSpec | None:
    """What it is; None where there is to be none.

    On standby, so that each of several servers on one machine may keep one: one of them writes.
    """
    from aggregation.cache.memory import usable_here

    if not settings.item_cache or not usable_here():
        return None
    return KeptSpec("cache", ["cache", "--standby"], settings.environment())


@contextmanager
def kept_cache(settings: Settings) -> Iterator[Callable[[], None]]:
    """Keep it while inside. Yields a look at it, which starts it again where it has ended: call it
    again and again, from the main thread.

    Raises LocalError where no process can be made.
    """
    spec = cache_spec(settings)
    if spec is None:
        yield lambda: None
        return
    kept = Kept(spec)

    def look() -> None:
        kept.look(time.monotonic())

    try:
        look()
        yield look
    finally:
        kept.end(GRACE_S)
