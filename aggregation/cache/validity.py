"""How long the values of a row hold: finalising it at any time in [from, until) gives the same.

| kind | changes when |
|---|---|
| `field` | never |
| `window`, `mean`, `std`, `min`, `max`, `distinct` | a tile that holds something leaves or enters |
| `decayed_sum` | with each tile, as long as a tile of the window holds something |
| `sequence` | an entry of the future comes to pass |
| `last` | so, and when the entry is too old |
| `age`, `last` of a time | with each millisecond, as long as there is an entry |

and all of a row at its TTL. A kind that is not known here holds for its own millisecond only.

Symbols: n rows, T slots of a ring, w tiles of a window, K capacity of a sequence.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.rings import behind_head
from schemas.plan import FeaturePlan, ViewPlan
from schemas.row import Rows

Array = NDArray[Any]
Times = NDArray[np.int64]

ALWAYS: Final = np.iinfo(np.int64).min
NEVER: Final = np.iinfo(np.int64).max
_TILED: Final = ("window", "mean", "std", "min", "max", "distinct", "decayed_sum")
_LISTED: Final = ("sequence", "age", "last")
_HELD: Final = ("field", "ratio")  # a ratio changes when what it is of does


@dataclass(slots=True)
class Spans:
    """When the values of n rows hold. from_ms, until_ms: (n,), the end not included.

    fleeting: (n,) bool, rows of which something changes with each millisecond.
    """

    from_ms: Times
    until_ms: Times
    fleeting: NDArray[np.bool_]

    @classmethod
    def unbounded(cls, n: int) -> Spans:
        """The spans of n rows whose values hold always."""
        return cls(np.full(n, ALWAYS), np.full(n, NEVER), np.zeros(n, bool))

    def within(self, from_ms: Times, until_ms: Times) -> None:
        """They hold no longer than that, (n,) each."""
        np.maximum(self.from_ms, from_ms, out=self.from_ms)
        np.minimum(self.until_ms, until_ms, out=self.until_ms)

    def meet(self, other: Spans) -> None:
        """They hold no longer than those of the same items."""
        self.within(other.from_ms, other.until_ms)
        self.fleeting |= other.fleeting

    def instant(self, which: Array, now_ms: int) -> None:
        """Let the rows in `which`, (n,) bool, hold for this millisecond only."""
        self.within(np.where(which, now_ms, ALWAYS), np.where(which, now_ms + 1, NEVER))
        self.fleeting |= which


@dataclass(frozen=True, slots=True)
class _Window:
    """Windows of one length over rings of one shape. fades: changes with each tile."""

    head: str
    hop_ms: int
    ring_tiles: int
    tiles: int
    fades: bool
    rings: tuple[tuple[str, int], ...]  # (field, numbers a tile)

    def bound(self, rows: Rows, now_ms: int, spans: Spans) -> None:
        holds: Array = np.zeros((len(rows), self.ring_tiles), bool)  # (n, T)
        for field, width in self.rings:
            state = rows.values[field]  # (n, T * W)
            if width > 1:
                state = np.any(state.reshape(len(rows), self.ring_tiles, width), axis=2)
            holds = holds | (state != 0)
        holds &= rows.present[self.head][:, None]
        heads, now_tile = rows.values[self.head], now_ms // self.hop_ms
        # (n, T) how many tiles each slot's lies behind now's; those below 0 are of the future
        behind = behind_head(self.ring_tiles)[heads % self.ring_tiles]
        behind = behind - (heads - now_tile)[:, None]
        leaves = 1 if self.fades else self.tiles - behind
        steps = np.where(behind >= 0, leaves, -behind)  # (n, T) tiles until it changes something
        steps = np.where(holds & (behind < self.tiles), steps, NEVER)
        step = steps.min(axis=1)  # (n,)
        some = step < NEVER
        until_ms = (now_tile + np.where(some, step, 0)) * self.hop_ms
        from_ms = np.where(holds.any(axis=1), now_tile * self.hop_ms, ALWAYS)
        spans.within(from_ms, np.where(some, until_ms, NEVER))


@dataclass(frozen=True, slots=True)
class _List:
    """One sequence. aging: some feature is an age. within_ms: bounds of `last` features."""

    time_field: str
    aging: bool
    within_ms: tuple[int, ...]

    def bound(self, rows: Rows, now_ms: int, spans: Spans) -> None:
        times = rows.values[self.time_field]  # (n, K), newest first
        held = np.arange(times.shape[1]) < rows.lengths[self.time_field][:, None]  # (n, K)
        coming, passed = held & (times > now_ms), held & (times <= now_ms)
        newest = np.where(passed, times, ALWAYS).max(axis=1, initial=ALWAYS)  # (n,)
        spans.within(newest, np.where(coming, times, NEVER).min(axis=1, initial=NEVER))
        some: Array = np.any(passed, axis=1)  # (n,)
        if self.aging:
            spans.instant(some, now_ms)
        for within_ms in self.within_ms:
            end = np.where(some, newest, 0) + within_ms  # (n,)
            young = some & (now_ms < end)
            spans.within(np.where(some & ~young, end, ALWAYS), np.where(young, end, NEVER))


class Validity:
    """How long some features of a view hold, compiled once."""

    def __init__(self, view: ViewPlan, features: Collection[str]) -> None:
        known = {feature.name: feature for feature in view.features}
        names = set(features)
        for name in features:
            if known[name].kind == "ratio":
                names |= set(known[name].sources)
        wanted = [known[name] for name in sorted(names)]
        self._ttl_ms = view.ttl_ms
        self._parts: tuple[_Window | _List, ...] = (*_windows(view, wanted), *_lists(view, wanted))
        tiled, listed = (*_TILED, *_HELD), _LISTED
        self._unknown = any(each.kind not in (*tiled, *listed) for each in wanted)

    def __call__(self, rows: Rows, now_ms: int) -> Spans:
        """Of n rows as they are finalised at now_ms: now_ms lies inside each span."""
        spans = Spans.unbounded(len(rows))
        for part in self._parts:
            part.bound(rows, now_ms, spans)
        if self._unknown:
            spans.instant(np.ones(len(rows), bool), now_ms)
        if self._ttl_ms > 0:
            end = rows.newest_ms + self._ttl_ms + 1  # (n,) the first ms of a row that is no more
            expired = end <= now_ms
            spans.until_ms = np.where(expired, NEVER, np.minimum(spans.until_ms, end))
            spans.from_ms = np.where(expired, end, spans.from_ms)
            spans.fleeting &= ~expired
        return spans


def _windows(view: ViewPlan, wanted: Iterable[FeaturePlan]) -> list[_Window]:
    rings = {ring.field: ring for ring in view.accumulators}
    groups: dict[tuple[str, int, int, int, bool], dict[str, int]] = {}
    for feature in wanted:
        if feature.kind not in _TILED:
            continue
        for field in feature.sources:
            if field in rings:
                ring = rings[field]
                fades = feature.kind == "decayed_sum"
                key = (ring.head, ring.hop_ms, ring.tiles, feature.tiles, fades)
                groups.setdefault(key, {})[field] = ring.width
    return [_Window(*key, tuple(fields.items())) for key, fields in groups.items()]


def _lists(view: ViewPlan, wanted: Iterable[FeaturePlan]) -> list[_List]:
    found = []
    features = [feature for feature in wanted if feature.kind in _LISTED]
    for held in view.sequences:
        of = [each for each in features if each.source in (*held.fields, held.time_field)]
        if of:
            aging = any(
                each.kind == "age" or (each.kind == "last" and each.source == held.time_field)
                for each in of
            )
            bounds = {each.within_ms for each in of if each.kind == "last" and each.within_ms}
            found.append(_List(held.time_field, aging, tuple(sorted(bounds))))
    return found
