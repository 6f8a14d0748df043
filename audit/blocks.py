"""Logged columns → value blocks: the way back from the rank log to what the models saw.

The sink writes each feature of a value block as a typed, nullable Parquet column `view__feature`, a
vector as a list of its true length. Nothing is rounded on the way, so `block_of` gives the block
back bit for bit.

Symbols: n records, L capacity of a vector feature.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.values import (
    LENGTH_SUFFIX,
    Block,
    ValueColumn,
    from_columns,
    value_names,
)

Array = NDArray[Any]


def block_of(table: pa.Table, dtype: np.dtype[np.void]) -> Block:
    """The columns of n logged records → their value block, (n,) of `dtype`.

    dtype: `schemas.values.value_dtype` of the plan whose fingerprint the records carry. Raises
    RecordError for a missing column, a column of another type, or a list beyond the capacity.
    """
    columns: dict[str, ValueColumn] = {}
    for name in value_names(dtype):
        if name not in table.column_names:
            raise RecordError(
                f"rank log.{name}",
                required="a column of that name",
                got="none",
                do="read the log with the plan whose fingerprint it carries",
            )
        column = table.column(name).combine_chunks()
        vector = name + LENGTH_SUFFIX in (dtype.names or ())
        columns[name] = (_vector if vector else _scalar)(name, column, dtype[name])
    return from_columns(dtype, columns, table.num_rows)


def _scalar(name: str, column: pa.Array, dtype: np.dtype[Any]) -> ValueColumn:
    null = np.asarray(column.is_null())  # (n,) bool
    known = _cast(name, column, dtype)
    filled = pc.fill_null(known, pa.scalar(0).cast(known.type)) if known.null_count else known
    return ValueColumn(filled.to_numpy(zero_copy_only=False), None, null)


def _vector(name: str, column: pa.Array, dtype: np.dtype[Any]) -> ValueColumn:
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        raise RecordError(f"rank log.{name}", required="a list", got=str(column.type))
    null = np.asarray(column.is_null())  # (n,) bool
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))  # (n,) i32
    capacity = dtype.shape[0]
    if lengths.max(initial=0) > capacity:
        required = f"at most {capacity} elements"
        raise RecordError(f"rank log.{name}", required=required, got=str(lengths.max()))
    elements = _cast(name, column.flatten(), dtype.base)  # those of null lists are not among them
    if elements.null_count:
        raise RecordError(f"rank log.{name}", required="elements without null", got="null")
    values = np.zeros((len(column), capacity), dtype.base)  # (n, L)
    values[np.arange(capacity) < lengths[:, None]] = elements.to_numpy(zero_copy_only=False)
    return ValueColumn(values, lengths, null)


def _cast(name: str, column: pa.Array, dtype: np.dtype[Any]) -> pa.Array:
    """The column in the plan's type. Files of an older plan may have widened it: that is undone
    where nothing is lost, and refused where something would be."""
    wanted = pa.from_numpy_dtype(dtype)
    if column.type == wanted:
        return column
    try:
        return column.cast(wanted)
    except pa.ArrowInvalid as error:
        got = f"{column.type}: {error}"
        raise RecordError(f"rank log.{name}", required=str(wanted), got=got) from None
