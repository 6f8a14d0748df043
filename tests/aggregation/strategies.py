"""Hypothesis strategies: actions that collide in time, row and columns as often as they can."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.actions import ACTION, MAX_VALUE, ActionType

T0 = 1_650_800_000_000
SPAN_MS = 20_000

#: Few values each, the ends of int64 among them, so that ties and equal actions are common.
small_ids = st.sampled_from([-(2**63), -1, 0, 1, 2, 2**63 - 1])
known_bits = st.builds(lambda low, tags: low | tags << 4, st.integers(0, 15), st.integers(0, 3))


@st.composite
def records(draw: st.DrawFn, span_ms: int) -> tuple[Any, ...]:
    """One ACTION record, a play as often as all else."""
    time_ms = T0 + draw(st.one_of(st.integers(0, span_ms), st.sampled_from([0, 999, 1_000, 4_000])))
    return (
        draw(small_ids),
        draw(small_ids),
        time_ms,
        draw(st.sampled_from([0, 1, 7, 2**21 + 5, 2**39, MAX_VALUE - 1])),
        0,
        0,
        draw(small_ids),
        draw(small_ids),
        (draw(small_ids), 0, 0),
        draw(st.sampled_from([0, 65_535])),
        draw(st.sampled_from([0, 3, 32_767])),
        draw(st.one_of(st.just(2), st.sampled_from([kind.value for kind in ActionType]))),
        draw(known_bits),
    )


@st.composite
def histories(
    draw: st.DrawFn, rows: int = 3, longest: int = 40
) -> tuple[NDArray[np.void], NDArray[np.intp], NDArray[np.int64]]:
    """Actions (a,), the row of each, and when each was sent (some late, some from the future)."""
    span_ms = draw(st.sampled_from([SPAN_MS // 8, SPAN_MS]))
    drawn = draw(st.lists(records(span_ms), max_size=longest))
    actions = np.array(drawn, ACTION)
    n = len(drawn)
    row = draw(st.lists(st.integers(0, rows - 1), min_size=n, max_size=n))
    delay = draw(st.lists(st.integers(-1_500, 3_500), min_size=n, max_size=n))
    sent_ms = actions["time_ms"] + np.array(delay, np.int64)
    return actions, np.array(row, np.intp), sent_ms
