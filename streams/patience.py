"""Try again what a busy or restarting server refused, for a bounded time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from schemas.errors import EncoreError, StreamError

log = logging.getLogger("encore.streams")

FIRST_PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0

T = TypeVar("T")


async def patiently(
    what: str,
    operation: Callable[[], Awaitable[T]],
    patience_ms: int,
    retry_on: tuple[type[EncoreError], ...],
) -> T:
    """The operation's result, tried again on `retry_on` with doubling pauses.

    Raises StreamError once the pauses add up to `patience_ms`; anything else passes through.
    The operation must be one that may run twice.
    """
    waited_s, pause_s = 0.0, FIRST_PAUSE_S
    while True:
        try:
            return await operation()
        except retry_on as error:
            if waited_s * 1000 >= patience_ms:
                raise StreamError(
                    what,
                    required=f"success within {patience_ms} ms",
                    got=str(error),
                    do="restart this process once the server answers: nothing was lost",
                ) from error
            log.warning("%s failed, again in %.2f s: %s", what, pause_s, error)
        await asyncio.sleep(pause_s)
        waited_s += pause_s
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
