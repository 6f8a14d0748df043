"""JSON columns → the fields of rows; held to what a Parquet source of the same values gives.

Symbols: n rows, C capacity of a vector. A list's null element is null where the element has a field
of its own, and 0 inside a vector; what is beyond a vector's capacity is cut off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.protocol import kind_of
from schemas.elements import element_of
from schemas.errors import RequestError
from schemas.ids import string_ids
from schemas.layout import NUMPY
from schemas.plan import Dtype, FieldPlan, ViewPlan
from schemas.rows import Rows

Array = NDArray[Any]


def fill(view: ViewPlan, rows: Rows, columns: Mapping[str, list[Any]]) -> None:
    """Sets the declared fields that the columns give; the others stay null. Raises RequestError."""
    read = {feature.source for feature in view.features}
    for field in view.fields:
        element = element_of(field.name, columns)
        name = field.name if element is None else element[0]
        if field.name not in read or name not in columns:
            continue
        where, column = f"df.{name}", columns[name]
        values: Array
        if field.name == view.join_key:
            values, null = rows.entity_ids, np.zeros(len(rows), bool)
        elif field.name in view.written:
            _check(column, (str,), "strings", where)
            values, null = string_ids(column, view.written[field.name]), _null(column)
        elif field.capacity:
            values, lengths = _vector(_lists(column, where), field, where)
            rows.lengths[field.name][:] = lengths
            null = _null(column)
        else:
            values, null = _scalar(_picked(column, element, where), field.dtype, where)
        rows.values[field.name][:] = values
        rows.present[field.name][:] = ~null


def _picked(column: list[Any], element: tuple[str, int] | None, where: str) -> list[Any]:
    """The column itself, or one element of each of its lists."""
    if element is None:
        return column
    at = element[1]
    return [each[at] if at < len(each) else None for each in _lists(column, where)]


def _lists(column: list[Any], where: str) -> list[list[Any]]:
    _check(column, (list,), "lists", where)
    return [[] if each is None else each for each in column]


def _vector(lists: list[list[Any]], field: FieldPlan, where: str) -> tuple[Array, Array]:
    """(values (n, C), lengths (n,))."""
    cut = [each[: field.capacity] for each in lists]
    padded = [each + [None] * (field.capacity - len(each)) for each in cut]
    flat, _ = _scalar([value for each in padded for value in each], field.dtype, where)
    lengths = np.array([len(each) for each in cut], np.int32)  # (n,)
    return flat.reshape(len(lists), field.capacity), lengths


def _scalar(column: list[Any], dtype: Dtype, where: str) -> tuple[Array, Array]:
    """(values, null), both (n,)."""
    if dtype == "bool":
        _check(column, (bool,), "true or false", where)
    elif dtype in ("f32", "f64"):
        _check(column, (int, float), "numbers", where)
    else:
        _check(column, (int,), "integers", where)
    held = [0 if value is None else value for value in column]
    try:
        with np.errstate(over="ignore"):
            values = np.array(held, NUMPY[dtype])  # (n,)
    except OverflowError:
        values = np.array([np.inf])
    if np.isinf(values).any():
        raise RequestError(
            where, required=f"values that fit the declared {dtype}", got="a larger one"
        )
    return values, _null(column)


def _check(column: list[Any], kinds: tuple[type, ...], required: str, where: str) -> None:
    for value in column:
        if value is not None and type(value) not in kinds:
            raise RequestError(where[:80], required=required, got=kind_of(value))


def _null(column: list[Any]) -> NDArray[np.bool_]:
    return np.array([value is None for value in column], bool)
