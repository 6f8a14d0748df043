"""How long tests wait for what a busy machine holds up."""

from __future__ import annotations

from typing import Final

from store.wire import StoreConfig

#: For a condition that will come true: on a machine with much else to do it takes a while.
WAIT_S: Final = 180.0


def patient(url: str) -> StoreConfig:
    """For a test's own questions: a busy machine may hold the store up for seconds."""
    return StoreConfig(url, timeout_ms=30_000, connect_timeout_ms=30_000)
