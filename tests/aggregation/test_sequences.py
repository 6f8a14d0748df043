"""Merging sequences against sorting, where nearly everything ties."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation.sequences import Entries, merge, shifted, visible

ENDS = [-(2**63), -1, 0, 1, 2**63 - 1]
entries = st.tuples(
    st.integers(0, 2),  # row
    st.integers(1, 3),  # event time
    st.sampled_from(ENDS),
    st.integers(0, 1),
)


@settings(max_examples=400, deadline=None)
@given(
    batches=st.lists(st.lists(entries, min_size=1, max_size=8), min_size=1, max_size=4),
    capacity=st.integers(1, 6),
)
def test_what_is_kept_is_the_newest_of_all(
    batches: list[list[tuple[int, int, int, int]]], capacity: int
) -> None:
    held: tuple[Any, ...] = tuple(
        np.zeros((3, capacity), dtype) for dtype in (np.int64, np.int64, np.uint16)
    )
    lengths = np.zeros(3, np.int32)
    for batch in batches:
        by_row = np.array(sorted(batch, key=lambda entry: (entry[0], -entry[1])), np.int64)
        keys = tuple(by_row[:, place + 1].astype(column.dtype) for place, column in enumerate(held))
        held, lengths = merge(held, lengths, Entries(by_row[:, 0], keys))
    for row in range(3):
        everything = [entry[1:] for batch in batches for entry in batch if entry[0] == row]
        expected = sorted(everything, reverse=True)[:capacity]
        assert lengths[row] == len(expected)
        found = list(zip(*(column[row].tolist() for column in held), strict=True))
        assert found == expected + [(0, 0, 0)] * (capacity - len(expected))


@given(st.lists(st.integers(1, 9), max_size=5), st.integers(0, 10))
def test_entries_after_now_are_left_out(times: list[int], now_ms: int) -> None:
    padded = np.zeros((1, 5), np.int64)
    padded[0, : len(times)] = sorted(times, reverse=True)
    skip, remain = visible(padded, np.array([len(times)]), now_ms)
    expected = sorted((time for time in times if time <= now_ms), reverse=True)
    assert remain[0] == len(expected)
    assert shifted(padded, skip, remain)[0].tolist() == expected + [0] * (5 - len(expected))
