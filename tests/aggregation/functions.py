"""A view with every function, over filters and all kinds of columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from schemas.plan import (
    AccumulatorPlan,
    ConditionPlan,
    Dtype,
    FeaturePlan,
    FieldPlan,
    RingFunction,
    SequencePlan,
    ViewPlan,
)

HOP_MS = 1_000
TILES = 8  # of the rings: windows of 5, and 3 more for late actions

LONG = (ConditionPlan("value", ">=", (7,)),)
SOME = (ConditionPlan("scene", "!=", (0,)),)
PLACES = (ConditionPlan("position", "in", (0, 3)), ConditionPlan("value", "<=", (7,)))
OF_AUTHOR = (ConditionPlan("author", "<", (2,)), ConditionPlan("tag", ">", (-1,)))


@dataclass(frozen=True)
class Kept:
    """A ring of the view. dtype: of its field."""

    name: str
    function: RingFunction
    action: str
    column: str
    dtype: Dtype
    where: tuple[ConditionPlan, ...] = ()
    width: int = 1

    def plan(self) -> AccumulatorPlan:
        what = (self.function, self.action, self.column, HOP_MS, TILES, self.where, self.width)
        return AccumulatorPlan(self.name, "head", *what)


RINGS = (
    Kept("n", "count", "play|finish", "", "u32", LONG),
    Kept("placed", "count", "*", "", "u8", PLACES),
    Kept("low", "count", "play", "", "u16", (ConditionPlan("value", "==", (1,)),)),
    Kept("known", "count", "*", "position", "u8"),
    Kept("plays", "count", "play", "", "u32", SOME),
    Kept("total", "sum", "play", "value", "i64", SOME),
    Kept("squares", "squares", "play", "value", "i64", SOME, 2),
    Kept("least", "min", "*", "value", "u64", OF_AUTHOR),
    Kept("newest", "max", "*", "time_ms", "u64"),
    Kept("greatest", "max", "like|click", "position", "u64"),
    Kept("authors", "distinct", "*", "author", "u64", (), 3),
    Kept("items", "distinct", "play|like|share", "item", "u64", LONG, 2),
)
SEQUENCES = (
    SequencePlan("s", "play", ("item", "value"), ("s_item", "s_value"), "s_at", 3, where=SOME),
)


def windowed(name: str, kind: Any, *rings: str, tiles: int = 5, **more: Any) -> FeaturePlan:
    dtype: Any = "i64" if kind in ("window", "min", "max", "distinct") else "f64"
    return FeaturePlan(name, dtype, kind, rings[0], tiles=tiles, others=rings[1:], **more)


FEATURES = (
    windowed("long_ones", "window", "n"),
    windowed("known_places", "window", "known", tiles=8),
    windowed("mean_ms", "mean", "total", "plays"),
    windowed("mean_ms_2s", "mean", "total", "plays", tiles=2),
    windowed("std_ms", "std", "squares", "total", "plays"),
    windowed("std_ms_2s", "std", "squares", "total", "plays", tiles=2),
    windowed("least_ms", "min", "least"),
    windowed("newest_ms", "max", "newest", tiles=3),
    windowed("greatest_place", "max", "greatest"),
    windowed("authors_5s", "distinct", "authors"),
    windowed("authors_1s", "distinct", "authors", tiles=1),
    windowed("items_5s", "distinct", "items"),
    windowed("decayed_ms", "decayed_sum", "total", half_life_ms=1_500),
    windowed("decayed_n", "decayed_sum", "n", half_life_ms=60_000, tiles=8),
    windowed("placed_5s", "window", "placed"),
    windowed("low_5s", "window", "low"),
    FeaturePlan("least_each", "f64", "ratio", "least_ms", others=("low_5s",)),
    FeaturePlan("rate", "f64", "ratio", "long_ones", others=("known_places",)),
    FeaturePlan(
        "smooth", "f64", "ratio", "mean_ms", others=("authors_5s",), prior=0.25, weight=4.0
    ),
    FeaturePlan("last_item", "i64", "last", "s_item"),
    FeaturePlan("last_age", "i64", "last", "s_at", within_ms=4_000),
    FeaturePlan("last_value", "i64", "last", "s_value", within_ms=2_500),
)


def functions_view(ttl_ms: int = 0) -> ViewPlan:
    """A user's. Its skew is 2.5 s, its future 1 s."""
    stored: list[tuple[str, Dtype, int]] = [("head", "i64", 0)]
    stored += [(ring.name, ring.dtype, TILES * ring.width) for ring in RINGS]
    stored += [
        (name, "i64", each.capacity)
        for each in SEQUENCES
        for name in (*each.fields, each.time_field)
    ]
    return ViewPlan(
        name="functions",
        entity="user",
        kind="streamed",
        generation=1,
        fields=tuple(FieldPlan(index, *each) for index, each in enumerate(stored)),
        features=FEATURES,
        source="actions",
        ttl_ms=ttl_ms,
        skew_ms=2_500,
        future_ms=1_000,
        accumulators=tuple(ring.plan() for ring in RINGS),
        sequences=SEQUENCES,
    )
