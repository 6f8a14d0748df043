"""Around every request, whatever its protocol: its timeline, its counts.

    with Watched(service.observer, Timeline("rank", "grpc", traceparent)) as watched:
        …                       # the body comes in
        watched.begin()
        reply = await …

A request that raises RequestError is counted with that error's status; any other error is a 500.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from predictor.metrics import Metrics
from predictor.slow_log import SlowLog
from predictor.timeline import Timeline, enter, leave
from schemas.errors import RequestError

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from predictor.tracing import Tracer

CLIENT_LEFT: Final = 499


@dataclass(frozen=True, slots=True)
class WatchRequests:
    """trace_endpoint: an OTLP collector, None for no traces. trace_share: of the requests without
    a traced parent. slow_ms: longer requests get a log line, 0 for degraded ones alone."""

    trace_endpoint: str | None = None
    trace_share: float = 0.01
    slow_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Observer:
    """Everything that looks at requests. tracer, slow_log: None for none."""

    metrics: Metrics
    tracer: Tracer | None = None
    slow_log: SlowLog | None = None

    def close(self) -> None:
        """Send what is left to send. Blocks for some seconds at most."""
        if self.tracer is not None:
            self.tracer.close()


def open_observer(metrics: Metrics, config: WatchRequests, version: str) -> Observer:
    """The observer as configured. OpenTelemetry is loaded only where there is an endpoint."""
    tracer = None
    if config.trace_endpoint is not None:
        from predictor.tracing import Tracer

        tracer = Tracer(config.trace_endpoint, config.trace_share, version)
    return Observer(metrics, tracer, SlowLog(config.slow_ms))


class Watched:
    """A request while it is served; `current()` inside the block is its timeline."""

    def __init__(self, observer: Observer, timeline: Timeline) -> None:
        self._observer = observer
        self._span: Span | None = None
        self.timeline = timeline

    def __enter__(self) -> Self:
        self._token = enter(self.timeline)
        return self

    def begin(self) -> None:
        """The body is there: what came before was waiting for the caller."""
        self.timeline.restart()
        if self._observer.tracer is not None:
            self._span = self._observer.tracer.start(self.timeline)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.timeline.lap("reply")
        status, refused = 200, ""
        if isinstance(error, RequestError):
            status, refused = error.status, error.where
        elif error is not None:
            status = CLIENT_LEFT if isinstance(error, asyncio.CancelledError) else 500
        self._observer.metrics.observe(self.timeline, status, refused)
        if self._span is not None and self._observer.tracer is not None:
            self._observer.tracer.end(self._span, self.timeline, status)
        if self._observer.slow_log is not None:
            self._observer.slow_log.report(self.timeline)
        leave(self._token)
