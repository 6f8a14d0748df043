"""The kinds of features over the tiles of a window, besides plain totals, and over features.

| kind | value at now | of an empty window |
|---|---|---|
| `mean` | sum / count | null |
| `std` | of the whole population | null |
| `min`, `max` | | null |
| `distinct` | exact or estimated (`aggregation.distinct`) | 0 |
| `decayed_sum` | sum over tiles of total * 2^(-age / half-life), the newest of age 0 | 0 |
| `ratio` | (a + prior * weight) / (b + weight) | null where b + weight = 0, or a or b is null |
| `last` | of the newest entry that is not after now, or its age | null |

Floats are computed tile by tile in one order, so that a value does not depend on how many rows are
finalised together. Symbols: n rows, w tiles of a window, T of a ring, W numbers a tile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from aggregation.distinct import estimate
from aggregation.features import Features, Mask, Moment, refuse
from aggregation.moments import deviation, mean
from aggregation.rings import held_tiles, window_slots
from aggregation.saturate import saturate
from aggregation.sequences import visible
from schemas.layout import NUMPY
from schemas.plan import AccumulatorPlan, FeaturePlan, RingFunction, ViewPlan
from schemas.row import Rows

Array = NDArray[Any]

TOTALS: tuple[RingFunction, ...] = ("count", "sum")


@dataclass(frozen=True, slots=True)
class Measure:
    """One feature over the tiles of rings of one hop.

    takes: the functions of its rings, in the order of the feature's sources.
    """

    takes: ClassVar[tuple[tuple[RingFunction, ...], ...]]
    feature: FeaturePlan
    rings: tuple[AccumulatorPlan, ...]

    @classmethod
    def compile(cls, view: ViewPlan, features: Sequence[FeaturePlan]) -> Iterator[Self]:
        """One step for each feature."""
        for feature in features:
            yield cls(feature, _rings_of(view, feature, cls.takes))


class OfTiles(Measure, ABC):
    """One that looks at each tile of the window. A subclass says what it makes of them."""

    __slots__ = ()

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Gathers the window's tiles, the newest first, and hands them on."""
        head = self.rings[0].head
        held = moment.living(rows.present[head])  # (n,)
        now_tile, tiles = moment.now_ms // self.rings[0].hop_ms, self.feature.tiles
        taken = []
        for ring in self.rings:
            slots = window_slots(now_tile, ring.tiles, tiles)  # (w,)
            inside = held_tiles(rows.values[head], held, now_tile, ring.tiles, tiles)  # (n, w)
            taken.append(_gathered(rows.values[ring.field], slots, inside, ring))
        values, null = self.measured(taken)
        out.values[self.feature.name] = saturate(values, NUMPY[self.feature.dtype])
        out.null[self.feature.name] = moment.never if null is None else null

    @abstractmethod
    def measured(self, tiles: list[Array]) -> tuple[Array, Mask | None]:
        """Values, (n,) int64 or float64, zero where null, and nulls, None where never.

        tiles: (n, w, W) of each ring, zeros for tiles that it does not hold.
        """


