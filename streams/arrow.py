"""numpy columns → Arrow columns, without a Python object a value.

Symbols: n rows, L capacity of a vector.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.values import Block, to_columns

_HEX: Final = np.frombuffer(b"0123456789abcdef", np.uint8)
_UUID_LENGTH: Final = 36
_DASHES: Final = (8, 13, 18, 23)


def uuid_column(
    high: NDArray[np.uint64], low: NDArray[np.uint64], known: NDArray[np.bool_] | None = None
) -> pa.Array:
    """UUIDs as strings from their big-endian halves, (n,) each; null where not known.

    >>> uuid_column(np.array([1], np.uint64), np.array([2], np.uint64)).to_pylist()
    ['00000000-0000-0001-0000-000000000002']
    """
    n = len(high)
    raw = np.empty((n, 2), ">u8")
    raw[:, 0], raw[:, 1] = high, low
    octets = raw.view(np.uint8)  # (n, 16)
    digits = np.empty((n, 16, 2), np.uint8)
    digits[:, :, 0], digits[:, :, 1] = _HEX[octets >> 4], _HEX[octets & 15]
    text = np.full((n, _UUID_LENGTH), ord("-"), np.uint8)
    text[:, np.delete(np.arange(_UUID_LENGTH), _DASHES)] = digits.reshape(n, 32)
    offsets = np.arange(n + 1, dtype=np.int32) * _UUID_LENGTH
    column = pa.StringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(text))
    return column if known is None else pc.if_else(pa.array(known), column, pa.scalar(None))


def list_column(
    values: NDArray[Any], lengths: NDArray[Any], null: NDArray[np.bool_] | None = None
) -> pa.Array:
    """Lists of the first `lengths` (n,) elements of each row of `values` (n, L)."""
    filled = np.arange(values.shape[1]) < lengths[:, None]  # (n, L)
    return flat_list_column(values[filled], lengths, null)


def flat_list_column(
    elements: NDArray[Any] | pa.Array,
    lengths: NDArray[Any],
    null: NDArray[np.bool_] | None = None,
) -> pa.Array:
    """Lists from their elements one after the other; lengths (n,)."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    mask = pa.array(null.copy()) if null is not None and null.any() else None
    values = elements if isinstance(elements, pa.Array) else pa.array(elements)
    return pa.ListArray.from_arrays(pa.array(offsets), values, mask=mask)


def value_columns(block: Block) -> dict[str, pa.Array]:
    """A value block's features as nullable columns of their own type, vectors as lists."""
    columns: dict[str, pa.Array] = {}
    for name, column in to_columns(block).items():
        if column.lengths is not None:
            columns[name] = list_column(column.values, column.lengths, column.null)
        else:
            columns[name] = pa.array(np.ascontiguousarray(column.values), mask=column.null.copy())
    return columns


def score_column(scores: NDArray[np.float32]) -> pa.Array:
    """NaN, which says unscored in a record, becomes null."""
    return pa.array(np.ascontiguousarray(scores), mask=np.isnan(scores))
