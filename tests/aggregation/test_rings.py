"""Which slots of a ring a window takes: by table, by arithmetic, and as it is defined."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from aggregation.rings import held_tiles, inside_window, window_slots

INT64 = (1 << 63) - 1
NOW_TILE = 5_800_000


@given(
    st.sampled_from([1, 2, 8, 25, 127, 128, 129, 200]),
    st.data(),
    st.integers(0, 1 << 32),
)
def test_the_slots_of_a_window(ring_tiles: int, data: st.DataObject, seed: int) -> None:
    """Short rings have tables, long ones have none."""
    tiles = data.draw(st.integers(1, ring_tiles))
    now_tile = NOW_TILE + data.draw(st.integers(0, ring_tiles))
    draw = np.random.default_rng(seed)
    n = 12
    heads = now_tile + draw.integers(-ring_tiles - tiles - 2, ring_tiles + 3, n)  # (n,)
    heads[:3] = 0, INT64, -INT64  # a row of whatever origin
    held = draw.random(n) < 0.8  # (n,)
    inside = inside_window(heads, held, now_tile, ring_tiles, tiles)  # (n, T)
    expected = np.zeros((n, ring_tiles), bool)
    for row in range(n):
        for slot in range(ring_tiles):
            # The newest tile up to the head that rests in the slot.
            tile = int(heads[row]) - (int(heads[row]) - slot) % ring_tiles
            expected[row, slot] = held[row] and now_tile - tiles < tile <= now_tile
    np.testing.assert_array_equal(inside, expected)
    newest_first = inside[:, window_slots(now_tile, ring_tiles, tiles)]  # (n, w)
    by_age = held_tiles(heads[3:], held[3:], now_tile, ring_tiles, tiles)
    np.testing.assert_array_equal(newest_first[3:], by_age)
