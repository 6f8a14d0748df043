"""What a tile keeps of its actions, and how more of them are added.

| function | numbers a tile | of the values v of a tile's actions |
|---|---|---|
| `count` | 1, u16 or u32 | how many; cut off at the dtype's maximum |
| `sum` | 1, i64 | sum of v; cut off at 2^51 - 1 |
| `squares` | 2, i64 | S = sum of v^2 as (S mod 2^40, S div 2^40); cut off at 2^91 - 1 |
| `min`, `max` | 1, u64 | 1 + the smallest, the greatest v |
| `distinct` | k + 1, u64 | 1 + the k + 1 smallest hashes of v, ascending (`aggregation.distinct`) |

A 0 stands for nothing, so a tile begins as zeros whatever it keeps. Values lie in [0, 2^48), those
that are summed in [0, 2^40): `schemas.actions` refuses others. Then each of these is a function of
the multiset of the values alone: they only grow (or only fall) towards where they are cut off. The
ends leave room for the sums over the 4,096 tiles that a window may have.

Symbols: n rows, T tiles of a ring, W numbers a tile, m actions, u tiles that they fall into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.distinct import add_distinct
from aggregation.rings import TileRuns
from schemas.plan import RingFunction

Array = NDArray[Any]

#: Most tiles that a window may have.
MAX_TILES: Final = 4_096
#: Most actions in one call, so that no partial sum of int64 overflows.
MAX_ACTIONS: Final = 1 << 22
SUM_LIMIT: Final = (1 << 51) - 1
WORD_BITS: Final = 40
WORD: Final = (1 << WORD_BITS) - 1
_HALF_BITS: Final = WORD_BITS // 2
_ONE: Final = np.uint64(1)


#: (ring (n, T * W), changed in place; runs of at least one action; values (m,) int64) → tiles that
#: this call cut off.
Add = Callable[[Array, TileRuns, NDArray[np.int64]], int]


def _add_counts(ring: Array, runs: TileRuns, values: Array) -> int:
    limit = np.iinfo(ring.dtype).max
    wide = ring[runs.rows, runs.slots].astype(np.int64) + runs.counts  # (u,)
    ring[runs.rows, runs.slots] = np.minimum(wide, limit)
    return int(np.count_nonzero(wide > limit))


def _add_values(ring: Array, runs: TileRuns, values: Array) -> int:
    wide = ring[runs.rows, runs.slots] + np.add.reduceat(values, runs.starts)  # (u,)
    ring[runs.rows, runs.slots] = np.minimum(wide, SUM_LIMIT)
    return int(np.count_nonzero(wide > SUM_LIMIT))


def _add_squares(ring: Array, runs: TileRuns, values: Array) -> int:
    # v = a * 2^20 + b: v^2 = a^2 * 2^40 + 2ab * 2^20 + b^2, each part within 2^62
    upper, lower = values >> _HALF_BITS, values & ((1 << _HALF_BITS) - 1)  # (m,)
    rest = (2 * upper * lower << _HALF_BITS) + lower * lower  # (m,)
    low = ring[runs.rows, 2 * runs.slots] + np.add.reduceat(rest & WORD, runs.starts)  # (u,)
    high = np.add.reduceat(upper * upper + (rest >> WORD_BITS), runs.starts)  # (u,)
    high += ring[runs.rows, 2 * runs.slots + 1] + (low >> WORD_BITS)
    over = high > SUM_LIMIT
    ring[runs.rows, 2 * runs.slots] = np.where(over, WORD, low & WORD)
    ring[runs.rows, 2 * runs.slots + 1] = np.minimum(high, SUM_LIMIT)
    return int(np.count_nonzero(over))


def _add_min(ring: Array, runs: TileRuns, values: Array) -> int:
    least = np.minimum.reduceat(values, runs.starts).astype(np.uint64)  # (u,)
    held = ring[runs.rows, runs.slots] - _ONE  # (u,) nothing wraps around to the greatest
    ring[runs.rows, runs.slots] = np.minimum(held, least) + _ONE
    return 0


def _add_max(ring: Array, runs: TileRuns, values: Array) -> int:
    greatest = np.maximum.reduceat(values, runs.starts).astype(np.uint64)  # (u,)
    ring[runs.rows, runs.slots] = np.maximum(ring[runs.rows, runs.slots], greatest + _ONE)
    return 0


ADD: Final[dict[RingFunction, Add]] = {
    "count": _add_counts,
    "sum": _add_values,
    "squares": _add_squares,
    "min": _add_min,
    "max": _add_max,
    "distinct": add_distinct,
}
