"""OpenTelemetry spans of requests: one of the request, below the caller's, and one of each stage.

Stages are told from the request's timeline after the reply is made, so a request that is not
sampled costs one span that records nothing, and a service without an endpoint has no tracer.
Spans leave by OTLP over HTTP, in batches, from the exporter's own thread; what it cannot send it
drops. The parent is what the caller's `traceparent` says (W3C Trace Context, level 1): a sampled
parent is followed, without a parent a share of the requests is traced. The exporter's other options
are OpenTelemetry's own variables, `OTEL_EXPORTER_OTLP_HEADERS` and so on.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from predictor.timeline import Timeline
from schemas.ranklog import degraded_text

_PATH: Final = "/v1/traces"
_NS: Final = 1_000_000_000
#: Stages that wait for another process, by OpenTelemetry's kinds of spans.
_KINDS: Final = {"store": SpanKind.CLIENT}


class Tracer:
    """Makes the spans of one serving process. `start` and `end` run on its event loop."""

    def __init__(self, endpoint: str, share: float, version: str) -> None:
        """endpoint: the collector, `http://collector:4318`. share: of the requests without a
        parent that are traced."""
        resource = {"service.name": "encore", "service.version": version}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create(resource),  # OTEL_RESOURCE_ATTRIBUTES add to it
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + _PATH)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("encore", version)
        self._w3c = TraceContextTextMapPropagator()

    def start(self, timeline: Timeline) -> Span:
        """The span of a request that begins; from now on the timeline knows its trace."""
        parent = None
        if timeline.traceparent:
            parent = self._w3c.extract({"traceparent": timeline.traceparent})
        span = self._tracer.start_span(
            timeline.name, parent, SpanKind.SERVER, start_time=timeline.began_ns
        )
        timeline.trace_id = f"{span.get_span_context().trace_id:032x}"
        return span

    def end(self, span: Span, timeline: Timeline, status: int) -> None:
        """The request was answered with that HTTP status: its stages, then its end."""
        ended_ns = timeline.began_ns
        if span.is_recording():
            span.set_attributes(_attributes(timeline, status))
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            inside = set_span_in_context(span)
            for stage, seconds in timeline.laps:
                kind = _KINDS.get(stage, SpanKind.INTERNAL)
                child = self._tracer.start_span(stage, inside, kind, start_time=ended_ns)
                ended_ns += round(seconds * _NS)
                child.end(ended_ns)
        span.end(ended_ns)

    def close(self) -> None:
        """Send what is left, for at most some seconds. Blocks."""
        self._provider.shutdown()


def _attributes(timeline: Timeline, status: int) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "encore.protocol": timeline.protocol,
        "encore.status": status,
    }
    if timeline.request_id is not None:
        attributes["encore.request_id"] = str(timeline.request_id)
    if timeline.caller_id:
        attributes["encore.caller_id"] = timeline.caller_id
    if (served := timeline.served) is not None:
        attributes["encore.candidates"] = len(served.assembled.item_status)
        attributes["encore.degraded"] = degraded_text(served.degraded)
    return attributes
