"""What finalising gives, and what each kind of feature is to it.

Symbols: n rows, L capacity of a vector feature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.plan import FeaturePlan, ViewPlan
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

    alive: (n,) bool, rows within the TTL; None where all are. never: as `Features.never`.
    """

    now_ms: int
    alive: Mask | None
    never: Mask

    def living(self, mask: Mask) -> Mask:
        """A mask of rows, (n,), without those beyond the TTL."""
        return mask if self.alive is None else mask & self.alive


class Step(Protocol):
    """Some features of one kind, computed together. Compiled once; touches no clock."""

    def __call__(self, rows: Rows, moment: Moment, out: Features) -> None:
        """Sets each of its features in `out`. Changes no row."""


def refuse(view: ViewPlan, feature: FeaturePlan, required: str, got: str) -> PlanError:
    """What to raise for a feature that the view's state cannot give."""
    return PlanError(
        f"{view.name}.{feature.name}", required=required, got=got, do="run `encore apply`"
    )
