"""Hashes and partitions against the reference libraries; ID transforms against their definition."""

from __future__ import annotations

import bisect
import struct
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from kafka.partitioner.default import murmur2

from schemas.ids import (
    hash64,
    log_boundaries,
    partitions_of,
    string_id,
    string_ids,
    to_ids,
    transform_size,
)
from schemas.plan import TransformPlan

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
EDGES = [0, -1, 1, 9, 10, -10, (1 << 63) - 1, -(1 << 63)]


@given(st.lists(INT64, max_size=20), st.integers(0, (1 << 64) - 1))
def test_hash64_is_xxh3(values: list[int], seed: int) -> None:
    expected = [xxhash.xxh3_64_intdigest(struct.pack("<q", v), seed=seed) for v in values + EDGES]
    assert hash64(np.array(values + EDGES, np.int64), seed).tolist() == expected


@given(st.lists(INT64, max_size=20), st.integers(1, 1000))
def test_partitions_are_kafkas(values: list[int], partitions: int) -> None:
    expected = [(murmur2(str(v).encode()) & 0x7FFFFFFF) % partitions for v in values + EDGES]
    assert partitions_of(np.array(values + EDGES, np.int64), partitions).tolist() == expected


def oracle(value: Any, transform: TransformPlan) -> int:
    """The definition, one value at a time. None is null."""
    if value is None or value != value or value in transform.sentinels:
        return 0
    match transform.kind:
        case "hash":
            digest = xxhash.xxh3_64_intdigest(struct.pack("<q", int(value)), seed=transform.seed)
            return 2 + digest % transform.buckets
        case "vocab":
            values = [string_id(v) if isinstance(v, str) else v for v in transform.values]
            return 2 + values.index(int(value)) if int(value) in values else 1
        case "boundaries":
            return 2 + bisect.bisect_right(transform.boundaries, value)
        case "identity":
            return 2 + int(value) if 0 <= value < transform.buckets else 1
        case "stored":
            return int(value) if 0 <= value < transform.size else 1
    raise AssertionError(transform.kind)


TRANSFORMS = [
    TransformPlan("hash", 102, buckets=100, seed=5),
    TransformPlan("vocab", 5, values=(7, -3, 12)),
    TransformPlan("vocab", 2, values=()),
    TransformPlan("boundaries", 6, boundaries=(-1.0, 0.0, 10.5), sentinels=(-124.0,)),
    TransformPlan("identity", 12, buckets=10, sentinels=(3.0,)),
    TransformPlan("stored", 9),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.kind)
@given(values=st.lists(st.none() | st.sampled_from([*EDGES, -124, 7, -3, 12, 3]) | INT64))
def test_transforms_of_integers(transform: TransformPlan, values: list[int | None]) -> None:
    column = np.array([v or 0 for v in values], np.int64)
    nulls = np.array([v is None for v in values], bool)
    ids = to_ids(column, nulls, transform)
    # Boundaries compare in float64, as the oracle must.
    floats = transform.kind == "boundaries"
    expected = [oracle(float(v) if floats and v is not None else v, transform) for v in values]
    assert ids.tolist() == expected
    assert ids.dtype == np.int32
    assert not len(ids) or ids.max() < transform_size(transform) or transform.kind == "stored"


@given(st.lists(st.none() | st.floats(width=32)))
def test_boundaries_of_floats(values: list[float | None]) -> None:
    transform = TransformPlan("boundaries", 6, boundaries=(-1.0, 0.0, 10.5), sentinels=(-124.0,))
    column = np.array([np.nan if v is None else v for v in values], np.float32)
    expected = [oracle(None if v is None else float(np.float32(v)), transform) for v in values]
    assert to_ids(column, None, transform).tolist() == expected


def test_ids_keep_the_shape() -> None:
    column = np.arange(6, dtype=np.int64).reshape(2, 3)
    ids = to_ids(column, column == 4, TransformPlan("identity", 7, buckets=5))
    assert ids.tolist() == [[2, 3, 4], [5, 0, 1]]


def test_strings_become_ids_at_the_edge() -> None:
    transform = TransformPlan("vocab", 4, values=("low", "high"))
    assert string_ids(["high", None, "other", "low"], transform).tolist() == [3, 0, 1, 2]
    hashed = TransformPlan("hash", 12, buckets=10)
    assert string_ids(["high"], hashed).tolist() == [oracle(string_id("high"), hashed)]


def test_log_boundaries_are_even_in_the_logarithm() -> None:
    assert log_boundaries(4, 1, 1000) == (1.0, 10.0, 100.0, 1000.0)
