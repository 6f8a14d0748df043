"""The kinds of features: each a small class that computes many features at once.

A new kind is a class with `compile`, which checks what the plan asks for and groups what can be
computed together, and a line in `KINDS`.

Symbols: n rows, A rings of one shape, T slots of a ring, L capacity of a vector feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from aggregation.features import Array, Features, Moment, Step, refuse
from aggregation.measures import (
    TOTALS,
    DecayedSums,
    Deviations,
    Distinct,
    Greatest,
    Last,
    Least,
    Means,
    Ratios,
)
from aggregation.rings import total_dtype, window_totals
from aggregation.saturate import saturate
from aggregation.sequences import shifted
from schemas.layout import NUMPY
from schemas.plan import (
    AccumulatorPlan,
    FeatureKind,
    FeaturePlan,
    FieldPlan,
    SequencePlan,
    ViewPlan,
)
from schemas.row import Rows

_FEW: Final = 16  # rows up to which a call costs more than what it does

Compile = Callable[[ViewPlan, Sequence[FeaturePlan]], Iterator[Step]]


@dataclass(frozen=True, slots=True)
class Scalars:
    """Stored numbers, as they are. features: (name, source, dtype) of each."""

    features: tuple[tuple[str, str, np.dtype[Any]], ...]

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Zero where null."""
        for name, source, dtype in self.features:
            values, present = rows.values[source], moment.living(rows.present[source])  # (n,) each
            out.null[name] = moment.never
            if np.count_nonzero(present) < len(rows):
                values = np.where(present, values, 0)
                out.null[name] = ~present
            out.values[name] = values.astype(dtype, copy=False)


@dataclass(frozen=True, slots=True)
class Vectors:
    """Stored vectors, cut to the feature's capacity."""

    features: tuple[FeaturePlan, ...]

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Empty where null."""
        for feature in self.features:
            present = moment.living(rows.present[feature.source])  # (n,)
            lengths = np.where(present, rows.lengths[feature.source], 0)  # (n,)
            inside = np.arange(feature.capacity) < lengths[:, None]  # (n, L)
            values = np.where(inside, rows.values[feature.source][:, : feature.capacity], 0)
            out.values[feature.name] = values.astype(NUMPY[feature.dtype], copy=False)
            out.lengths[feature.name] = np.minimum(lengths, feature.capacity)
            out.null[feature.name] = ~present


def fields(view: ViewPlan, features: Sequence[FeaturePlan]) -> Iterator[Step]:
    """Stored fields, as they are."""
    stored = {field.name: field for field in view.fields}
    for feature in features:
        _check_field(view, feature, stored.get(feature.source))
    vectors = tuple(feature for feature in features if feature.capacity)
    scalars = tuple(
        (feature.name, feature.source, NUMPY[feature.dtype])
        for feature in features
        if not feature.capacity
    )
    if scalars:
        yield Scalars(scalars)
    if vectors:
        yield Vectors(vectors)


@dataclass(frozen=True, slots=True)
class _Shape:
    """Windows of one length over rings of one shape.

    ring: one of them. parts: features by the dtype that sums their rings.
    """

    ring: AccumulatorPlan
    tiles: int
    parts: tuple[tuple[np.dtype[Any], tuple[FeaturePlan, ...]], ...]

    def totals(self, rows: Rows, moment: Moment) -> Iterator[tuple[FeaturePlan, Array]]:
        """Each feature's sum over its window, (n,) int64."""
        inside = moment.inside(rows, self.ring, self.tiles)  # (n, T)
        for dtype, features in self.parts:
            rings = np.empty((len(features), *inside.shape), dtype)  # (A, n, T)
            for place, feature in enumerate(features):
                rings[place] = rows.values[feature.source]
            yield from zip(features, window_totals(rings, inside), strict=True)