class Means(Measure):
    """`mean`, from rings of (sum, count)."""

    __slots__ = ()
    takes = (("sum",), ("count",))

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Null of no values. Whole numbers: the order in which they are summed is no matter."""
        tiles = self.feature.tiles
        total, count = (moment.total(rows, ring, tiles) for ring in self.rings)  # (n,)
        out.values[self.feature.name] = saturate(mean(count, total), NUMPY[self.feature.dtype])
        out.null[self.feature.name] = count == 0


class Deviations(OfTiles):
    """`std`, from rings of (squares, sum, count)."""

    __slots__ = ()
    takes = (("squares",), ("sum",), ("count",))

    def measured(self, tiles: list[Array]) -> tuple[Array, Mask | None]:
        """Null of no values."""
        low, high = (tiles[0][:, :, word].sum(axis=1) for word in (0, 1))  # (n,)
        total, count = (_totals(each) for each in tiles[1:])  # (n,)
        values = deviation(count, total, low, high)
        return np.where(count == 0, 0.0, values), count == 0


class Least(OfTiles):
    """`min`, from a ring of tile minima."""

    __slots__ = ()
    takes = (("min",),)

    def measured(self, tiles: list[Array]) -> tuple[Array, Mask | None]:
        """Null of no values."""
        less_one = tiles[0][:, :, 0] - np.uint64(1)  # (n, w) an empty tile is the greatest
        least = less_one.min(axis=1) + np.uint64(1)  # (n,)
        return np.maximum(least.astype(np.int64) - 1, 0), least == 0


class Greatest(OfTiles):
    """`max`, from a ring of tile maxima."""

    __slots__ = ()
    takes = (("max",),)

    def measured(self, tiles: list[Array]) -> tuple[Array, Mask | None]:
        """Null of no values."""
        greatest = tiles[0][:, :, 0].max(axis=1).astype(np.int64)  # (n,)
        return np.maximum(greatest - 1, 0), greatest == 0


class Distinct(Measure):
    """`distinct`, estimated from the smallest k hashes of each tile."""

    __slots__ = ()
    takes = (("distinct",),)

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Never null. Looks only at tiles that hold something, most of which do not."""
        feature, (ring,) = self.feature, self.rings
        state = rows.values[ring.field].reshape(len(rows), ring.tiles, ring.width)  # (n, T, W)
        inside = moment.inside(rows, ring, feature.tiles)  # (n, T)
        row, slot = np.nonzero(inside & (state[:, :, 0] > 0))
        values = estimate(state[row, slot], row, len(rows))
        out.values[feature.name] = saturate(values, NUMPY[feature.dtype])
        out.null[feature.name] = moment.never


class DecayedSums(OfTiles):
    """`decayed_sum`, from a count or a sum, each tile weighed by its age."""

    __slots__ = ()
    takes = (TOTALS,)

    def measured(self, tiles: list[Array]) -> tuple[Array, Mask | None]:
        """0 of no values."""
        weights = decay_weights(self.feature, self.rings[0].hop_ms)  # (w,)
        decayed = tiles[0][:, :, 0] * weights  # (n, w)
        return decayed.cumsum(axis=1)[:, -1], None  # a sum would take its own order


@dataclass(frozen=True, slots=True)
class Ratios:
    """A smoothed ratio of two features of the row, which are finalised before."""

    feature: FeaturePlan

    @classmethod
    def compile(cls, view: ViewPlan, features: Sequence[FeaturePlan]) -> Iterator[Self]:
        """One step for each feature."""
        known = {each.name: each for each in view.features}
        for feature in features:
            for name in feature.sources:
                of = known.get(name)
                if of is None or of.capacity or of.kind == "ratio" or len(feature.sources) != 2:
                    required = "two numbers of the view, themselves no ratios"
                    raise refuse(view, feature, required, ", ".join(feature.sources))
            yield cls(_floating(view, feature))

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Null where there is nothing to divide by."""
        feature = self.feature
        above, below = (out.values[name].astype(np.float64) for name in feature.sources)  # (n,)
        below = below + feature.weight
        zero = below == 0
        null = zero | out.null[feature.sources[0]] | out.null[feature.sources[1]]
        values = (above + feature.prior * feature.weight) / np.where(zero, 1.0, below)
        out.values[feature.name] = np.where(null, 0.0, values).astype(NUMPY[feature.dtype])
        out.null[feature.name] = null


@dataclass(frozen=True, slots=True)
class Last:
    """One column of the newest entry of a sequence; of its times, how long ago it was, ms.

    time_field: of its entries' event times.
    """

    time_field: str
    feature: FeaturePlan

    @classmethod
    def compile(cls, view: ViewPlan, features: Sequence[FeaturePlan]) -> Iterator[Self]:
        """One step for each feature."""
        for feature in features:
            for held in view.sequences:
                column = feature.source in held.fields and not held.gaps
                if column or feature.source == held.time_field:
                    yield cls(held.time_field, feature)
                    break
            else:
                required = "a column of a sequence without gaps, or its times"
                raise refuse(view, feature, required, repr(feature.source))

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Null of an empty sequence, and where the entry is too old."""
        feature, times = self.feature, rows.values[self.time_field]  # (n, K)
        skip, remain = visible(times, rows.lengths[self.time_field], moment.now_ms)
        row, place = np.arange(len(rows)), np.minimum(skip, times.shape[1] - 1)
        there = moment.living(remain > 0)  # (n,)
        age_ms = moment.now_ms - times[row, place]  # (n,)
        if feature.within_ms:
            there = there & (age_ms < feature.within_ms)
        of_time = feature.source == self.time_field
        values = age_ms if of_time else rows.values[feature.source][row, place]  # (n,)
        out.values[feature.name] = saturate(np.where(there, values, 0), NUMPY[feature.dtype])
        out.null[feature.name] = ~there


