"""Crosses: one value from two features, by a closed table of operators.

| operator | of | takes | formula | gives | where there is nothing |
|---|---|---|---|---|---|
| `contains(s, x)` | sequence, scalar | ids | some s[i] = x, i < length | bool | length 0: False |
| `share(s, x)` | sequence, scalar | ids | how many s[i] = x / length | f64 | length 0: 0 |
| `position(s, x)` | sequence, scalar | ids | the least i with s[i] = x | i64 | no such i: -1 |
| `equals(a, b)` | scalars | ids, or two bools | a = b | bool | |
| `difference(a, b)` | scalars | numbers | a - b | f64 | |
| `ratio(a, b)` | scalars | numbers | (a + p * w) / (b + w) | f64 | b + w = 0: missing |
| `dot(u, v)` | vectors | numbers | sum of u[i] * v[i], 0 behind a length | f64 | a length 0: 0 |

A missing operand (null, NaN, a sentinel of the feature's transform) makes the result missing, and a
NaN result is missing: id 0. An empty sequence is no missing one.

Ids are integers, compared as they are; numbers are integers or floats, computed in f64. A ratio's p
is its prior, w the prior's weight.

Values are a pure function of logged values. Symbols: n results, L capacity of a sequence or vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from schemas.plan import CrossOperator, CrossPlan, Dtype, FeaturePlan

Array = NDArray[Any]
Mask = NDArray[np.bool_]
Result = tuple[Array, Mask | None]

Shape = Literal["scalar", "sequence", "vector"]
INTEGERS: Final = frozenset(("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"))
NUMBERS: Final = INTEGERS | {"f32", "f64"}


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand of n results, or of one row that all results share.

    values: (n,) or (1,) of a scalar, (n, L) or (1, L) of a sequence or vector, zero behind a
    length. lengths: (n,) or (1,), None of a scalar. null: (n,) or (1,) bool.
    """

    values: Array
    lengths: Array | None
    null: Mask

    def take(self, rows: Array) -> Operand:
        """The operand of other results: row rows[i] for result i."""
        lengths = None if self.lengths is None else self.lengths[rows]
        return Operand(self.values[rows], lengths, self.null[rows])


class Pair:
    """Two operands, and what several operators need of them. null: where either is missing, (n,) or
    (1,) bool."""

    __slots__ = ("_matches", "left", "null", "right")

    def __init__(self, left: Operand, right: Operand) -> None:
        self.left, self.right = left, right
        self.null = left.null | right.null
        self._matches: tuple[Array, Array] | None = None

    @property
    def matches(self) -> tuple[Array, Array]:
        """How often the scalar on the right is in the sequence on the left, and where first, -1 for
        nowhere. (n,) or (1,) int64 each."""
        if self._matches is None:
            self._matches = _matches(self.left, self.right)
        return self._matches


def _matches(left: Operand, right: Operand) -> tuple[Array, Array]:
    sequence, lengths = left.values.astype(np.int64, copy=False), left.lengths
    assert lengths is not None
    wanted = right.values.astype(np.int64, copy=False)
    if len(sequence) == 1 and len(wanted) > 1:
        return _found(sequence[0, : int(lengths[0])], wanted)
    return _matched(sequence, lengths, wanted)


def _found(entries: Array, wanted: Array) -> tuple[Array, Array]:
    """One sequence for all results. entries: (l,). wanted: (n,)."""
    counts, first = np.zeros(len(wanted), np.int64), np.full(len(wanted), -1, np.int64)
    if len(entries) == 0:
        return counts, first
    order = entries.argsort(kind="stable")  # (l,) of equal entries the newest comes first
    known = entries[order]
    place = known.searchsorted(wanted)  # (n,)
    hits = np.flatnonzero(known.take(place, mode="clip") == wanted)
    counts[hits] = known.searchsorted(wanted[hits], side="right") - place[hits]
    first[hits] = order[place[hits]]
    return counts, first


def _matched(sequence: Array, lengths: Array, wanted: Array) -> tuple[Array, Array]:
    """A sequence a result. sequence: (n, L) or (1, L). lengths, wanted: (n,) or (1,)."""
    inside = np.arange(sequence.shape[1]) < lengths[:, None]
    equal = (sequence == wanted[:, None]) & inside  # (n, L)
    counts = np.count_nonzero(equal, axis=1)
    return counts, np.where(counts > 0, equal.argmax(axis=1), -1)


# --- the operators --------------------------------------------------------------------------
# Floats are computed in silence: an overflow is an infinity, which has its bucket.


