"""Around every request, whatever its protocol: its timeline, its counts.

    with Watched(service.metrics, Timeline("rank", "grpc", traceparent)):
        reply = await …

A request that raises RequestError is counted with that error's status; any other error is a 500.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

from predictor.metrics import Metrics
from predictor.timeline import Timeline, enter, leave
from schemas.errors import RequestError

CLIENT_LEFT: Final = 499


class Watched:
    """A request while it is served; `current()` inside the block is its timeline."""

    def __init__(self, metrics: Metrics, timeline: Timeline) -> None:
        self._metrics = metrics
        self.timeline = timeline

    def __enter__(self) -> Self:
        self._token = enter(self.timeline)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        leave(self._token)
        self.timeline.lap("reply")
        status, refused = 200, ""
        if isinstance(error, RequestError):
            status, refused = error.status, error.where
        elif error is not None:
            status = CLIENT_LEFT if isinstance(error, asyncio.CancelledError) else 500
        self._metrics.observe(self.timeline, status, refused)
