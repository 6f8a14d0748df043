"""Value blocks: their dtype, their nulls, and columns in both directions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import PlanError, RecordError
from schemas.plan import FeaturePlan
from schemas.values import (
    NULL_FIELD,
    ValueColumn,
    from_columns,
    null_mask,
    pack_nulls,
    to_columns,
    value_dtype,
    value_names,
)
from tests.aggregation.plans import demo_plan

PLAN = demo_plan()
SERVICE = PLAN.service("ranking")
USER = value_dtype(PLAN, SERVICE, "user")
ITEM = value_dtype(PLAN, SERVICE, "item")


def test_the_dtype_is_packed_and_little_endian_in_slot_order() -> None:
    assert ITEM.descr == [
        ("videos__video_id", "<i8"),
        ("videos__author_id", "<i8"),
        ("videos__music_id", "<i8"),
        ("videos__video_type", "<i4"),
        ("videos__duration", "<f8"),
        ("videos__width", "<i4"),
        ("video_activity__impression_1d", "<i8"),
        ("video_activity__click_1d", "<i8"),
        (NULL_FIELD, "|u1", (1,)),
    ]
    assert ITEM.itemsize == 57
    names = USER.names or ()
    at = names.index("user_activity__videos_item")
    assert names[at : at + 2] == ("user_activity__videos_item", "user_activity__videos_item__len")
    assert USER["user_activity__videos_item"].shape == (50,)
    assert USER[NULL_FIELD].shape == (4,)  # 28 features


def test_value_names_leave_out_lengths_and_nulls() -> None:
    names = value_names(USER)
    assert len(names) == 28
    assert names[-6:] == (
        "user_activity__videos_item",
        "user_activity__videos_author",
        "user_activity__video_ages",
        "user_activity__liked_author",
        "users__interests",
        "users__friends",  # read by a cross alone
    )


@given(st.integers(0, 5), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_nulls_round_trip(n: int, k: int, seed: int) -> None:
    null = np.random.default_rng(seed).random((n, k)) < 0.5
    dtype = np.dtype([(f"v__{i}", "i1") for i in range(k)] + [(NULL_FIELD, "u1", (-(-k // 8),))])
    block = np.zeros(n, dtype)
    block[NULL_FIELD] = pack_nulls(null)
    assert np.array_equal(null_mask(block), null)


def test_bit_i_of_byte_i_over_8_is_feature_i() -> None:
    null = np.zeros((1, 11), bool)
    null[0, [0, 9]] = True
    assert pack_nulls(null).tolist() == [[0b0000_0001, 0b0000_0010]]


@given(st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_columns_round_trip_and_zero_what_is_not_there(n: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    columns = {}
    for name in value_names(USER):
        shape = (n, *USER[name].shape)
        capacity = shape[1] if len(shape) > 1 else 0
        columns[name] = ValueColumn(
            random.integers(0, 2, shape),
            random.integers(0, capacity + 1, n) if capacity else None,
            random.random(n) < 0.3,
        )
    block = from_columns(USER, columns, n)
    again = from_columns(USER, to_columns(block), n)
    assert block.tobytes() == again.tobytes()
    for name, column in to_columns(block).items():
        given_column = columns[name]
        assert np.array_equal(column.null, given_column.null)
        assert not column.values[column.null].any()
        if column.lengths is not None and given_column.lengths is not None:
            assert np.array_equal(column.lengths[~column.null], given_column.lengths[~column.null])
            behind = np.arange(column.values.shape[1]) >= column.lengths[:, None]
            assert not column.values[behind].any()


def test_columns_that_do_not_fit_are_refused() -> None:
    columns = to_columns(np.zeros(2, USER))
    name = "users__interests"
    lengthless = replace(columns[name], lengths=None)
    too_long = replace(columns[name], lengths=np.array([4, 0]))
    narrow = replace(columns[name], values=np.zeros((2, 2)))
    for column in (lengthless, too_long, narrow):
        with pytest.raises(RecordError, match=name):
            from_columns(USER, {**columns, name: column}, 2)
    del columns[name]
    with pytest.raises(RecordError, match="no such column"):
        from_columns(USER, columns, 2)


def test_a_feature_named_like_a_length_is_refused() -> None:
    users = PLAN.view("users")
    clash = FeaturePlan("interests__len", "i64", "field", "fans")
    views = tuple(
        replace(view, features=(*view.features, clash)) if view is users else view
        for view in PLAN.views
    )
    slot = replace(SERVICE.user_slots[0], feature="interests__len")
    service = replace(SERVICE, user_slots=(*SERVICE.user_slots, slot))
    with pytest.raises(PlanError, match="interests__len: needs a name of its own"):
        value_dtype(replace(PLAN, views=views), service, "user")


def test_a_slot_of_a_feature_that_is_gone_names_those_that_are_there() -> None:
    slots = (replace(SERVICE.user_slots[0], feature="gone"),)
    with pytest.raises(PlanError, match=r"needs one of .*, got \w+\.gone"):
        value_dtype(PLAN, replace(SERVICE, user_slots=slots), "user")


def test_a_sequence_longer_than_its_length_field_is_refused() -> None:
    view = PLAN.view("user_activity")
    features = tuple(
        replace(f, capacity=1 << 16) if f.name == "videos_item" else f for f in view.features
    )
    views = tuple(replace(v, features=features) if v is view else v for v in PLAN.views)
    with pytest.raises(PlanError, match="needs a capacity of at most 65535, got 65536"):
        value_dtype(replace(PLAN, views=views), SERVICE, "user")