def _contains(pair: Pair, cross: CrossPlan) -> Result:
    return pair.matches[0] > 0, None


def _share(pair: Pair, cross: CrossPlan) -> Result:
    lengths = pair.left.lengths
    assert lengths is not None
    return pair.matches[0] / np.maximum(lengths, 1), None


def _position(pair: Pair, cross: CrossPlan) -> Result:
    return pair.matches[1], None


def _equals(pair: Pair, cross: CrossPlan) -> Result:
    left, right = (each.values.astype(np.int64, copy=False) for each in (pair.left, pair.right))
    return left == right, None


@np.errstate(all="ignore")
def _difference(pair: Pair, cross: CrossPlan) -> Result:
    return pair.left.values.astype(np.float64) - pair.right.values.astype(np.float64), None


def _ratio(pair: Pair, cross: CrossPlan) -> Result:
    left, right = (each.values.astype(np.float64) for each in (pair.left, pair.right))
    return ratios(left, right, cross.prior * cross.weight, cross.weight)


@np.errstate(all="ignore")
def ratios(
    left: Array, right: Array, above: float | Array, weight: float | Array
) -> tuple[Array, Mask]:
    """Ratios and where there are none. left, right: (n,) or, of k crosses, (k, n) f64. above, the
    prior times its weight, and weight: of one cross, or (k, 1)."""
    below = right + weight
    zero = below == 0
    return (left + above) / np.where(zero, 1.0, below), zero


@np.errstate(all="ignore")
def _dot(pair: Pair, cross: CrossPlan) -> Result:
    left, right = (each.values.astype(np.float64) for each in (pair.left, pair.right))
    return (left * right).sum(axis=1), None  # rows sum alike, whatever n is


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    shapes, dtypes: what both operands are. result: dtype of the value, which the transform takes.
    compute: (pair, cross) → values and where they are missing for a reason of their own, (n,) or
    (1,) each.
    """

    shapes: tuple[Shape, Shape]
    dtypes: frozenset[str]
    result: Dtype
    compute: Callable[[Pair, CrossPlan], Result]


_IN_SEQUENCE: Final[tuple[Shape, Shape]] = ("sequence", "scalar")
_SCALARS: Final[tuple[Shape, Shape]] = ("scalar", "scalar")

OPERATORS: Final[dict[CrossOperator, Operator]] = {
    "contains": Operator(_IN_SEQUENCE, INTEGERS, "bool", _contains),
    "share": Operator(_IN_SEQUENCE, INTEGERS, "f64", _share),
    "position": Operator(_IN_SEQUENCE, INTEGERS, "i64", _position),
    "equals": Operator(_SCALARS, INTEGERS | {"bool"}, "bool", _equals),
    "difference": Operator(_SCALARS, NUMBERS, "f64", _difference),
    "ratio": Operator(_SCALARS, NUMBERS, "f64", _ratio),
    "dot": Operator(("vector", "vector"), NUMBERS, "f64", _dot),
}


def evaluate(pair: Pair, cross: CrossPlan) -> tuple[Array, Mask]:
    """A cross's values and where they are missing, (n,) or (1,) each."""
    values, missing = OPERATORS[cross.operator].compute(pair, cross)
    null = pair.null if missing is None else pair.null | missing
    return values, null


@dataclass(frozen=True)
class Misfit:
    """Why an operator cannot take two features."""

    required: str
    got: str


def misfit(operator: CrossOperator, left: FeaturePlan, right: FeaturePlan) -> Misfit | None:
    """None where the operator takes these two features."""
    row = OPERATORS[operator]
    for shape, feature in zip(row.shapes, (left, right), strict=True):
        if (shape == "scalar") == (feature.capacity > 0):
            is_a = f"a vector of {feature.capacity}" if feature.capacity else "a scalar"
            return Misfit(f"({', '.join(row.shapes)})", f"{feature.name}, {is_a}")
    for feature in (left, right):
        if feature.dtype not in row.dtypes:
            kinds = "numbers" if row.dtypes is NUMBERS else "ids: integers"
            return Misfit(kinds, f"{feature.name} of {feature.dtype}")
    if operator == "equals" and (left.dtype == "bool") != (right.dtype == "bool"):
        return Misfit("operands of one kind", f"{left.dtype} and {right.dtype}")
    if operator == "dot" and left.capacity != right.capacity:
        return Misfit("vectors of one capacity", f"{left.capacity} and {right.capacity}")
    return None
