"""Rings of tiles: `tile(t) = floor(t / hop)`, tile τ rests in slot τ mod T.

A ring whose newest tile (its head) is h holds the tiles (h - T, h]. When the head moves on, the
slots of the tiles that left are zeroed; an action older than all T tiles is dropped. What a tile
keeps depends on the set of its actions only (`aggregation.tiles`), and so does a ring.

Symbols: n rows, T slots of a ring, m actions, u tiles they fall into, w tiles of a window, A rings
of one shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.matching import run_numbers, run_starts

Array = NDArray[Any]
Index = NDArray[np.intp]

_TABLE_TILES: Final = 128  # rings up to so many slots have tables: 33 kB each


def moved_slots(old: Array, new: Array, tiles: int) -> NDArray[np.bool_]:
    """Which slots must be zeroed when heads move. old, new: (n,) int64, new >= old. (n, T) bool."""
    step = np.minimum(new - old, tiles)  # (n,) tiles that enter
    age = np.arange(tiles) - ((old + 1) % tiles)[:, None]  # (n, T) from the first slot to enter
    age[age < 0] += tiles
    moved: NDArray[np.bool_] = age < step[:, None]  # (n, T)
    return moved


@dataclass(frozen=True, slots=True)
class TileRuns:
    """Actions by the tile of the row that they fall into.

    starts: (u,) where the run of each tile begins among the m actions. rows, slots: (u,) its row in
    a ring's column, and its place in the ring. tiles: T.
    """

    starts: Index
    rows: Index
    slots: Index
    tiles: int
    actions: int

    @classmethod
    def of(cls, rows: Index, slots: Index, tiles: int) -> TileRuns:
        """rows, slots: (m,) of each action, m > 0; those of one tile are adjacent."""
        starts = run_starts(rows * tiles + slots)
        return cls(starts, rows[starts], slots[starts], tiles, len(rows))

    @property
    def counts(self) -> Index:
        """How many actions fall into each tile, (u,)."""
        return np.diff(self.starts, append=self.actions)

    @property
    def numbers(self) -> Index:
        """Which of the u tiles each action falls into, (m,) ascending."""
        return run_numbers(self.starts, self.actions)


def inside_window(heads: Array, held: Array, now_tile: int, ring_tiles: int, tiles: int) -> Array:
    """Which slots hold a tile in (now_tile - w, now_tile].

    heads: (n,) int64 newest tiles; held: (n,) bool, False where a ring is empty. ring_tiles: T.
    tiles: w <= T. Returns (n, T) bool.
    """
    if ring_tiles > _TABLE_TILES:
        return _inside(heads - now_tile, held, now_tile, (ring_tiles, tiles))
    place = heads - (now_tile - tiles)  # (n,) 1 for a head that holds the window's oldest tile only
    np.minimum(place, ring_tiles + tiles, out=place)
    np.maximum(place, 0, out=place)
    place *= held
    found: Array = _inside_by_head(now_tile % ring_tiles, ring_tiles, tiles).take(place, axis=0)
    return found


@lru_cache(maxsize=512)
def _inside_by_head(now_slot: int, ring_tiles: int, tiles: int) -> Array:
    """What `inside_window` says of a head w behind now, w - 1, …, T ahead: (w + T + 1, T) bool.

    now_slot: where tile now rests. Nothing of a ring w behind is inside, nor of one T ahead.
    """
    ahead = np.arange(-tiles, ring_tiles + 1)  # (w + T + 1,)
    return _inside(ahead, np.ones(len(ahead), bool), now_slot, (ring_tiles, tiles))


def _inside(ahead: Array, held: Array, now_tile: int, window: tuple[int, int]) -> Array:
    """`inside_window` by arithmetic. ahead: (n,) tiles from now to the head. window: T, w."""
    ring_tiles, tiles = window
    behind = behind_head(ring_tiles)[(now_tile + ahead) % ring_tiles]  # (n, T)
    behind = behind - np.where(held, ahead, ring_tiles)[:, None]  # (n, T) from now back
    inside: Array = behind.view(np.uint64) < np.uint64(tiles)  # below 0 is huge
    return inside


def window_slots(now_tile: int, ring_tiles: int, tiles: int) -> Index:
    """The slots of the tiles now, now - 1, …, w of them. ring_tiles: T. Returns (w,)."""
    slots: Index = (now_tile - np.arange(tiles)) % ring_tiles
    return slots


def held_tiles(heads: Array, held: Array, now_tile: int, ring_tiles: int, tiles: int) -> Array:
    """Which of the tiles now, now - 1, … a ring still holds. heads, held, T, w: as above.

    Returns (n, w) bool.
    """
    behind = (heads - now_tile)[:, None] + np.arange(tiles)  # (n, w) how far behind the head
    inside: Array = (behind >= 0) & (behind < ring_tiles) & held[:, None]
    return inside


@cache
def behind_head(ring_tiles: int) -> Array:
    """How many tiles a slot's tile lies behind the head's, by the head's slot. (T, T) int64."""
    slots = np.arange(ring_tiles)
    return (slots[:, None] - slots) % ring_tiles


def total_dtype(ring: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that sums 2^16 tiles of a ring exactly: narrow ones move half the bytes."""
    return np.dtype(np.uint32) if ring.kind == "u" and ring.itemsize <= 2 else np.dtype(np.int64)


def window_totals(rings: Array, inside: Array) -> Array:
    """The totals over slots. rings: (A, n, T) of a `total_dtype`. inside: (n, T) bool. Returns
    (A, n) int64.
    """
    totals: Array = np.einsum("ant,nt->an", rings, inside.astype(rings.dtype))
    return totals.astype(np.int64, copy=False)
