"""When one request's stages ended: the source of its metrics, its spans and its log lines.

A request begins a `Timeline`, which is `current()` to everything that runs in its task. Stages
follow one another, so a stage is the time from the last lap to its own and the stages of a request
add up to all of it. Work on the inference thread gets laps of its own, which the request takes
back when the work ended in time: late work writes into laps that nobody reads any more.

Stages, in order: parse, store, queue, assemble, coarse, fine, reply; `abandoned` is time spent
waiting for work that did not end in time.
"""

from __future__ import annotations

import re
import time
import uuid
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Final

from aggregation.program import Assembled, ServiceProgram
from schemas.ranklog import Degraded

STAGES: Final = (
    "parse",
    "store",
    "queue",
    "assemble",
    "coarse",
    "fine",
    "reply",
    "abandoned",
)
#: W3C Trace Context: version, trace id, parent id, flags.
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


class Laps:
    """Stages and their seconds, in the order in which they ended. Used by one thread at a time."""

    __slots__ = ("laps", "last_s")

    def __init__(self) -> None:
        self.laps: list[tuple[str, float]] = []
        self.last_s = time.perf_counter()

    def lap(self, stage: str) -> None:
        """The time since the last lap was this stage's."""
        now_s = time.perf_counter()
        self.laps.append((stage, now_s - self.last_s))
        self.last_s = now_s


@dataclass(frozen=True, slots=True)
class Served:
    """What a request was answered from. now_ms: the clock of its features."""

    program: ServiceProgram
    assembled: Assembled
    degraded: Degraded
    now_ms: int


class Timeline(Laps):
    """Laps of a whole request.

    name: what was called. protocol: http or grpc. traceparent: the caller's W3C trace context,
    empty without one. trace_id: 32 hex digits, the caller's or the tracer's, else empty.
    began_ns: wall clock. waited_s: before it was seen, in the connection's buffer; no part of the
    laps. request_id, served: None until they are known. caller_id: the request's id as its caller
    named it, empty without one.
    """

    __slots__ = (
        "began_ns",
        "caller_id",
        "name",
        "protocol",
        "request_id",
        "served",
        "trace_id",
        "traceparent",
        "waited_s",
    )

    def __init__(self, name: str = "", protocol: str = "", traceparent: str = "") -> None:
        super().__init__()
        self.name = name
        self.protocol = protocol
        self.traceparent = traceparent
        found = _TRACEPARENT.match(traceparent) if traceparent else None
        self.trace_id = found[1] if found else ""
        self.began_ns = time.time_ns()
        self.waited_s = 0.0
        self.request_id: uuid.UUID | None = None
        self.caller_id = ""
        self.served: Served | None = None

    def restart(self) -> None:
        """Begin now: what came before was waiting for the caller."""
        self.laps.clear()
        self.began_ns, self.last_s = time.time_ns(), time.perf_counter()

    def begin(self, request_id: uuid.UUID) -> None:
        """The request is parsed."""
        self.request_id = request_id
        self.lap("parse")

    def take_back(self, laps: Laps) -> None:
        """Go on from the laps of work that was waited for."""
        self.laps += laps.laps
        self.last_s = laps.last_s

    @property
    def total_s(self) -> float:
        """All laps together."""
        return sum([seconds for _, seconds in self.laps])  # a list is faster than a generator


_CURRENT: Final[ContextVar[Timeline | None]] = ContextVar("timeline", default=None)


def current() -> Timeline:
    """The request's own timeline; one that nobody reads, outside of a request."""
    return _CURRENT.get() or Timeline()


def enter(timeline: Timeline) -> Token[Timeline | None]:
    """Make it `current()` in this task; give the token to `leave`."""
    return _CURRENT.set(timeline)


def leave(token: Token[Timeline | None]) -> None:
    """Undo `enter`."""
    _CURRENT.reset(token)


def log_fields() -> dict[str, str]:
    """What each log line of a request says of it; empty outside of one."""
    timeline, fields = _CURRENT.get(), {}
    if timeline is not None and timeline.request_id is not None:
        fields["request_id"] = str(timeline.request_id)
        if timeline.caller_id and timeline.caller_id != fields["request_id"]:
            fields["caller_id"] = timeline.caller_id
    if timeline is not None and timeline.trace_id:
        fields["trace_id"] = timeline.trace_id
    return fields
