"""What the service counts, in Prometheus' text format.

A request is counted once it is answered, from its timeline, on the event loop.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest

from aggregation.program import Assembled, ServiceProgram
from predictor.readings import Readings
from predictor.tallies import Counter, Histogram, Labels
from predictor.timeline import Served, Timeline
from schemas.ranklog import Degraded
from schemas.status import Status

STATUSES: Final = tuple(status.name.lower() for status in Status)
#: Seconds between the newest event in any row of a request and the request's clock.
EVENT_AGES_S: Final = (0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 3600.0, 86_400.0)
#: Places of refusals that are told apart: a bound, should one of them be a caller's word.
MOST_PLACES: Final = 64


class Metrics:
    """One registry a service, so that two services of one process do not share counts.

    Used by one event loop. `readings` adds what other parts of the process keep.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter(
            "encore_requests_total",
            "Requests by model, protocol and HTTP status",
            ("model", "protocol", "status"),
        )
        self._refused = self._counter(
            "encore_refused_total", "Requests that were refused, by what was wrong", ("where",)
        )
        self._degraded = self._counter(
            "encore_degraded_total", "Replies by degradation", ("reason",)
        )
        self._rows = self._counter(
            "encore_rows_total", "Rows that requests asked for", ("view", "status")
        )
        self._seconds = self._histogram(
            "encore_request_seconds",
            "From the body's last byte to the reply's first",
            ("model", "protocol"),
        )
        self._stages = self._histogram(
            "encore_stage_seconds", "Parts of a request, one after the other", ("model", "stage")
        )
        self._loop_lag = self._histogram(
            "encore_loop_lag_seconds",
            "By how much the event loop is late, at a look every 10 ms",
            (),
        )
        self._ages = Histogram(
            "encore_newest_event_age_seconds",
            "Between the newest event in a request's rows and its clock",
            (),
            EVENT_AGES_S,
        )
        self.registry.register(self._ages)
        self._reasons, self._views = _Reasons(), _Views(None)
        self.readings = Readings(self.registry)

    def observe(self, timeline: Timeline, status: int, refused: str = "") -> None:
        """Count an answered request. refused: the place that a refusal names."""
        model, protocol = timeline.name, timeline.protocol
        if refused:
            self.observe_refused(model, protocol, status, refused)
            return
        self._requests.add((model, protocol, str(status)))
        if status != 200:
            return
        self._seconds.observe((model, protocol), timeline.total_s)
        for stage, seconds in timeline.laps:
            self._stages.observe((model, stage), seconds)
        if timeline.served is not None:
            self._observe_served(timeline.served)

    def observe_refused(self, model: str, protocol: str, status: int, where: str) -> None:
        """Count a refused request. where: the place that the refusal names."""
        self._requests.add((model, protocol, str(status)))
        place = (_root(where),)
        room = place in self._refused.counts or len(self._refused.counts) < MOST_PLACES
        self._refused.add(place if room else ("other",))

    def observe_loop(self, late_s: float) -> None:
        """Count by how much the event loop was late."""
        self._loop_lag.observe((), late_s)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    # --- parts ------------------------------------------------------------------------------

    def _observe_served(self, served: Served) -> None:
        assembled = served.assembled
        flags = int(served.degraded)
        if flags:
            for labels in self._reasons[flags]:
                self._degraded.add(labels)
        if served.program is not self._views.program:
            self._views = _Views(served.program)
        self._views.count(assembled, self._rows)
        if assembled.newest_ms:
            self._ages.observe((), max(served.now_ms - assembled.newest_ms, 0) / 1000)

    def _counter(self, name: str, help_text: str, labels: Labels) -> Counter:
        counter = Counter(name, help_text, labels)
        self.registry.register(counter)
        return counter

    def _histogram(self, name: str, help_text: str, labels: Labels) -> Histogram:
        histogram = Histogram(name, help_text, labels)
        self.registry.register(histogram)
        return histogram


class _Views:
    """The labels of a program's rows, made once a program."""

    def __init__(self, program: ServiceProgram | None) -> None:
        self.program = program
        user, item = ((), ()) if program is None else (program.user_views, program.item_views)
        self._user = [[(view.name, status) for status in STATUSES] for view in user]
        self._item = [(view.name, status) for view in item for status in STATUSES]
        starts = np.arange(len(item)) * len(STATUSES)
        self._starts = starts.astype(np.uint16)  # (Vi,)

    def count(self, assembled: Assembled, rows: Counter) -> None:
        """A request's rows by view and status."""
        for labels, found in zip(self._user, assembled.user_status.tolist(), strict=True):
            rows.add(labels[found])
        places = (assembled.item_status + self._starts).ravel()  # (N * Vi,)
        for place, count in enumerate(np.bincount(places).tolist()):
            if count:
                rows.add(self._item[place], count)


class _Reasons(dict[int, tuple[Labels, ...]]):
    """Flags → the labels of their reasons: taking an IntFlag apart costs microseconds."""

    def __missing__(self, flags: int) -> tuple[Labels, ...]:
        self[flags] = tuple((str(flag.name).lower(),) for flag in Degraded(flags))
        return self[flags]


@lru_cache(maxsize=256)
def _root(where: str) -> str:
    """The part of an error's place that no caller can make up.

    >>> _root("features[3].name"), _root("inputs.candidate_ids")
    ('features', 'inputs')
    """
    return where.split(".", 1)[0].split("[", 1)[0]
