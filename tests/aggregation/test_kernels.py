"""Compiled transforms against their definition, alone and side by side in one block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation.kernels import Table, kernel, together
from aggregation.slots import Column, Records, SlotProgram
from schemas.ids import to_ids
from schemas.plan import TransformPlan
from schemas.values import NULL_FIELD, pack_nulls

EDGES = [0, 1, -1, 2, 9, 10, 11, 2**16, 2**53 + 1, 2**63 - 1, -(2**63)]
DTYPES = ["?", "i1", "<i4", "<i8", "<u2", "<u8", "<f4", "<f8"]
TRANSFORMS = [
    TransformPlan("hash", 102, buckets=100, seed=5),
    TransformPlan("hash", 66, buckets=64, sentinels=(0.0,)),
    TransformPlan("vocab", 5, values=(7, -3, 11)),
    TransformPlan("vocab", 4, values=("low", "high")),
    TransformPlan("vocab", 2, values=()),
    TransformPlan("boundaries", 6, boundaries=(-1.0, 0.0, 10.5), sentinels=(-124.0,)),
    TransformPlan("boundaries", 6, boundaries=(0.5, 1.0, 10.5)),
    TransformPlan("boundaries", 5, boundaries=(1.0, 1e17)),
    TransformPlan("boundaries", 3, boundaries=()),
    TransformPlan("identity", 12, buckets=10, sentinels=(3.0,)),
    TransformPlan("identity", 4, buckets=2),
    TransformPlan("stored", 9),
]


def values_of(dtype: np.dtype[Any], n: int, rng: np.random.Generator) -> Any:
    """n values that meet the edges of the dtype and of the transforms. Returns (n,)."""
    if dtype.kind == "f":
        pool = np.array([np.nan, -0.0, 0.0, 0.5, 1.0, 3.0, 10.5, 1e17, -124.0, -7.25, 1e-300])
        return rng.choice(pool, n).astype(dtype)
    ends = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    pool = np.array([edge for edge in [*EDGES, *ends] if ends[0] <= edge <= ends[1]], dtype)
    near = rng.integers(max(-9, ends[0]), min(15, ends[1]) + 1, n)
    return np.where(rng.random(n) < 0.5, rng.choice(pool, n), near.astype(dtype))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**9), n=st.integers(0, 9), columns=st.integers(1, 16))
def test_a_sheet_gives_the_ids_of_the_definition(seed: int, n: int, columns: int) -> None:
    """Any transforms over any fields, one field under several: crosses put, slots taken."""
    rng = np.random.default_rng(seed)
    fields = [(f"f{at}", rng.choice(DTYPES)) for at in range(columns)]
    dtype = np.dtype([*fields, (NULL_FIELD, "u1", (-(-columns // 8),))])
    null = rng.random((n, columns)) < 0.2  # (n, k)
    block = np.zeros(n, dtype)
    for at, (name, _) in enumerate(fields):
        block[name] = np.where(null[:, at], 0, values_of(dtype[name], n, rng))
    block[NULL_FIELD] = pack_nulls(null)
    slots, expected = [], []
    for at in rng.integers(0, columns, columns + 3).tolist():
        name, transform = fields[at][0], TRANSFORMS[rng.integers(len(TRANSFORMS))]
        slots.append(Column(transform, dtype[name], name))
        expected.append(to_ids(block[name], null[:, at], transform))
    crosses = [TRANSFORMS[0], TRANSFORMS[-2], TRANSFORMS[5], TRANSFORMS[6]]
    slots += [Column(each, np.dtype(np.float64)) for each in crosses]
    sheet = SlotProgram(slots, dtype).sheet(Records.of(block))
    for place, transform in enumerate(crosses, columns + 3):
        values, missing = values_of(np.dtype("f8"), n, rng), rng.random(n) < 0.2
        sheet.put(place, values, missing)
        expected.append(to_ids(values, missing, transform))
    ids = sheet.ids()
    assert ids.dtype == np.int32
    assert ids.shape == (n, len(slots))
    assert ids.tolist() == np.array(expected).reshape(len(slots), n).T.tolist()


def test_a_block_with_gaps_between_records_is_read_in_place() -> None:
    dtype = np.dtype([("a", "<i8"), ("b", "<i8"), (NULL_FIELD, "u1", (1,))])
    block = np.zeros(6, dtype)
    block["a"], block["b"] = np.arange(6), np.arange(6) * 2
    transform = TransformPlan("identity", 12, buckets=10)
    program = SlotProgram([Column(transform, dtype[name], name) for name in ("a", "b")], dtype)
    assert program.sheet(Records.of(block[::2])).ids().tolist() == [[2, 2], [4, 6], [6, 10]]


def test_a_table_only_where_its_ends_speak_for_all_integers() -> None:
    values = np.array([7, 8, 2**62, -1])
    boundaries = TransformPlan("boundaries", 4, boundaries=(1.0, 8.0))
    whole = kernel([boundaries], values.dtype)
    assert isinstance(whole, Table)
    assert whole(values).tolist() == [3, 4, 4, 2]
    for limits in ((0.0, 8.0), (-1.0, 8.0), (1.0, 1e6)):
        other = replace(boundaries, boundaries=limits)
        assert not isinstance(kernel([other], values.dtype), Table)
        assert together(other, values.dtype) == together(other, np.dtype("f8"))
