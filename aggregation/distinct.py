"""Counting distinct values: of each tile the k + 1 smallest hashes of its values (bottom-k).

While no tile of a window holds more than k distinct values, the union of its hashes is all of them
and the count is exact. Where a tile is full, t being the smallest of the greatest hashes of the
full ones, every hash of the window below t is known, and d of them estimate d / t (t as a fraction
of 2^64). The relative standard error is about 1 / sqrt(k - 1).

Sources: Bar-Yossef et al., Counting Distinct Elements in a Data Stream, 2002 (the estimate from the
k-th smallest hash); Beyer et al., On Synopses for Distinct-Value Estimation under Multiset
Operations, SIGMOD 2007 (unions of them); Dasgupta et al., A Framework for Estimating Stream
Expression Cardinalities, ICDT 2016 (the smallest threshold of a union leaves it unbiased).

The hash is xxh3-64 of the value's 8 bytes, without seed, and at most 2^64 - 2; a row holds one more
than it, 0 where there is none. The k + 1 smallest of a set depend on the set only.

Symbols: n rows, T tiles of a ring, W = k + 1 hashes a tile, m actions, u tiles they fall into.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.matching import run_numbers, run_starts
from aggregation.rings import TileRuns
from schemas.ids import hash64

Array = NDArray[Any]

_ONE: Final = np.uint64(1)
_NOTHING: Final = np.uint64(0xFFFF_FFFF_FFFF_FFFF)  # what an empty place, 0, is less one
_HASHES: Final = float(1 << 64)


def stored_hashes(values: NDArray[np.int64]) -> NDArray[np.uint64]:
    """1 + the hash of each value, as rows hold them. (m,) int64 → (m,) uint64."""
    return np.minimum(hash64(values), _NOTHING - _ONE) + _ONE


def add_distinct(ring: Array, runs: TileRuns, values: NDArray[np.int64]) -> int:
    """Keep the W smallest hashes of each tile.

    ring: (n, T * W) uint64, changed in place. values: (m,) of the actions of `runs`. Returns 0:
    nothing is cut off, an estimate takes over.
    """
    width = ring.shape[1] // runs.tiles
    within = runs.slots[:, None] * width + np.arange(width)  # (u, W)
    held = ring[runs.rows[:, None], within]  # (u, W) uint64, ascending, then zeros
    tile, hashes = runs.numbers, stored_hashes(values)  # (m,)
    greatest = held[:, -1][tile] - _ONE  # (m,) not yet full: beyond any hash
    new = np.flatnonzero(hashes - _ONE < greatest)
    new = new[~(held[tile[new]] == hashes[new, None]).any(axis=1)]
    if len(new) == 0:
        return 0
    tile, rank, hashes = _smallest(tile[new], hashes[new], width)  # (l,)
    changed = np.flatnonzero(rank == 0)
    group = run_numbers(changed, len(tile))
    changed = tile[changed]  # (c,) tiles that gain a hash
    merged = np.zeros((len(changed), width + int(rank.max()) + 1), np.uint64)
    merged[:, :width] = held[changed]
    merged[group, width + rank] = hashes
    merged -= _ONE  # empty places go last
    merged.sort(axis=1)
    ring[runs.rows[changed, None], within[changed]] = merged[:, :width] + _ONE
    return 0


def _smallest(tile: Array, hashes: Array, width: int) -> tuple[Array, Array, Array]:
    """The W smallest distinct hashes of each tile: tile, rank within it from 0, and hash, (l,)."""
    order = np.lexsort((hashes, tile))
    tile, hashes = tile[order], hashes[order]
    first = np.ones(len(order), bool)
    first[1:] = (tile[1:] != tile[:-1]) | (hashes[1:] != hashes[:-1])
    tile, hashes = tile[first], hashes[first]
    starts = run_starts(tile)
    rank = np.arange(len(tile)) - starts[run_numbers(starts, len(tile))]
    kept = rank < width
    return tile[kept], rank[kept], hashes[kept]


def estimate(tiles: Array, rows: NDArray[np.intp], n: int) -> NDArray[np.int64]:
    """How many distinct values the windows of n rows hold.

    tiles: (p, W) uint64 as stored, the tiles of all windows. rows: (p,) the row of each, ascending.
    Returns (n,) int64: exact where no tile of a row is full.
    """
    threshold = np.full(n, _NOTHING)  # (n,) uint64
    starts = run_starts(rows)
    least = tiles - _ONE  # (p, W) empty places are _NOTHING
    if len(rows):
        threshold[rows[starts]] = np.minimum.reduceat(least[:, -1], starts)
    tile, place = np.nonzero(least < threshold[rows, None])
    row, hashes = rows[tile], least[tile, place]  # (h,)
    begins = run_starts(row)
    known = np.full((n, int(np.diff(begins, append=len(row)).max(initial=0)) + 1), _NOTHING)
    known[row, np.arange(len(row)) - begins[run_numbers(begins, len(row))]] = hashes
    known.sort(axis=1)  # (n, most hashes of a row + 1), so that the last is _NOTHING
    count: NDArray[np.int64] = np.count_nonzero(known[:, 1:] != known[:, :-1], axis=1)
    if (threshold == _NOTHING).all():
        return count
    scale = np.where(threshold == _NOTHING, 1.0, _HASHES / (threshold.astype(np.float64) + 1.0))
    whole: NDArray[np.int64] = np.rint(count * scale).astype(np.int64)
    return whole
