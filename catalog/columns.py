"""Arrow columns of a batch source → the columns of rows.

Symbols: n rows, C capacity of a vector. Null and NaN are null; a list's null element is null where
the element has a field of its own, and 0 inside a vector.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from schemas.elements import element_of
from schemas.errors import DeclarationError
from schemas.ids import key_id, string_id, string_ids
from schemas.layout import NUMPY, layout_of
from schemas.plan import FieldPlan, TransformPlan, ViewPlan
from schemas.row import Rows, empty_rows

Array = NDArray[Any]

MAX_TIME_MS: Final = 1 << 48

_ARROW: Final[dict[str, pa.DataType]] = {
    "bool": pa.bool_(),
    "i32": pa.int32(),
    "i64": pa.int64(),
    "f32": pa.float32(),
    "f64": pa.float64(),
}


def source_columns(view: ViewPlan, names: list[str]) -> list[str]:
    """Which columns of a source with these `names` the view's rows are made of.

    A field that no declared feature reads any more is left out. Raises DeclarationError for a
    column that is not there.
    """
    wanted = {*view.join_keys, view.timestamp_field}
    for field in _declared(view):
        element = element_of(field.name, names)
        wanted.add(field.name if element is None else element[0])
    missing = sorted(wanted - set(names))
    if missing:
        raise DeclarationError(
            f"{view.name}.source",
            required=f"the columns {', '.join(sorted(wanted))}",
            got=f"no {', '.join(missing)}",
            do=f"write them into {view.source}, or drop the features",
        )
    return [name for name in names if name in wanted]


def rows_of(view: ViewPlan, table: pa.Table) -> Rows:
    """A table's rows, in its order: fence (0, event time), strings as ids.

    Raises DeclarationError for a null or non-integer key, a null or negative time, and a value that
    its declared dtype cannot hold.
    """
    layout = layout_of(view)
    entity_ids = _entity_ids(view, table)  # (n,)
    rows = empty_rows(layout, entity_ids)
    time_ms = event_times(table[view.timestamp_field], f"{view.name}.{view.timestamp_field}")
    rows.offset[:] = time_ms
    rows.newest_ms[:] = time_ms
    for field in _declared(view):
        _fill(rows, field, view, table)
    return rows


def event_times(column: pa.ChunkedArray, where: str) -> NDArray[np.int64]:
    """Event times in ms since 1970, (n,) i64. column: timestamps of any unit, or integers, ms.

    Raises DeclarationError for a null, another type, or a time before 1970.
    """
    if pa.types.is_timestamp(column.type):
        zone = pa.timestamp("ms", column.type.tz)
        column = pc.cast(column, zone, safe=False).cast(pa.int64())
    if column.null_count or not pa.types.is_integer(column.type):
        raise DeclarationError(
            where,
            required="an event time in every row",
            got=f"{column.null_count} nulls" if column.null_count else str(column.type),
        )
    times = np.asarray(column.to_numpy(), np.int64)  # (n,)
    if len(times) and not (times.min() >= 0 and times.max() < MAX_TIME_MS):
        raise DeclarationError(
            where, required="times since 1970", got=f"{times.min()} to {times.max()} ms"
        )
    return times


def _declared(view: ViewPlan) -> list[FieldPlan]:
    read = {feature.source for feature in view.features}
    return [field for field in view.fields if field.name in read]


def _entity_ids(view: ViewPlan, table: pa.Table) -> NDArray[np.int64]:
    """The rows' entity ids, (n,)."""
    columns = [_keys(table[name], f"{view.name}.{name}") for name in view.join_keys]
    if len(columns) == 1:
        return columns[0]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return np.array([key_id(values) for values in rows], np.int64)


def _keys(column: pa.ChunkedArray, where: str) -> NDArray[np.int64]:
    """Entity ids. column: integers, or strings, which become their string_id. Returns (n,)."""
    if column.null_count:
        raise DeclarationError(
            where, required="a key in every row", got=f"{column.null_count} null"
        )
    if _is_string(column.type):
        encoded = _combined(column).dictionary_encode()
        ids = [string_id(text) for text in encoded.dictionary.to_pylist()]
        return np.array(ids, np.int64).take(np.asarray(encoded.indices))  # (n,)
    if not pa.types.is_integer(column.type):
        raise DeclarationError(where, required="integer or string keys", got=str(column.type))
    keys: NDArray[np.int64] = _cast(column, pa.int64(), where).to_numpy()
    return keys


