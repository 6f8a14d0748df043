"""Views built by hand, and random rows for them, shared by the tests of the row codec."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from schemas.layout import NUMPY, RowLayout
from schemas.plan import Dtype, FieldPlan, ViewPlan
from schemas.row import Rows, empty_rows

DTYPES: tuple[Dtype, ...] = tuple(NUMPY)


def view_of(*fields: FieldPlan, name: str = "sample") -> ViewPlan:
    return ViewPlan(name, "user", "batch", 1, fields, (), "source")


#: Every dtype as a scalar, three vectors, and two fields of a later apply (group 1).
SAMPLE = view_of(
    *(FieldPlan(index, f"s_{dtype}", dtype) for index, dtype in enumerate(DTYPES)),
    FieldPlan(11, "v_i64", "i64", capacity=5),
    FieldPlan(12, "v_u16", "u16", capacity=3),
    FieldPlan(13, "v_f32", "f32", capacity=4),
    FieldPlan(14, "later", "i32", group=1),
    FieldPlan(15, "v_later", "i64", capacity=2, group=1),
)

#: The same view before the later apply.
OLDER = view_of(*SAMPLE.fields[:14])


@st.composite
def views(draw: st.DrawFn) -> ViewPlan:
    """Up to 20 fields of any dtype and capacity, in up to three groups."""
    fields = []
    group = 0
    for index in range(draw(st.integers(1, 20))):
        dtype = draw(st.sampled_from(DTYPES))
        group = min(2, group + draw(st.sampled_from((0, 0, 0, 1))))
        capacity = draw(st.sampled_from((0, 0, 0, 1, 3, 7)))
        fields.append(FieldPlan(index, f"f{index}", dtype, capacity, group))
    return view_of(*fields)


def random_rows(layout: RowLayout, seed: int, n: int) -> Rows:
    """n rows of random bit patterns (no NaN), lengths and nulls, canonical in unused places."""
    rng = np.random.default_rng(seed)
    rows = empty_rows(layout, rng.integers(-(1 << 63), (1 << 63) - 1, n))
    for plan in layout.fields:
        column = rows.values[plan.name]
        dtype = NUMPY[plan.dtype]
        if dtype.kind == "f":
            column[...] = rng.normal(0, 1e6, column.shape)
        elif dtype.kind == "b":
            column[...] = rng.random(column.shape) < 0.5
        else:
            info = np.iinfo(dtype)
            column[...] = rng.integers(info.min, info.max, column.shape, dtype, endpoint=True)
        rows.present[plan.name][:] = rng.random(n) < 0.8
        present = rows.present[plan.name]
        if plan.capacity:
            lengths = rng.integers(0, plan.capacity + 1, n) * present
            rows.lengths[plan.name][:] = lengths
            column[np.arange(plan.capacity) >= lengths[:, None]] = 0
        column[~present] = 0
    rows.epoch[:] = rng.integers(0, 1 << 32, n, dtype=np.uint32)
    rows.offset[:] = rng.integers(-1, 1 << 62, n)
    rows.newest_ms[:] = rng.integers(0, 1 << 48, n)
    return rows


def assert_same(left: Rows, right: Rows) -> None:
    """Equal to the last value, null and fence."""
    np.testing.assert_array_equal(left.entity_ids, right.entity_ids)
    for name, column in left.values.items():
        np.testing.assert_array_equal(column, right.values[name], err_msg=name)
        np.testing.assert_array_equal(left.present[name], right.present[name], err_msg=name)
    for name, lengths in left.lengths.items():
        np.testing.assert_array_equal(lengths, right.lengths[name], err_msg=name)
    np.testing.assert_array_equal(left.epoch, right.epoch)
    np.testing.assert_array_equal(left.offset, right.offset)
    np.testing.assert_array_equal(left.newest_ms, right.newest_ms)
