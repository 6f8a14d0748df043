"""Finalised features → Feast's value messages, of the dtype that is declared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from feast.protos.feast.types.Value_pb2 import (
    BoolList,
    DoubleList,
    FloatList,
    Int32List,
    Int64List,
    Value,
)
from feast.types import Array, FeastType, PrimitiveFeastType
from numpy.typing import NDArray

from aggregation.finalise import Features
from schemas.ids import FIRST_ID, MISSING
from schemas.plan import TransformPlan

_SCALARS: Final = {
    PrimitiveFeastType.BOOL: "bool_val",
    PrimitiveFeastType.INT32: "int32_val",
    PrimitiveFeastType.INT64: "int64_val",
    PrimitiveFeastType.FLOAT32: "float_val",
    PrimitiveFeastType.FLOAT64: "double_val",
    PrimitiveFeastType.STRING: "string_val",
}
_LISTS: Final[dict[PrimitiveFeastType, tuple[str, Any]]] = {
    PrimitiveFeastType.BOOL: ("bool_list_val", BoolList),
    PrimitiveFeastType.INT32: ("int32_list_val", Int32List),
    PrimitiveFeastType.INT64: ("int64_list_val", Int64List),
    PrimitiveFeastType.FLOAT32: ("float_list_val", FloatList),
    PrimitiveFeastType.FLOAT64: ("double_list_val", DoubleList),
}


@dataclass(frozen=True)
class FeatureColumn:
    """A declared feature. sources: the plan's features it is read from, several where an Array's
    elements are stored apart. written: the transform of a String.
    """

    name: str
    sources: tuple[str, ...]
    dtype: FeastType
    written: TransformPlan | None


def to_protos(column: FeatureColumn, features: Features) -> list[Value]:
    """One message a row; an empty message is null."""
    if not isinstance(column.dtype, Array):
        return _scalars(column, features)
    if column.sources == (column.name,):
        values, lengths = features.values[column.name], features.lengths[column.name]
        held = np.arange(values.shape[1]) < lengths[:, None]  # (n, L)
        null = features.null[column.name]  # (n,)
    else:
        values = np.stack([features.values[name] for name in column.sources], axis=1)  # (n, L)
        held = np.stack([~features.null[name] for name in column.sources], axis=1)  # (n, L)
        null = np.asarray(~held.any(axis=1))  # (n,): an empty list and a null one are stored alike
    return _lists(column.dtype, values, held, null)


def _scalars(column: FeatureColumn, features: Features) -> list[Value]:
    (source,) = column.sources
    values, null = features.values[source].tolist(), features.null[source].tolist()
    if column.written is not None:
        texts = [restored(column.written, value) for value in values]
        null = [absent or text is None for absent, text in zip(null, texts, strict=True)]
        values = texts
    assert isinstance(column.dtype, PrimitiveFeastType)
    kind = _SCALARS[column.dtype]
    return [
        Value() if absent else Value(**{kind: value})
        for value, absent in zip(values, null, strict=True)
    ]


def _lists(
    dtype: Array, values: NDArray[Any], held: NDArray[np.bool_], null: NDArray[np.bool_]
) -> list[Value]:
    assert isinstance(dtype.base_type, PrimitiveFeastType)
    kind, message = _LISTS[dtype.base_type]
    return [
        Value() if absent else Value(**{kind: message(val=row[kept].tolist())})
        for row, kept, absent in zip(values, held, null, strict=True)
    ]


def restored(written: TransformPlan, stored_id: int) -> str | None:
    """The string behind a stored id, as far as it can be told.

    None where it is missing; "id:<n>" for a hash, and for a value out of the vocabulary.
    """
    if stored_id == MISSING:
        return None
    place = stored_id - FIRST_ID
    if written.kind == "vocab" and 0 <= place < len(written.values):
        return str(written.values[place])
    return f"id:{stored_id}"
