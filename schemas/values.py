"""Value blocks: the finalised features of one side of a service, before ID-ization.

A block is a packed, little-endian numpy structured array of one record an entity: (1,) for the
user side of a request, (N,) for its candidates. Serving computes tensors from blocks, the rank log
stores their bytes, and training reads them back, so a tensor is rebuilt bit for bit. A record is

    view__feature        the value; a vector feature has shape (L,), zero behind its length
    view__feature__len   u2, only behind a vector feature: how many elements are there
    …                    one feature after the other, in the order the slots first use them, then
                         those that only crosses read
    __null               u1[ceil(k / 8)]: feature i of the k is null where bit i % 8 (the lowest
                         is 0) of byte i // 8 is set

A null value is zero (and its length 0), so equal features have equal bytes.

Symbols: n records, k features, L capacity of a vector feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError, RecordError
from schemas.layout import NUMPY
from schemas.plan import (
    FeaturePlan,
    OperandPlan,
    Plan,
    Scope,
    SequenceSlotPlan,
    ServicePlan,
    Side,
    SlotPlan,
    ViewPlan,
)

NULL_FIELD: Final = "__null"
LENGTH_SUFFIX: Final = "__len"
MAX_LENGTH: Final = 65_535

#: The sides whose values a cross of each scope reads.
SIDES_OF: Final[dict[Scope, set[Side]]] = {
    "user": {"user"},
    "item": {"item"},
    "pair": {"user", "item"},
}

Array = NDArray[Any]
Block = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class ValueFeature:
    """One feature of a block. name: its field in the block, `view__feature`."""

    name: str
    view: ViewPlan
    feature: FeaturePlan


@dataclass(frozen=True, slots=True)
class ValueColumn:
    """One feature over n records.

    values: (n,), or (n, L) for a vector feature. lengths: (n,) u2 for a vector feature, else None.
    null: (n,) bool.
    """

    values: Array
    lengths: Array | None
    null: NDArray[np.bool_]


def value_name(view: str, feature: str) -> str:
    """A feature's name in blocks and in the columns of the rank log.

    >>> value_name("user_activity", "clicks_1h")
    'user_activity__clicks_1h'
    """
    return f"{view}__{feature}"


def value_features(plan: Plan, service: ServicePlan, side: Side) -> tuple[ValueFeature, ...]:
    """The features of one side, each once, in the order the slots first use them; behind them those
    that only crosses read.

    Raises PlanError for a slot that names an unknown view or feature, or a view of the other side,
    and for a cross whose operands do.
    """
    slots = service.item_slots if side == "item" else service.user_slots + service.sequences
    found: dict[str, ValueFeature] = {}
    for slot in slots:
        where = f"{service.name}.{slot.name}"
        used = _value_feature(plan, where, slot)
        if used.view.entity != side:
            required = f"a feature of a view keyed by {side}"
            got = f"{slot.view}, keyed by {used.view.entity}"
            raise PlanError(where, required=required, got=got)
        found.setdefault(used.name, used)
    for cross in service.crosses:
        where = f"{service.name}.{cross.name}"
        operands = [_value_feature(plan, where, operand) for operand in cross.operands]
        sides = {used.view.entity for used in operands}
        if sides != SIDES_OF[cross.scope]:
            required = f"operands keyed by {' and '.join(sorted(SIDES_OF[cross.scope]))}"
            raise PlanError(where, required=required, got=" and ".join(sorted(sides)))
        for used in operands:
            if used.view.entity == side:
                found.setdefault(used.name, used)
    return tuple(found.values())


def _value_feature(
    plan: Plan, where: str, slot: SlotPlan | SequenceSlotPlan | OperandPlan
) -> ValueFeature:
    view = plan.view(slot.view)
    try:
        feature = view.feature(slot.feature)
    except KeyError:
        known = ", ".join(feature.name for feature in view.features)
        got = f"{slot.view}.{slot.feature}"
        raise PlanError(where, required=f"one of {known}", got=got) from None
    return ValueFeature(value_name(view.name, feature.name), view, feature)


def value_dtype(plan: Plan, service: ServicePlan, side: Side) -> np.dtype[np.void]:
    """The structured dtype of a side's blocks. Raises PlanError."""
    features = value_features(plan, service, side)
    fields: list[tuple[str, Any, tuple[int, ...]]] = []
    for each in features:
        dtype, capacity = NUMPY[each.feature.dtype], each.feature.capacity
        if capacity > MAX_LENGTH:
            required = f"a capacity of at most {MAX_LENGTH}"
            raise PlanError(f"{service.name}.{each.name}", required=required, got=str(capacity))
        fields.append((each.name, dtype, (capacity,) if capacity else ()))
        if capacity:
            fields.append((each.name + LENGTH_SUFFIX, "<u2", ()))
    fields.append((NULL_FIELD, "u1", (-(-len(features) // 8),)))
    names = [name for name, _, _ in fields]
    for name in names:
        if names.count(name) > 1:
            raise PlanError(
                f"{service.name}.{name}",
                required="a name of its own",
                got="two features of that name",
                do=f"rename the one that ends in {LENGTH_SUFFIX}",
            )
    return np.dtype(fields)


def value_names(dtype: np.dtype[np.void]) -> tuple[str, ...]:
    """The k feature names of a block's dtype, in the order of the null bitmap."""
    names = dtype.names or ()
    vectors = {name for name in names if dtype[name].shape and name != NULL_FIELD}
    lengths = {name + LENGTH_SUFFIX for name in vectors}
    return tuple(name for name in names if name != NULL_FIELD and name not in lengths)


def null_mask(block: Block) -> NDArray[np.bool_]:
    """The null bitmap unpacked. Returns (n, k) bool."""
    count = len(value_names(block.dtype))
    bits = np.unpackbits(block[NULL_FIELD], axis=1, count=count, bitorder="little")
    return bits.view(np.bool_)  # (n, k)


def pack_nulls(null: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The inverse: (n, k) bool → (n, ceil(k / 8)) u1 for the field `__null`."""
    return np.packbits(null, axis=1, bitorder="little")


def to_columns(block: Block) -> dict[str, ValueColumn]:
    """A block as columns, in the block's order: views of its memory, except the nulls."""
    null = null_mask(block)  # (n, k)
    names = block.dtype.names or ()
    return {
        name: ValueColumn(
            block[name],
            block[name + LENGTH_SUFFIX] if name + LENGTH_SUFFIX in names else None,
            null[:, index],
        )
        for index, name in enumerate(value_names(block.dtype))
    }


def from_columns(dtype: np.dtype[np.void], columns: Mapping[str, ValueColumn], n: int) -> Block:
    """Columns → a block of n records; what is null or behind a length becomes zero.

    Raises RecordError for a missing column, a wrong shape, or a length beyond the capacity.
    """
    block = np.zeros(n, dtype)
    names = value_names(dtype)
    null = np.zeros((n, len(names)), bool)  # (n, k)
    for index, name in enumerate(names):
        column = columns.get(name)
        shape = (n, *dtype[name].shape)
        if column is None or column.values.shape != shape:
            got = "no such column" if column is None else f"shape {column.values.shape}"
            raise RecordError(name, required=f"a column of shape {shape}", got=got)
        null[:, index] = column.null
        if len(shape) == 1:
            np.copyto(block[name], column.values, where=~column.null, casting="unsafe")
            continue
        lengths = _lengths(name, column, shape[1])  # (n,)
        block[name + LENGTH_SUFFIX] = lengths
        filled = np.arange(shape[1]) < lengths[:, None]  # (n, L)
        np.copyto(block[name], column.values, where=filled, casting="unsafe")
    block[NULL_FIELD] = pack_nulls(null)
    return block


def _lengths(name: str, column: ValueColumn, capacity: int) -> Array:
    """A vector column's lengths with 0 where null. Returns (n,)."""
    if column.lengths is None:
        raise RecordError(name, required="lengths beside a vector's values", got="none")
    lengths = np.where(column.null, 0, column.lengths)  # (n,)
    if ((lengths < 0) | (lengths > capacity)).any():
        got = str(int(lengths.max()) if (lengths > capacity).any() else int(lengths.min()))
        raise RecordError(name, required=f"a length within [0, {capacity}]", got=got)
    return lengths