def _fill(rows: Rows, field: FieldPlan, view: ViewPlan, table: pa.Table) -> None:
    """Set one field of all rows."""
    where = f"{view.name}.{field.name}"
    element = element_of(field.name, table.column_names)
    column = table[field.name if element is None else element[0]]
    if pa.types.is_null(column.type):
        return
    if field.name in view.written:
        values, null = _written(column, view.written[field.name], where)
    elif field.name == view.join_key:
        values, null = rows.entity_ids, np.zeros(len(rows), bool)
    elif element is not None:
        values, null = _element(column, element[1], field, where)
    elif field.capacity:
        values, lengths, null = _vector(column, field, where)
        rows.lengths[field.name][:] = lengths
    else:
        values, null = _scalar(column, field, where)
    rows.values[field.name][:] = values
    rows.present[field.name][:] = ~null


def _scalar(column: pa.ChunkedArray, field: FieldPlan, where: str) -> tuple[Array, Array]:
    """(values, null), both (n,)."""
    kind = column.type
    if pa.types.is_null(kind):  # a column of nulls, or the elements of empty lists
        return np.zeros(len(column), NUMPY[field.dtype]), np.ones(len(column), bool)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise DeclarationError(
            where, required=f"a column of the declared {field.dtype}", got=str(kind)
        )
    if pa.types.is_floating(kind):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    null = column.is_null().to_numpy()  # (n,)
    zero = pa.scalar(False if pa.types.is_boolean(kind) else 0, kind)
    filled = _cast(column.fill_null(zero), _ARROW[field.dtype], where)
    return filled.to_numpy().astype(NUMPY[field.dtype], copy=False), null


def _written(column: pa.ChunkedArray, transform: TransformPlan, where: str) -> tuple[Array, Array]:
    """Strings as ids: (ids, null), both (n,). Each distinct string is hashed once."""
    if not _is_string(column.type):
        raise DeclarationError(where, required="a column of strings", got=str(column.type))
    null = column.is_null().to_numpy()  # (n,)
    encoded = _combined(column).dictionary_encode()
    ids = string_ids([*encoded.dictionary.to_pylist(), None], transform)  # (distinct + 1,)
    indices = encoded.indices.fill_null(len(ids) - 1).to_numpy()  # (n,)
    return ids[indices], null


def _element(
    column: pa.ChunkedArray, index: int, field: FieldPlan, where: str
) -> tuple[Array, Array]:
    """Element `index` of each list: (values, null), both (n,)."""
    flat, starts, lengths = _lists(column, where)
    inside = lengths > index  # (n,)
    at = np.where(inside, starts + index, len(flat))
    padded = pa.concat_arrays([flat, pa.nulls(1, flat.type)])
    return _scalar(pa.chunked_array([padded.take(pa.array(at))]), field, where)


def _vector(column: pa.ChunkedArray, field: FieldPlan, where: str) -> tuple[Array, Array, Array]:
    """(values (n, C), lengths (n,), null (n,)); what is beyond the capacity is cut off."""
    flat, starts, lengths = _lists(column, where)
    values, _ = _scalar(pa.chunked_array([flat]), field, where)
    lengths = np.minimum(lengths, field.capacity)  # (n,)
    places = np.arange(field.capacity)
    inside = places < lengths[:, None]  # (n, C)
    out = np.zeros(inside.shape, NUMPY[field.dtype])  # (n, C)
    out[inside] = values[(starts[:, None] + places)[inside]]
    return out, lengths, column.is_null().to_numpy()


def _lists(column: pa.ChunkedArray, where: str) -> tuple[pa.Array, Array, Array]:
    """(elements, start of each list (n,), length of each (n,)); a null list has length 0."""
    lists = _combined(column)
    if pa.types.is_large_list(lists.type) or pa.types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.list_(lists.type.value_type))
    if not pa.types.is_list(lists.type):
        raise DeclarationError(where, required="a column of lists", got=str(column.type))
    offsets = lists.offsets.to_numpy().astype(np.int64)  # (n + 1,)
    lengths = np.where(lists.is_null().to_numpy(zero_copy_only=False), 0, np.diff(offsets))
    return lists.values, offsets[:-1], lengths


def _combined(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    if isinstance(combined, pa.ChunkedArray):  # of no chunk, or too large for one
        return (
            pa.concat_arrays(combined.chunks) if combined.num_chunks else pa.array([], column.type)
        )
    return combined


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _cast(column: pa.ChunkedArray, kind: pa.DataType, where: str) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    try:
        return pc.cast(column, kind, safe=not pa.types.is_floating(kind))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DeclarationError(
            where,
            required=f"values that fit the declared {kind}",
            got=str(error),
            do="declare a wider type",
        ) from None
