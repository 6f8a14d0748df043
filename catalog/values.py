"""Plain values → Feast's value messages, of the dtype that is declared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from feast.protos.feast.types.Value_pb2 import (
    BoolList,
    DoubleList,
    FloatList,
    Int32List,
    Int64List,
    Value,
)
from feast.types import Array, FeastType, PrimitiveFeastType

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


def to_protos(dtype: FeastType, values: Sequence[Any]) -> list[Value]:
    """One message a value; an empty message is null. dtype: as the view's Field declares it."""
    if isinstance(dtype, Array):
        assert isinstance(dtype.base_type, PrimitiveFeastType)
        kind, message = _LISTS[dtype.base_type]
        return [
            Value() if value is None else Value(**{kind: message(val=value)}) for value in values
        ]
    assert isinstance(dtype, PrimitiveFeastType)
    kind = _SCALARS[dtype]
    return [Value() if value is None else Value(**{kind: value}) for value in values]


def to_python(value: Value | None) -> Any:
    """What a message holds; None for none and for an empty one."""
    kind = None if value is None else value.WhichOneof("val")
    if value is None or kind is None:
        return None
    held = getattr(value, kind)
    return list(held.val) if kind.endswith("_list_val") else held
