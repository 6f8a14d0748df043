"""The ID transforms, compiled: many columns of values → ids in a few array operations.

`schemas.ids.to_ids` is the definition; a kernel gives the same ids for values that are there, and
anything for those that are missing, which the caller sets to 0. Where the answers of a transform of
integers fit a table, the id is one look-up; of the rest, all columns of `identity` and `stored` go
together, and so do all hashes.

Symbols: g columns, n values of each. Values are (g, n), or any shape for one column.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.ids import FIRST_ID, OUT_OF_RANGE, flipped_hash64, seed_flip, vocabulary
from schemas.plan import TransformPlan

Array = NDArray[Any]
Ids = NDArray[np.int32]

INT: Final = np.dtype(np.int64)
FLOAT: Final = np.dtype(np.float64)
_ONE: Final = np.uint64(1)
_TABLE_MOST: Final = 1 << 16  # entries: 256 kB


class Kernel(Protocol):
    """Values → ids."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the values it takes, INT or FLOAT."""

    def __call__(self, values: Array) -> Ids:
        """int32 ids of the values' shape."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """`identity` and `stored`: value + first within [0, limit). Both (g, 1)."""

    limit: NDArray[np.uint64]
    first: NDArray[np.int64]
    dtype: np.dtype[Any] = INT

    def __call__(self, values: Array) -> Ids:
        """int32 ids of the values' shape."""
        inside = values.view(np.uint64) < self.limit  # below 0 is huge
        ids = (values + self.first).astype(np.int32)
        np.copyto(ids, OUT_OF_RANGE, where=~inside)
        return ids


@dataclass(frozen=True, slots=True)
class Hashes:
    """`hash`. flip, buckets: (g, 1). binary: whether all buckets are powers of two, of which the
    remainder needs no division."""

    flip: NDArray[np.uint64]
    buckets: NDArray[np.uint64]
    binary: bool
    dtype: np.dtype[Any] = INT

    def __call__(self, values: Array) -> Ids:
        """int32 ids of the values' shape."""
        hashed = flipped_hash64(values, self.flip)
        if self.binary:
            hashed &= self.buckets - _ONE
        else:
            hashed %= self.buckets
        ids = hashed.astype(np.int32)
        ids += FIRST_ID
        return ids


@dataclass(frozen=True, slots=True)
class Table:
    """`boundaries` of integers: what lies before or behind the table has its first or last id."""

    ids: Ids
    dtype: np.dtype[Any] = INT

    def __call__(self, values: Array) -> Ids:
        """int32 ids of the values' shape."""
        return self.ids.take(values, mode="clip")


@dataclass(frozen=True, slots=True)
class Boundaries:
    """`boundaries` of floats, and of integers that no table holds."""

    boundaries: NDArray[np.float64]
    dtype: np.dtype[Any] = FLOAT

    def __call__(self, values: Array) -> Ids:
        """int32 ids of the values' shape."""
        return self.boundaries.searchsorted(values, side="right").astype(np.int32) + FIRST_ID


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`vocab`. known: (v,) ascending, v > 0; ids: (v,) of each."""

    known: NDArray[np.int64]
    ids: Ids
    dtype: np.dtype[Any] = INT

    def __call__(self, values: Array) -> Ids:
        """int32 ids of the values' shape."""
        place = np.minimum(self.known.searchsorted(values), len(self.known) - 1)
        return np.where(self.known[place] == values, self.ids[place], OUT_OF_RANGE)


def together(transform: TransformPlan, dtype: np.dtype[Any]) -> Hashable:
    """Columns of an equal key can share a kernel. dtype: of the column's values."""
    if transform.kind in ("identity", "stored"):
        return "range"
    if transform.kind == "hash":
        return "hash"
    if transform.kind == "vocab":
        return transform.values
    return transform.boundaries, _fits_table(transform, dtype)


def kernel(transforms: Sequence[TransformPlan], dtype: np.dtype[Any]) -> Kernel:
    """For g columns of one `together` key. dtype: of the first column's values."""
    one = transforms[0]
    if one.kind in ("identity", "stored"):
        limits = [each.buckets if each.kind == "identity" else each.size for each in transforms]
        firsts = [FIRST_ID if each.kind == "identity" else 0 for each in transforms]
        return Ranges(_column(limits, np.uint64), _column(firsts, np.int64))
    if one.kind == "hash":
        flips = [seed_flip(each.seed) for each in transforms]
        buckets = [each.buckets for each in transforms]
        binary = all(each & (each - 1) == 0 for each in buckets)
        return Hashes(_column(flips, np.uint64), _column(buckets, np.uint64), binary)
    if one.kind == "vocab":
        known, position = vocabulary(one.values)
        if len(known) == 0:
            return Table(np.full(1, OUT_OF_RANGE, np.int32))
        return Vocabulary(known, (position + FIRST_ID).astype(np.int32))
    search = Boundaries(np.asarray(one.boundaries, np.float64))
    if not _fits_table(one, dtype):
        return search
    highest = int(np.ceil(one.boundaries[-1]))
    return Table(search(np.arange(highest + 1, dtype=np.float64)))


def _fits_table(transform: TransformPlan, dtype: np.dtype[Any]) -> bool:
    """Whether the ids of 0 up to the last boundary are those of all int64, each clipped to them."""
    limits = transform.boundaries
    whole = dtype.kind in "bi" or (dtype.kind == "u" and dtype.itemsize < 8)
    return whole and len(limits) > 0 and limits[0] > 0 and limits[-1] < _TABLE_MOST


def _column(values: Sequence[Any], dtype: type[np.generic]) -> Array:
    return np.array(values, dtype)[:, None]  # (g, 1)
