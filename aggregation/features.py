"""What finalising gives, and what each kind of feature is to it.

Symbols: n rows, L capacity of a vector feature.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from aggregation.rings import inside_window, total_dtype, window_totals
from aggregation.sequences import visible
from schemas.errors import PlanError
from schemas.plan import AccumulatorPlan, FeaturePlan, ViewPlan
from schemas.row import Rows

Array = NDArray[Any]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Features:
    """Features of n rows. Arrays may be views of the rows' memory.

    expired: (n,) bool, rows beyond the TTL, finalised as empty ones. never: (n,) bool, all False:
    the nulls of a feature that is always there; shared, so not to be written to. values: feature ->
    (n,), or (n, L) for a vector, of the feature's dtype; zero where null and behind a length.
    lengths: vector feature -> (n,) int64. null: feature -> (n,) bool.
    """

    expired: Mask
    never: Mask
    values: dict[str, Array] = field(default_factory=dict)
    lengths: dict[str, Array] = field(default_factory=dict)
    null: dict[str, Mask] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Moment:
    """When n rows are looked at.

    alive: (n,) bool, rows within the TTL; None where all are. never: as `Features.never`. known:
    what several kinds ask of the same rows, computed once.
    """

    now_ms: int
    alive: Mask | None
    never: Mask
    known: dict[Hashable, Any] = field(default_factory=dict)

    def living(self, mask: Mask) -> Mask:
        """A mask of rows, (n,), without those beyond the TTL."""
        return mask if self.alive is None else mask & self.alive

    def inside(self, rows: Rows, ring: AccumulatorPlan, tiles: int) -> Array:
        """Which slots of a ring hold one of the newest w tiles. tiles: w. (n, T) bool, shared."""
        key = ring.head, ring.hop_ms, ring.tiles, tiles
        found: Array | None = self.known.get(key)
        if found is None:
            held = self.living(rows.present[ring.head])  # (n,)
            now_tile = self.now_ms // ring.hop_ms
            found = inside_window(rows.values[ring.head], held, now_tile, ring.tiles, tiles)
            self.known[key] = found
        return found

    def total(self, rows: Rows, ring: AccumulatorPlan, tiles: int) -> Array:
        """The sum over the newest w tiles of the ring of a count or sum. tiles: w. (n,) int64."""
        found: Array | None = self.known.get((ring.field, tiles))
        if found is None:
            state = rows.values[ring.field]  # (n, T)
            wide = state.astype(total_dtype(state.dtype), copy=False)
            found = window_totals(wide[None], self.inside(rows, ring, tiles))[0]
            self.known[ring.field, tiles] = found
        return found

    def visible(self, rows: Rows, time_field: str) -> tuple[Array, Array, bool]:
        """Which entries of a sequence a reader sees: how many to skip, how many remain, (n,) int64
        each, and whether any row is not to be taken as it lies. time_field: of its times."""
        found: tuple[Array, Array, bool] | None = self.known.get(time_field)
        if found is None:
            lengths = rows.lengths[time_field]  # (n,)
            if self.alive is not None:
                lengths = np.where(self.alive, lengths, 0)
            skip, remain = visible(rows.values[time_field], lengths, self.now_ms)
            cut = self.alive is not None or bool(np.count_nonzero(skip))
            found = self.known[time_field] = skip, remain, cut
        return found


class Step(Protocol):
    """Some features of one kind, computed together. Compiled once; touches no clock."""

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Sets each of its features in `out`. Changes no row."""


def refuse(view: ViewPlan, feature: FeaturePlan, required: str, got: str) -> PlanError:
    """What to raise for a feature that the view's state cannot give."""
    return PlanError(
        f"{view.name}.{feature.name}", required=required, got=got, do="run `encore apply`"
    )
