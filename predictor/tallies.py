"""Counters and histograms for one event loop: no locks, a fraction of a microsecond each.

prometheus_client's own take a lock and a label lookup for each observation, which at eight stages
a request is more than a request may cost here. These are read by its collector all the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Labels = tuple[str, ...]

#: From 0.1 ms, the fastest stage, to 2 s, the longest wait of a client.
SECONDS: Final = (
    *(0.0001, 0.0002, 0.0003, 0.0005, 0.00075),
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075),
    *(0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0),
)


class Counter(Collector):
    """A count for each combination of labels."""

    def __init__(self, name: str, help_text: str, labels: Sequence[str]) -> None:
        self._name, self._help, self._labels = name, help_text, tuple(labels)
        self.counts: dict[Labels, float] = {}

    def add(self, labels: Labels, count: float = 1) -> None:
        """Count, which is not negative."""
        self.counts[labels] = self.counts.get(labels, 0) + count

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for labels, count in list(self.counts.items()):
            family.add_metric(labels, count)
        yield family


class Histogram(Collector):
    """Observations for each combination of labels, in buckets with upper bounds."""

    def __init__(
        self, name: str, help_text: str, labels: Sequence[str], bounds: Sequence[float] = SECONDS
    ) -> None:
        self._name, self._help, self._labels = name, help_text, tuple(labels)
        self._bounds = tuple(bounds)
        self._cells: dict[Labels, list[float]] = {}  # a count for each bucket, then the sum

    def observe(self, labels: Labels, value: float) -> None:
        """Count a value."""
        cells = self._cells.get(labels)
        if cells is None:
            cells = self._cells[labels] = [0.0] * (len(self._bounds) + 2)
        cells[bisect_left(self._bounds, value)] += 1
        cells[-1] += value

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, cells in list(self._cells.items()):
            *counts, total = cells
            below, buckets = 0.0, []
            for name, count in zip(names, counts, strict=True):
                below += count
                buckets.append((name, below))
            family.add_metric(labels, buckets, total)
        yield family


class Reading(Collector):
    """Values that are read when they are asked for: gauges, or counts that someone else keeps."""

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str],
        read: Callable[[], Mapping[Labels, float]],
    ) -> None:
        """read: value by labels. A name that ends in `_total` is a counter's."""
        self._name, self._help, self._labels, self._read = name, help_text, tuple(labels), read

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        counts = self._name.endswith("_total")
        kind = CounterMetricFamily if counts else GaugeMetricFamily
        family = kind(self._name, self._help, labels=self._labels)
        for labels, value in self._read().items():
            family.add_metric(labels, value)
        yield family
