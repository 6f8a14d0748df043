"""Hypothesis strategies: actions that collide in time, row and columns, often and in any part."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from schemas.actions import ACTION, MAX_VALUE, ActionType

T0 = 1_650_800_000_000
SPAN_MS = 20_000
#: First and last milliseconds of tiles: of neighbours, and of those a ring of 6 or 8 s apart.
EDGES_MS = (0, 999, 1_000, 4_000, 5_999, 6_000, 7_999, 8_000, 11_999)
#: From the event to the message: at the bounds of a view of 2.5 s of skew, 1 s of future, and past.
BOUNDS_MS = (-1_001, -1_000, 2_500, 2_501)

#: From an event to a reader: none, ages that a `last` may have, a time to live, and 1 ms more.
AGES_MS = (-1, 0, 1, 2_499, 2_500, 3_999, 4_000, 6_000, 6_001)

#: Clocks of readers: any, and often just so long after an event at an edge.
nows = st.one_of(
    st.integers(T0 - 10_000, T0 + SPAN_MS + 30_000),
    st.builds(
        lambda edge_ms, age_ms: T0 + edge_ms + age_ms,
        st.sampled_from(EDGES_MS),
        st.sampled_from(AGES_MS),
    ),
)

#: Few values each, the ends of int64 among them, so that ties and equal actions are common.
small_ids = st.sampled_from([-(2**63), -1, 0, 1, 2, 2**63 - 1])
ALL_KNOWN = 0x1F
known_bits = st.builds(lambda low, tags: low | tags << 4, st.integers(0, 15), st.integers(0, 3))


@st.composite
def records(draw: st.DrawFn) -> tuple[Any, ...]:
    """One ACTION record at T0, a play as often as all else."""
    return (
        draw(small_ids),
        draw(small_ids),
        T0,
        draw(st.sampled_from([0, 1, 7, 2**21 + 5, 2**39, MAX_VALUE - 1])),
        0,
        0,
        draw(small_ids),
        draw(small_ids),
        (draw(small_ids), 0, 0),
        draw(st.sampled_from([0, 65_535])),
        draw(st.sampled_from([0, 3, 32_767])),
        draw(st.one_of(st.just(2), st.sampled_from([kind.value for kind in ActionType]))),
        draw(st.one_of(st.just(ALL_KNOWN), known_bits)),
    )


@st.composite
def histories(
    draw: st.DrawFn, rows: int = 3, longest: int = 40
) -> tuple[NDArray[np.void], NDArray[np.intp], NDArray[np.int64]]:
    """Actions (a,), the row of each, and when each was sent (some late, some from the future).

    Few different ones at many times, or at few: the same again, and ties of what is not the same.
    """
    span_ms = draw(st.sampled_from([SPAN_MS // 8, SPAN_MS]))
    kinds = np.array(draw(st.lists(records(), min_size=1, max_size=6)), ACTION)
    moments = st.one_of(st.integers(0, span_ms), st.sampled_from(EDGES_MS))
    few = draw(st.one_of(st.none(), st.lists(moments, min_size=1, max_size=4)))
    n = draw(st.integers(0, longest))

    def each(of: st.SearchStrategy[int]) -> list[int]:
        return draw(st.lists(of, min_size=n, max_size=n))

    actions = kinds[np.array(each(st.integers(0, len(kinds) - 1)), np.intp)]
    actions["time_ms"] += np.array(each(st.sampled_from(few) if few else moments), np.int64)
    delays = st.one_of(st.integers(-1_500, 3_500), st.sampled_from(BOUNDS_MS))
    sent_ms = actions["time_ms"] + np.array(each(delays), np.int64)
    return actions, np.array(each(st.integers(0, rows - 1)), np.intp), sent_ms