@dataclass(frozen=True, slots=True)
class Windows:
    """Sums over the tiles of a window, of a ring each.

    Of a few rows the calls cost most, so all rings are laid side by side and summed at once; of
    many the memory does, so those of one shape go together.

    features: by shape. columns: (c,) for each slot of all rings side by side its place among the
    slots of all shapes side by side. starts: (A,) where each ring begins among the c.
    """

    shapes: tuple[_Shape, ...]
    features: tuple[FeaturePlan, ...]
    columns: NDArray[np.intp]
    starts: NDArray[np.intp]

    @classmethod
    def compile(cls, view: ViewPlan, features: Sequence[FeaturePlan]) -> Iterator[Self]:
        """One step for all of them."""
        stored = {field.name: NUMPY[field.dtype] for field in view.fields}
        rings: dict[tuple[str, int, int, int], AccumulatorPlan] = {}
        groups: dict[tuple[str, int, int, int], dict[np.dtype[Any], list[FeaturePlan]]] = {}
        for feature in features:
            ring = _ring_of(view, feature)
            key = (ring.head, ring.hop_ms, ring.tiles, feature.tiles)
            rings.setdefault(key, ring)
            parts = groups.setdefault(key, {})
            parts.setdefault(total_dtype(stored[ring.field]), []).append(feature)
        if not groups:
            return
        shapes, ordered, columns, first = [], [], [], 0
        for key, parts in groups.items():
            grouped = tuple((dtype, tuple(members)) for dtype, members in parts.items())
            shapes.append(_Shape(rings[key], key[-1], grouped))
            slots = np.arange(first, first + rings[key].tiles)
            for members in parts.values():
                ordered += members
                columns += [slots] * len(members)
            first += rings[key].tiles
        starts = np.cumsum([0, *map(len, columns)])[:-1]
        yield cls(tuple(shapes), tuple(ordered), np.concatenate(columns), starts)

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Never null: an empty row counts 0."""
        if len(rows) > _FEW:
            for shape in self.shapes:
                for feature, total in shape.totals(rows, moment):
                    self._put(feature, total, moment, out)
            return
        each = [moment.inside(rows, shape.ring, shape.tiles) for shape in self.shapes]
        inside = np.concatenate(each, axis=1).take(self.columns, axis=1)  # (n, c)
        rings = [rows.values[feature.source] for feature in self.features]
        state = np.concatenate(rings, axis=1, dtype=np.int64)  # (n, c)
        state *= inside
        totals = np.add.reduceat(state, self.starts, axis=1)  # (n, A)
        for feature, total in zip(self.features, totals.T, strict=True):
            self._put(feature, total, moment, out)

    @staticmethod
    def _put(feature: FeaturePlan, total: Array, moment: Moment, out: Features) -> None:
        out.values[feature.name] = saturate(total, NUMPY[feature.dtype])
        out.null[feature.name] = moment.never
        moment.known[feature.source, feature.tiles] = total


@dataclass(frozen=True, slots=True)
class Sequences:
    """Columns of one sequence. time_field: of its entries' event times."""

    time_field: str
    features: tuple[FeaturePlan, ...]

    @classmethod
    def compile(cls, view: ViewPlan, features: Sequence[FeaturePlan]) -> Iterator[Self]:
        """One step for each sequence."""
        groups: dict[str, list[FeaturePlan]] = {}
        for feature in features:
            groups.setdefault(_sequence_of(view, feature).time_field, []).append(feature)
        for time_field, members in groups.items():
            yield cls(time_field, tuple(members))

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Never null: an empty row has an empty sequence."""
        skip, remain, cut = moment.visible(rows, self.time_field)
        for feature in self.features:
            values = rows.values[feature.source]  # (n, K)
            if cut:
                values = shifted(values, skip, remain)
            _put_listed(feature, values, remain, moment, out)


class Ages(Sequences):
    """How long ago each entry of one sequence was, ms: what a raw time is to a model."""

    __slots__ = ()

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """At least 0, since entries after now are left out. Never null."""
        skip, remain, cut = moment.visible(rows, self.time_field)
        times = rows.values[self.time_field]  # (n, K)
        if cut:
            times = shifted(times, skip, remain)
        ages = moment.now_ms - times  # (n, K)
        ages *= np.arange(times.shape[1]) < remain[:, None]
        for feature in self.features:
            values = saturate(ages, NUMPY[feature.dtype])  # (n, K)
            _put_listed(feature, values, remain, moment, out)


def _put_listed(
    feature: FeaturePlan, values: Array, remain: Array, moment: Moment, out: Features
) -> None:
    """A column of a sequence. values: (n, K). remain: (n,) entries that are there."""
    cut = feature.capacity < values.shape[1]
    values = values[:, : feature.capacity] if cut else values  # (n, L)
    out.values[feature.name] = values.astype(NUMPY[feature.dtype], copy=False)
    out.lengths[feature.name] = np.minimum(remain, feature.capacity) if cut else remain
    out.null[feature.name] = moment.never


#: How the features of each kind are compiled, in the order they are computed: ratios are of others.
KINDS: Final[dict[FeatureKind, Compile]] = {
    "field": fields,
    "window": Windows.compile,
    "sequence": Sequences.compile,
    "age": Ages.compile,
    "last": Last.compile,
    "mean": Means.compile,
    "std": Deviations.compile,
    "min": Least.compile,
    "max": Greatest.compile,
    "distinct": Distinct.compile,
    "decayed_sum": DecayedSums.compile,
    "ratio": Ratios.compile,
}


def _check_field(view: ViewPlan, feature: FeaturePlan, field: FieldPlan | None) -> None:
    if field is None:
        raise refuse(view, feature, "a stored field", repr(feature.source))
    if (feature.capacity > 0) != (field.capacity > 0) or feature.capacity > field.capacity:
        required = f"a capacity within the {field.capacity} stored"
        raise refuse(view, feature, required, str(feature.capacity))


def _ring_of(view: ViewPlan, feature: FeaturePlan) -> AccumulatorPlan:
    for ring in view.accumulators:
        if ring.field == feature.source and ring.function in TOTALS:
            if not 0 < feature.tiles <= ring.tiles:
                required = f"1 to {ring.tiles} tiles, as the ring holds"
                raise refuse(view, feature, required, str(feature.tiles))
            return ring
    raise refuse(view, feature, "the ring of a count or sum", repr(feature.source))


def _sequence_of(view: ViewPlan, feature: FeaturePlan) -> SequencePlan:
    for sequence in view.sequences:
        if feature.source in (*sequence.fields, sequence.time_field):
            if not 0 < feature.capacity <= sequence.capacity:
                required = f"a capacity of 1 to {sequence.capacity}"
                raise refuse(view, feature, required, str(feature.capacity))
            return sequence
    raise refuse(view, feature, "a sequence's field", repr(feature.source))
