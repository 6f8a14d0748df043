"""The process that keeps the item cache, beside the serving processes that read it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from encore.keep import SILENCE_S, Kept, KeptSpec
from encore.settings import Settings

GRACE_S: Final = 5.0
#: Calls to the store, each of which may take its time-out, between two steps of the writer.
_CALLS: Final = 3


def cache_spec(settings: Settings, directory: Path) -> KeptSpec | None:
    """What it is; None where there is to be none. directory: for its pulse.

    On standby, so that each of several servers on one machine may keep one: one of them writes.
    """
    from aggregation.cache.memory import usable_here

    if not settings.item_cache or not usable_here():
        return None
    pulse = directory / "cache.pulse"
    arguments = ["cache", "--standby", "--pulse", str(pulse)]
    silence_s = max(SILENCE_S, _CALLS * settings.store_timeout_ms / 1_000)
    return KeptSpec("cache", arguments, settings.environment(), pulse=pulse, silence_s=silence_s)


@contextmanager
def kept_cache(settings: Settings) -> Iterator[Callable[[], None]]:
    """Keep it while inside. Yields a look at it, which starts it again where it has ended or stands
    still: call it again and again, from the main thread.

    Raises LocalError where no process can be made.
    """
    with TemporaryDirectory(prefix="encore-") as directory:
        spec = cache_spec(settings, Path(directory))
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