@cache
def decay_weights(feature: FeaturePlan, hop_ms: int) -> NDArray[np.float64]:
    """The weight of a tile by its age in hops, 2^(-age / half-life). Returns (w,).

    Twelve digits, so that no two machines can round a power differently.
    """
    exponents = (age * hop_ms / feature.half_life_ms for age in range(feature.tiles))
    return np.array([float(f"{0.5**exponent:.12g}") for exponent in exponents])


def _gathered(state: Array, slots: Array, inside: Mask, ring: AccumulatorPlan) -> Array:
    """The window's tiles of one ring, (n, w, W). state: (n, T * W). slots: (w,). inside: (n, w)."""
    places = slots[:, None] * ring.width + np.arange(ring.width)  # (w, W)
    taken: Array = state[:, places] * inside[:, :, None]
    return taken


def _totals(tiles: Array) -> NDArray[np.int64]:
    """The sum over a window's tiles. tiles: (n, w, 1). Returns (n,) int64."""
    total: NDArray[np.int64] = tiles[:, :, 0].sum(axis=1, dtype=np.int64)
    return total


def _rings_of(
    view: ViewPlan, feature: FeaturePlan, takes: tuple[tuple[RingFunction, ...], ...]
) -> tuple[AccumulatorPlan, ...]:
    """The feature's rings, checked. Raises PlanError."""
    known = {ring.field: ring for ring in view.accumulators}
    rings = tuple(known[name] for name in feature.sources if name in known)
    functions = tuple(ring.function for ring in rings)
    if len(rings) != len(takes) or any(
        function not in allowed for function, allowed in zip(functions, takes, strict=True)
    ):
        required = f"rings of {', '.join(' or '.join(allowed) for allowed in takes)}"
        raise refuse(view, feature, required, ", ".join(feature.sources))
    if len({(ring.head, ring.hop_ms) for ring in rings}) != 1:
        raise refuse(view, feature, "rings of one hop", ", ".join(feature.sources))
    shortest = min(ring.tiles for ring in rings)
    if not 0 < feature.tiles <= shortest:
        required = f"1 to {shortest} tiles, as the ring holds"
        raise refuse(view, feature, required, str(feature.tiles))
    if feature.kind in ("mean", "std", "decayed_sum"):
        _floating(view, feature)
    if feature.kind == "decayed_sum" and feature.half_life_ms <= 0:
        raise refuse(view, feature, "a half-life above 0 ms", str(feature.half_life_ms))
    return rings


def _floating(view: ViewPlan, feature: FeaturePlan) -> FeaturePlan:
    if feature.dtype not in ("f32", "f64"):
        raise refuse(view, feature, "f32 or f64", feature.dtype)
    return feature
