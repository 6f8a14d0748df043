"""History up to any cut, then the stream, in any grouping: the same bytes as all at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregation.deletion import fold_in_order
from schemas.actions import ActionType
from schemas.layout import layout_of
from schemas.row import decode_rows, empty_rows, encode_rows
from tests.aggregation.plans import small_view
from tests.streams.support import T0, some_actions

VIEW = small_view()
LAYOUT = layout_of(VIEW)
COUNT = 60


def log_of(seed: int) -> tuple[NDArray[np.void], NDArray[np.int64]]:
    """(a,) ACTION in the order of a log, out of order in time, and when each was sent."""
    dice = np.random.default_rng(seed)
    actions = some_actions(COUNT, 3, seed, span_ms=9_000)
    actions["type"][dice.random(COUNT) < 0.03] = ActionType.DELETE_USER
    sent_ms = T0 + np.sort(dice.integers(0, 12_000, COUNT))
    return actions, sent_ms


def stored(
    users: NDArray[np.int64], log: tuple[NDArray[np.void], NDArray[np.int64]], cuts: Sequence[int]
) -> list[bytes]:
    """Rows after the log was folded part by part, stored and read again in between."""
    actions, sent_ms = log
    raw = encode_rows(LAYOUT, empty_rows(LAYOUT, users))
    bounds = [0, *sorted(cuts), COUNT]
    for start, end in pairwise(bounds):
        rows, _ = decode_rows(LAYOUT, raw, users)
        part = actions[start:end]
        fold_in_order(VIEW, rows, np.searchsorted(users, part["user"]), part, sent_ms[start:end])
        rows.epoch, rows.offset = np.full(len(users), 1, np.uint32), np.full(len(users), COUNT)
        raw = encode_rows(LAYOUT, rows)
    return raw


@given(st.integers(0, 500), st.lists(st.integers(0, COUNT), max_size=6))
def test_any_cut_makes_the_same_rows(seed: int, cuts: list[int]) -> None:
    log = log_of(seed)
    users = np.unique(log[0]["user"])
    assert stored(users, log, cuts) == stored(users, log, [])
