"""The structures that the kernels read, as ctypes lays them out, and how a plan's become them.

Each class is one of columns.h, crosses.h or tensors.c, field by field. A structure points into
arrays: `Pool` keeps them alive as long as the program that holds it.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from aggregation.kernels import Boundaries, Hashes, Ranges, Table, Vocabulary, kernel
from aggregation.native.library import address
from schemas.plan import CrossOperator, Side, TransformPlan
from schemas.values import LENGTH_SUFFIX, value_names

DTYPES: Final = ("|b1", "|i1", "<i2", "<i4", "<i8", "|u1", "<u2", "<u4", "<u8", "<f4", "<f8")
OPERATORS: Final[tuple[CrossOperator, ...]] = (
    *("contains", "share", "position", "equals", "difference", "ratio", "dot"),
)
_SIDES: Final[tuple[Side, ...]] = ("user", "item")
_RANGE, _HASH, _TABLE, _SEARCH, _VOCABULARY = range(5)

_I64, _U64, _F64, _AT = ctypes.c_int64, ctypes.c_uint64, ctypes.c_double, ctypes.c_void_p


class Sentinels(ctypes.Structure):
    """Values that mean missing."""

    _fields_ = (("values", _AT), ("count", _I64))


class Field(ctypes.Structure):
    """A feature of a block's record."""

    _fields_ = (
        *((name, _I64) for name in ("offset", "length", "capacity", "null", "side", "dtype")),
        ("sentinels", Sentinels),
    )


class Transform(ctypes.Structure):
    """How a value becomes an id."""

    _fields_ = (
        *(("kind", _I64), ("limit", _U64), ("first", _U64), ("count", _I64)),
        *(("bounds", _AT), ("known", _AT), ("ids", _AT), ("sentinels", Sentinels)),
    )


class Slot(ctypes.Structure):
    """A column of a tensor."""

    _fields_ = (
        *(("column", _I64), ("operator", _I64), ("floating", _I64), ("again", _I64)),
        *(("left", Field), ("right", Field), ("above", _F64), ("weight", _F64)),
        ("transform", Transform),
    )


class SequenceSlot(ctypes.Structure):
    """A sequence of the user."""

    _fields_ = (("width", _I64), ("field", Field), ("transform", Transform))


class Program(ctypes.Structure):
    """One service."""

    _fields_ = (
        *((name, _AT) for name in ("user_slots", "item_slots", "sequences")),
        *((name, _I64) for name in ("user_width", "item_width", "own_width", "n_sequences")),
        *((name, _I64) for name in ("user_nulls", "item_nulls")),
    )


#: `struct blocks`, what one call computes: the users' and items' first records and the bytes from
#: one to the next, how many of each, user_of, known ids and their stride.
BLOCKS: Final = struct.Struct("=9q")
STRUCTURES: Final = (Slot, SequenceSlot, Program)


class Pool:
    """Makes the structures of one service. dtypes: of the sides' blocks."""

    def __init__(self, dtypes: Mapping[Side, np.dtype[np.void]]) -> None:
        self._dtypes = dtypes
        self._kept: list[Any] = []

    def place(self, values: ArrayLike, dtype: type[np.generic]) -> int:
        """The address of an array of these values; 0 for none."""
        array = np.array(values, dtype)
        if len(array) == 0:
            return 0
        self._kept.append(array)
        return address(array)

    def structures(self, made: Sequence[ctypes.Structure], of: type[ctypes.Structure]) -> int:
        """The address of these structures, one after the other; 0 for none."""
        if not made:
            return 0
        array = (of * len(made))(*made)
        self._kept.append(array)
        return ctypes.addressof(array)

    def sentinels(self, values: tuple[float, ...], dtype: np.dtype[Any]) -> Sentinels:
        """As they are held against values of a dtype: float32 ones are rounded to it."""
        if dtype == np.float32:
            with np.errstate(over="ignore"):
                values = tuple(float(np.float32(each)) for each in values)
        return Sentinels(self.place(values, np.float64), len(values))

    def field(self, side: Side, name: str, sentinels: tuple[float, ...]) -> Field:
        """A feature, by its name in the side's block."""
        block = self._dtypes[side]
        fields: Any = block.fields
        form, offset = fields[name][:2]
        capacity = form.shape[0] if form.shape else 0
        length = fields[name + LENGTH_SUFFIX][1] if capacity else 0
        null = value_names(block).index(name)
        number = DTYPES.index(form.base.str)
        held = self.sentinels(sentinels, form.base)
        return Field(offset, length, capacity, null, _SIDES.index(side), number, held)

    def transform(self, plan: TransformPlan, dtype: np.dtype[Any]) -> Transform:
        """dtype: of the values."""
        held = self.sentinels(plan.sentinels, dtype)
        made = kernel([plan], dtype)
        if isinstance(made, Ranges):
            limit, first = int(made.limit[0, 0]), int(made.first[0, 0])
            return Transform(_RANGE, limit, first, sentinels=held)
        if isinstance(made, Hashes):
            limit, first = int(made.buckets[0, 0]), int(made.flip[0, 0])
            return Transform(_HASH, limit, first, sentinels=held)
        if isinstance(made, Boundaries):
            bounds = self.place(made.boundaries, np.float64)
            return Transform(_SEARCH, count=len(made.boundaries), bounds=bounds, sentinels=held)
        assert isinstance(made, Table | Vocabulary)
        ids, count = self.place(made.ids, np.int32), len(made.ids)
        if isinstance(made, Table):
            return Transform(_TABLE, count=count, ids=ids, sentinels=held)
        known = self.place(made.known, np.int64)
        return Transform(_VOCABULARY, count=count, known=known, ids=ids, sentinels=held)
