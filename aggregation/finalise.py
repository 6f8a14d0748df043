"""From state to values: what a reader gets of rows at `now_ms`.

One function serves requests, backfill, tests and time travel. A window aggregates the `w` tiles in
`(tile(now) - w, tile(now)]`: the newest is partial, and a value falls while nothing happens.
Tiles after tile(now) and sequence entries after `now_ms` are left out. State remembers T tiles up
to its newest action: for a `now_ms` further back than the ring's spare tiles, tiles that were
already given up count as zero.

A row whose newest event is older than the view's TTL at `now_ms` is as good as none.

Symbols: n rows, A rings of one shape, L capacity of a vector feature.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregation.rings import window_totals
from aggregation.saturate import saturate
from aggregation.sequences import shifted, visible
from schemas.errors import PlanError
from schemas.layout import NUMPY
from schemas.plan import AccumulatorPlan, FeaturePlan, SequencePlan, ViewPlan
from schemas.row import Rows

Array = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Features:
    """Features of n rows. Arrays may be views of the rows' memory.

    values: feature -> (n,), or (n, L) for a vector, of the feature's dtype; zero where null and
    behind a length. lengths: vector feature -> (n,) int64. null: feature -> (n,) bool.
    expired: (n,) bool, rows beyond the TTL, finalised as empty ones.
    """

    values: dict[str, Array]
    lengths: dict[str, Array]
    null: dict[str, Mask]
    expired: Mask


@dataclass(frozen=True, slots=True)
class _Windows:
    """Windows of one length over rings of one shape: computed together."""

    head: str
    hop_ms: int
    ring_tiles: int
    tiles: int
    features: tuple[FeaturePlan, ...]


class Finaliser:
    """A view's finalise program, compiled once.

    features: the names wanted, all of the view's unless given. Raises PlanError for a feature the
    view cannot compute.
    """

    def __init__(self, view: ViewPlan, features: Collection[str] | None = None) -> None:
        self.view = view
        known = {feature.name for feature in view.features}
        for name in features or ():
            if name not in known:
                required = f"one of {', '.join(sorted(known))}"
                raise PlanError(f"{view.name}.features", required=required, got=repr(name))
        wanted = [f for f in view.features if features is None or f.name in features]
        self._fields = tuple(_checked_field(view, f) for f in wanted if f.kind == "field")
        self._windows = _grouped_windows(view, [f for f in wanted if f.kind == "window"])
        self._sequences = tuple(
            (feature, _sequence_of(view, feature))
            for feature in wanted
            if feature.kind == "sequence"
        )

    def __call__(self, rows: Rows, now_ms: int) -> Features:
        """Finalise n rows at now_ms. Touches no clock and changes no row."""
        n = len(rows.entity_ids)
        expired = np.zeros(n, bool)
        if self.view.ttl_ms > 0:
            expired = rows.newest_ms < now_ms - self.view.ttl_ms  # (n,)
        alive = None if not expired.any() else ~expired
        features = Features({}, {}, {}, expired)
        self._finalise_fields(rows, alive, features)
        self._finalise_windows(rows, now_ms, alive, features)
        self._finalise_sequences(rows, now_ms, alive, features)
        return features

    def _finalise_fields(self, rows: Rows, alive: Mask | None, out: Features) -> None:
        for feature in self._fields:
            present = rows.present[feature.source]  # (n,)
            if alive is not None:
                present = present & alive
            values = rows.values[feature.source]  # (n,) or (n, L)
            if feature.capacity:
                lengths = np.where(present, rows.lengths[feature.source], 0)  # (n,)
                inside = np.arange(feature.capacity) < lengths[:, None]  # (n, L)
                values = np.where(inside, values[:, : feature.capacity], 0)
                out.lengths[feature.name] = np.minimum(lengths, feature.capacity)
            else:
                values = np.where(present, values, 0)
            out.values[feature.name] = values.astype(NUMPY[feature.dtype], copy=False)
            out.null[feature.name] = ~present

    def _finalise_windows(self, rows: Rows, now_ms: int, alive: Mask | None, out: Features) -> None:
        never = np.zeros(len(rows.entity_ids), bool)  # (n,)
        for group in self._windows:
            held = rows.present[group.head]  # (n,)
            if alive is not None:
                held = held & alive
            rings = np.stack([rows.values[f.source] for f in group.features], dtype=np.int64)
            totals = window_totals(
                rings, rows.values[group.head], held, now_ms // group.hop_ms, group.tiles
            )  # (A, n) int64
            for feature, total in zip(group.features, totals, strict=True):
                out.values[feature.name] = saturate(total, NUMPY[feature.dtype])
                out.null[feature.name] = never

    def _finalise_sequences(
        self, rows: Rows, now_ms: int, alive: Mask | None, out: Features
    ) -> None:
        never = np.zeros(len(rows.entity_ids), bool)  # (n,)
        for feature, sequence in self._sequences:
            lengths = rows.lengths[sequence.time_field]  # (n,)
            if alive is not None:
                lengths = np.where(alive, lengths, 0)
            skip, remain = visible(rows.values[sequence.time_field], lengths, now_ms)
            values = rows.values[feature.source]  # (n, K)
            if alive is not None or skip.any():
                values = shifted(values, skip, remain)
            values = values[:, : feature.capacity]  # (n, L)
            out.values[feature.name] = values.astype(NUMPY[feature.dtype], copy=False)
            out.lengths[feature.name] = np.minimum(remain, feature.capacity)
            out.null[feature.name] = never


def finalise(view: ViewPlan, rows: Rows, now_ms: int) -> Features:
    """All features of rows at now_ms. Where a view is finalised often, keep a `Finaliser`."""
    return Finaliser(view)(rows, now_ms)


def _refuse(view: ViewPlan, feature: FeaturePlan, required: str, got: str) -> PlanError:
    return PlanError(
        f"{view.name}.{feature.name}", required=required, got=got, do="run `encore apply`"
    )


def _checked_field(view: ViewPlan, feature: FeaturePlan) -> FeaturePlan:
    for field in view.fields:
        if field.name == feature.source:
            if (feature.capacity > 0) != (field.capacity > 0) or feature.capacity > field.capacity:
                required = f"a capacity within the {field.capacity} stored"
                raise _refuse(view, feature, required, str(feature.capacity))
            return feature
    raise _refuse(view, feature, "a stored field", repr(feature.source))


def _ring_of(view: ViewPlan, feature: FeaturePlan) -> AccumulatorPlan:
    for ring in view.accumulators:
        if ring.field == feature.source:
            if not 0 < feature.tiles <= ring.tiles:
                required = f"1 to {ring.tiles} tiles, as the ring holds"
                raise _refuse(view, feature, required, str(feature.tiles))
            return ring
    raise _refuse(view, feature, "an accumulator's field", repr(feature.source))


def _sequence_of(view: ViewPlan, feature: FeaturePlan) -> SequencePlan:
    for sequence in view.sequences:
        if feature.source in (*sequence.fields, sequence.time_field):
            if not 0 < feature.capacity <= sequence.capacity:
                required = f"a capacity of 1 to {sequence.capacity}"
                raise _refuse(view, feature, required, str(feature.capacity))
            return sequence
    raise _refuse(view, feature, "a sequence's field", repr(feature.source))


def _grouped_windows(view: ViewPlan, features: list[FeaturePlan]) -> tuple[_Windows, ...]:
    groups: dict[tuple[str, int, int, int], list[FeaturePlan]] = {}
    for feature in features:
        ring = _ring_of(view, feature)
        key = (ring.head, ring.hop_ms, ring.tiles, feature.tiles)
        groups.setdefault(key, []).append(feature)
    return tuple(_Windows(*key, tuple(members)) for key, members in groups.items())
