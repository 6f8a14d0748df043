"""Rings of tiles: `tile(t) = floor(t / hop)`, tile τ rests in slot τ mod T.

A ring whose newest tile (its head) is h holds the tiles (h - T, h]. When the head moves on, the
slots of the tiles that left are zeroed; an action older than all T tiles is dropped. Since counts
only grow until they saturate, and sums are exact, a ring depends on the set of actions only.

Symbols: n rows, T slots of a ring, m actions, w tiles of a window, A rings of one shape.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregation.matching import run_starts

Array = NDArray[Any]
Index = NDArray[np.intp]


def moved_slots(old: Array, new: Array, tiles: int) -> NDArray[np.bool_]:
    """Which slots must be zeroed when heads move. old, new: (n,) int64, new >= old. (n, T) bool."""
    step = np.minimum(new - old, tiles)  # (n,) tiles that enter
    age = np.arange(tiles) - ((old + 1) % tiles)[:, None]  # (n, T) from the first slot to enter
    age[age < 0] += tiles
    moved: NDArray[np.bool_] = age < step[:, None]  # (n, T)
    return moved


def add_counts(ring: Array, cells: Index) -> int:
    """Count one at each cell, saturating at the dtype's maximum.

    ring: (n, T) unsigned, contiguous, changed in place. cells: (m,) flat indexes, equal ones
    adjacent. Returns how many cells were cut off at the maximum.
    """
    if len(cells) == 0:
        return 0
    starts = run_starts(cells)
    counts = np.diff(starts, append=len(cells))
    at = cells[starts]
    flat = ring.reshape(-1)
    limit = np.iinfo(ring.dtype).max
    wide = flat[at].astype(np.int64) + counts
    flat[at] = np.minimum(wide, limit)
    return int((wide > limit).sum())


def add_values(ring: Array, cells: Index, values: NDArray[np.int64]) -> None:
    """Add values (m,) at cells (m,), equal ones adjacent. ring: (n, T) int64, changed in place."""
    if len(cells) == 0:
        return
    starts = run_starts(cells)
    ring.reshape(-1)[cells[starts]] += np.add.reduceat(values, starts)


def inside_window(heads: Array, held: Array, now_tile: int, ring_tiles: int, tiles: int) -> Array:
    """Which slots hold a tile in (now_tile - w, now_tile].

    heads: (n,) int64 newest tiles; held: (n,) bool, False where a ring is empty. ring_tiles: T.
    tiles: w <= T. Returns (n, T) bool.
    """
    ahead = np.where(held, heads - now_tile, ring_tiles)  # (n,) tiles from now to the head
    behind = _behind_head(ring_tiles)[heads % ring_tiles] - ahead[:, None]  # (n, T) from now back
    inside: Array = behind.view(np.uint64) < np.uint64(tiles)  # below 0 is huge
    return inside


@cache
def _behind_head(ring_tiles: int) -> Array:
    """How many tiles a slot's tile lies behind the head's, by the head's slot. (T, T) int64."""
    slots = np.arange(ring_tiles)
    return (slots[:, None] - slots) % ring_tiles


def window_totals(rings: Array, inside: Array) -> Array:
    """The totals over slots. rings: (A, n, T) int64. inside: (n, T) bool. Returns (A, n) int64."""
    totals: Array = np.einsum("ant,nt->an", rings, inside.astype(np.int64))
    return totals
