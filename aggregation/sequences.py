"""Sequences: the newest K entries of all that ever matched, newest first.

Entries are ordered by event time, then by their columns, both descending; equal entries cannot be
told apart and each counts. The K first of a multiset in a total order depend on the multiset only.

Symbols: r rows, K capacity, m new entries, c columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregation.matching import run_numbers, run_starts

Array = NDArray[Any]
Index = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Entries:
    """New entries. group: (m,) row of each in [0, r), ascending. keys: the event time, then each
    column, (m,) each, as the row stores them; by time descending within a group."""

    group: Index
    keys: tuple[Array, ...]

    def ordered(self) -> Entries:
        """The same with ties in time ordered by the columns, descending."""
        time_ms, *columns = self.keys
        run = np.cumsum(_differs(self.group) | _differs(time_ms))  # (m,) one number a (row, time)
        tied = np.zeros(len(run), bool)
        tied[1:] = run[1:] == run[:-1]
        tied[:-1] |= tied[1:]
        at = np.flatnonzero(tied)
        if len(at) == 0 or not columns:
            return self
        descending = [~column[at] for column in reversed(columns)]  # ~x = -x - 1: no overflow
        order = at[np.lexsort((*descending, run[at]))]
        sorted_columns = [column.copy() for column in columns]
        for column in sorted_columns:
            column[at] = column[order]
        return Entries(self.group, (time_ms, *sorted_columns))

    def newest(self, capacity: int) -> tuple[Entries, Index]:
        """At most `capacity` of each group, and the rank of each within its group, (m,)."""
        starts = run_starts(self.group)
        rank = np.arange(len(self.group)) - starts[run_numbers(starts, len(self.group))]
        kept = rank < capacity
        if kept.all():
            return self, rank
        return Entries(self.group[kept], tuple(key[kept] for key in self.keys)), rank[kept]


def merge(held: tuple[Array, ...], lengths: Array, new: Entries) -> tuple[tuple[Array, ...], Array]:
    """The newest K of what is held and what is new.

    held: time and columns, (r, K) each, in order. lengths: (r,). Returns the same two, fresh.
    """
    rows, capacity = held[0].shape
    new, rank = new.ordered().newest(capacity)
    before = _held_before(held, lengths, new)  # (m,) held entries that stay ahead of each new one
    place = before + rank  # (m,)
    enter = place < capacity
    # A held entry moves back by the number of new entries ahead of it.
    ahead = np.bincount(new.group * (capacity + 1) + before, minlength=rows * (capacity + 1))
    moved = ahead.reshape(rows, capacity + 1).cumsum(axis=1)[:, :capacity]  # (r, K)
    moved += np.arange(capacity)
    stay = (moved < capacity) & (np.arange(capacity) < lengths[:, None])  # (r, K)
    # source[i, j]: where in (zero, new, held) the entry at place j of row i comes from.
    source = np.zeros((rows, capacity), np.intp)  # (r, K)
    source[new.group[enter], place[enter]] = 1 + np.flatnonzero(enter)
    row, column = np.nonzero(stay)
    source[row, moved[row, column]] = 1 + len(rank) + row * capacity + column
    merged = tuple(
        np.concatenate((np.zeros(1, old.dtype), key, old.reshape(-1)))[source]
        for key, old in zip(new.keys, held, strict=True)
    )
    added = np.bincount(new.group, minlength=rows)
    return merged, np.minimum(lengths + added, capacity)


def _held_before(held: tuple[Array, ...], lengths: Array, new: Entries) -> Index:
    """How many held entries of its row order before each new entry. Returns (m,)."""
    before = np.zeros(len(new.group), np.intp)
    newest = held[0][new.group, 0]  # (m,)
    at = np.flatnonzero((lengths[new.group] > 0) & (newest >= new.keys[0]))
    if len(at) == 0:
        return before
    group = new.group[at]
    greater = np.zeros((len(at), held[0].shape[1]), bool)  # (len(at), K)
    equal = np.arange(held[0].shape[1]) < lengths[group][:, None]
    for old, key in zip(held, new.keys, strict=True):
        there, here = old[group], key[at][:, None]
        greater |= equal & (there > here)
        equal &= there == here
    before[at] = greater.sum(axis=1)
    return before


def _differs(values: Array) -> NDArray[np.bool_]:
    """True where a value is not the one before it; the first is True. (m,) bool."""
    return np.concatenate(([True], values[1:] != values[:-1]))


def visible(times: Array, lengths: Array, now_ms: int) -> tuple[Array, Array]:
    """Which entries are no newer than now.

    times: (r, K), newest first. Returns the number of leading entries to skip and of those that
    remain, (r,) int64 each.
    """
    late = times > now_ms  # (r, K)
    if not np.count_nonzero(late):
        return np.zeros(len(times), np.int64), lengths.astype(np.int64)
    skip = (late & (np.arange(times.shape[1]) < lengths[:, None])).sum(axis=1)
    return skip, lengths - skip


def shifted(values: Array, skip: Array, remain: Array) -> Array:
    """Values (r, K) without the first skip (r,) of each row, zero behind the remaining ones."""
    place = np.arange(values.shape[1]) + skip[:, None]  # (r, K)
    taken = np.take_along_axis(values, np.minimum(place, values.shape[1] - 1), axis=1)
    taken[np.arange(values.shape[1]) >= remain[:, None]] = 0
    return taken
