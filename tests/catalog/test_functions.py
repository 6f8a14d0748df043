"""Functions, action types and conditions: from a declaration to the plan, and what is refused."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from feast import Field
from feast.aggregation import Aggregation
from feast.types import Float64, Int64

from aggregation.finalise import finalise
from aggregation.fold import fold
from catalog.compiler import Definitions, compile_plan
from catalog.declare import (
    DAY,
    HOUR,
    MINUTE,
    StreamedFeatureView,
    Windowed,
    boundaries,
    column,
    count,
    decayed_sum,
    distinct,
    greatest,
    hashed,
    last,
    last_n,
    mean,
    only,
    recent,
    smallest,
    smoothed,
    std,
    total,
)
from catalog.difference import difference
from catalog.durations import DAY_MS, HOUR_MS
from catalog.functions import NUMERIC
from schemas.actions import ACTION, KNOWN_AUTHOR, ActionType
from schemas.errors import DeclarationError
from schemas.layout import layout_of
from schemas.plan import ConditionPlan, Plan, ViewPlan, dump_plan, load_plan
from schemas.row import empty_rows
from tests.catalog.declarations import activity_of, user

SLOT = boundaries([1, 10, 100])
LONG = only("play.value", "value >= 3000 and scene in (2, 1, 2)")


def declared(*windows: Any) -> Definitions:
    """One streamed view, without services."""
    return Definitions((user,), (activity_of(*windows),), ())


def compiled(*windows: Any, parent: Plan | None = None) -> Plan:
    plan = compile_plan(declared(*windows), parent)
    assert load_plan(dump_plan(plan)) == plan
    return plan


def view_of(*windows: Any) -> ViewPlan:
    return compiled(*windows).view("user_activity")


EVERY = (
    count("plays", "play", HOUR, SLOT),
    count("long_plays", only("play", "value >= 3000"), HOUR, SLOT),
    count("watched", only("play", also=["finish", "long_view"]), HOUR, SLOT),
    total("long_ms", LONG, DAY, SLOT),
    mean("mean_ms", "play.value", HOUR, SLOT),
    std("std_ms", "play.value", HOUR, SLOT),
    smallest("first_place", "click.position", DAY, SLOT),
    greatest("newest", "*.time_ms", HOUR),
    distinct("authors", "play.author", DAY, SLOT, capacity=16),
    decayed_sum("decayed_ms", "play.value", DAY, SLOT, half_life=6 * HOUR),
    decayed_sum("decayed_plays", "play", DAY, SLOT, half_life=6 * HOUR),
    last("last_item", "play.item", hashed(8)),
    last("since_like", "like.age_ms", SLOT, within=DAY),
    smoothed("long_rate", "long_plays", "plays", SLOT, prior=0.25, weight=20),
    last_n("long_items", only("play.item", "value >= 3000"), 5),
    recent("likes", only("like", "scene != 0"), 3, [column("liked", "item")]),
)


def test_every_function_compiles_to_rings_that_are_shared() -> None:
    view = view_of(*EVERY)
    rings = {ring.field: ring for ring in view.accumulators}
    assert set(rings) == {
        *(
            "count_play_5min",
            "count_play_value_ge_3000_5min",
            "count_play_or_finish_or_long_view_5min",
        ),
        *("sum_play_value_5min", "squares_play_value_5min", "max_any_time_ms_5min"),
        *(
            "count_play_1h",
            "sum_play_value_1h",
            "min_click_position_1h",
            "distinct16_play_author_1h",
        ),
        "sum_play_value_scene_in_1_2_value_ge_3000_1h",
    }
    assert {ring.head for ring in rings.values()} == {"head_5min", "head_1h"}
    dtypes = {field.name: (field.dtype, field.capacity) for field in view.fields}
    assert dtypes["count_play_5min"] == ("u32", 14)  # the mean needs it
    assert dtypes["count_play_1h"] == ("u16", 25)
    assert dtypes["squares_play_value_5min"] == ("i64", 28)
    assert dtypes["distinct16_play_author_1h"] == ("u64", 17 * 25)
    assert rings["sum_play_value_scene_in_1_2_value_ge_3000_1h"].where == (
        ConditionPlan("scene", "in", (1, 2)),
        ConditionPlan("value", ">=", (3_000,)),
    )
    std_ms, authors = view.feature("std_ms"), view.feature("authors")
    assert std_ms.sources == ("squares_play_value_5min", "sum_play_value_5min", "count_play_5min")
    assert (std_ms.dtype, authors.dtype) == ("f64", "i64")
    assert view.feature("decayed_ms").half_life_ms == 6 * HOUR_MS
    assert view.feature("since_like").within_ms == DAY_MS
    assert view.feature("long_rate").sources == ("long_plays", "plays")
    sequences = {each.name: each for each in view.sequences}
    assert set(sequences) == {
        *("last_play_item", "last_like_time", "last_play_item_value_ge_3000", "likes")
    }
    assert sequences["last_play_item"].capacity == 4
    assert sequences["likes"].where == (ConditionPlan("scene", "!=", (0,)),)


def test_what_is_declared_is_what_is_read() -> None:
    """From a declaration to values, through fold and finalise."""
    view = view_of(*EVERY)
    rows = empty_rows(layout_of(view), np.array([7], np.int64))
    now_ms = 1_650_800_000_000 // DAY_MS * DAY_MS + 12 * HOUR_MS
    actions = np.zeros(4, ACTION)
    actions["type"] = [ActionType.PLAY, ActionType.PLAY, ActionType.LIKE, ActionType.FINISH]
    actions["time_ms"] = now_ms - np.array([1, 2, 3, 7 * HOUR_MS])
    actions["value"], actions["scene"] = [1_000, 5_000, 0, 0], [1, 2, 1, 1]
    actions["item"], actions["author"] = [10, 11, 12, 13], [20, 20, 21, 22]
    actions["known"] = KNOWN_AUTHOR
    fold(view, rows, np.zeros(4, int), actions, actions["time_ms"] + 1)
    features = finalise(view, rows, now_ms)
    scalars = {
        name: values[0].item() for name, values in features.values.items() if values.ndim == 1
    }
    assert scalars == {
        "plays": 2,
        "long_plays": 1,
        "watched": 2,
        "long_ms": 5_000,
        "mean_ms": 3_000.0,
        "std_ms": 2_000.0,
        "first_place": 0,
        "newest": now_ms - 1,
        "authors": 1,
        "decayed_ms": pytest.approx(6_000 * 2 ** (-1 / 6)),
        "decayed_plays": pytest.approx(2 * 2 ** (-1 / 6)),
        "last_item": 10,
        "since_like": 3,
        "long_rate": (1 + 0.25 * 20) / (2 + 20),
    }
    assert features.null["first_place"][0]
    assert features.values["long_items"][0].tolist() == [11, 0, 0, 0, 0]
    assert features.values["liked"][0].tolist() == [12, 0, 0]


def test_text_that_means_the_same_shares_a_ring() -> None:
    spellings = (
        only("play", "value>=3000 and scene in (1,2)", also=["like"]),
        only("like", "scene in (2, 1, 2)  and  value >= 3000", also=["play", "like"]),
    )
    view = view_of(*(count(f"n{i}", each, HOUR) for i, each in enumerate(spellings)))
    assert len(view.accumulators) == 1
    alone = view_of(count("n", only("play", "scene in (5)"), HOUR))
    assert alone.accumulators[0].where == (ConditionPlan("scene", "==", (5,)),)


def test_long_conditions_have_short_names() -> None:
    many = f"author in ({', '.join(str(-each) for each in range(1_000_000, 1_000_020))})"
    (ring,) = view_of(count("n", only("play", many), HOUR)).accumulators
    assert ring.field.startswith("count_play_where_") and len(ring.field) < 48
    (ring,) = view_of(count("n", only("play", "author == -5"), HOUR)).accumulators
    assert ring.field == "count_play_author_is_m5_5min"


def test_a_mean_widens_the_count_that_it_shares_and_that_is_a_new_generation() -> None:
    plays = count("plays", "play", HOUR)
    before = compiled(plays)
    after = compiled(plays, mean("m", "play.value", HOUR), parent=before)
    held = [plan.view("user_activity") for plan in (before, after)]
    assert [view.generation for view in held] == [1, 2]
    widths = [
        field.dtype for view in held for field in view.fields if field.name == "count_play_5min"
    ]
    assert widths == ["u16", "u32"]


def test_a_mean_of_a_column_that_may_be_unknown_counts_those_that_know_it() -> None:
    view = view_of(mean("place", "click.position", HOUR), count("clicks", "click", HOUR))
    assert view.feature("place").others == ("count_click_position_5min",)
    assert view.feature("clicks").source == "count_click_5min"


def test_a_view_of_every_function_equals_itself_after_the_registry() -> None:
    view = activity_of(*EVERY)
    again = StreamedFeatureView.from_proto(view.to_proto(), skip_udf=True)
    assert again == view


LONG_PLAYS = "count of play where value >= 3000, 1 h in hops of 5 min"


@pytest.mark.parametrize(
    ("after", "detail"),
    [
        (
            count("n", only("play", "value >= 4000"), HOUR),
            f"{LONG_PLAYS} → count of play where value >= 4000, 1 h in hops of 5 min",
        ),
        (
            count("n", only("play", "value >= 3000", also=["like"]), HOUR),
            f"{LONG_PLAYS} → count of play|like where value >= 3000, 1 h in hops of 5 min",
        ),
        (count("n", only("play", "value >= 3000"), 2 * HOUR, hop=5 * MINUTE), "window 1 h → 2 h"),
        (
            total("n", only("play.value", "value >= 3000"), HOUR),
            f"{LONG_PLAYS} → sum of play.value where value >= 3000, 1 h in hops of 5 min",
        ),
    ],
)
def test_rule_3_another_function_or_condition_is_another_ring(after: Windowed, detail: str) -> None:
    before = compiled(count("n", only("play", "value >= 3000"), HOUR))
    told = difference(before, compiled(after, parent=before))
    assert [change.details for change in told.features] == [(detail,)]
    assert told.views[0].new_generation


def test_rule_3_what_is_made_of_a_ring_changes_in_place() -> None:
    """A half-life, a ratio, an age limit, a mean where sum and count are there for another."""
    day, held = mean("mean_1d", "play.value", DAY), last("last_item", "play.item")
    before = compiled(
        day,
        held,
        decayed_sum("d", "play.value", DAY, half_life=HOUR),
        smoothed("r", "d", "mean_1d"),
    )
    after = compiled(
        day,
        last("last_item", "play.item", within=DAY),
        decayed_sum("d", "play.value", DAY, half_life=2 * HOUR),
        smoothed("r", "d", "mean_1d", weight=2),
        mean("mean_6h", "play.value", 6 * HOUR, hop=HOUR),
        parent=before,
    )
    assert after.version == 2
    (old,), (new,) = before.views, after.views
    assert (new.generation, new.fields) == (old.generation, old.fields)
    changes = difference(before, after).features
    told = {each.name.partition(".")[2]: each.details for each in changes}
    assert told == {
        "d": (
            "sum, half after 1 h, of play.value, 1 d in hops of 1 h → "
            "sum, half after 2 h, of play.value, 1 d in hops of 1 h",
        ),
        "last_item": ("newest of play.item → newest of play.item, within 1 d",),
        "mean_6h": (),
        "r": ("d / mean_1d → d / mean_1d, smoothed by 0 over 2",),
    }


# --- refusals -------------------------------------------------------------------------------


def raw(
    of: str, function: str, *, window: Any = HOUR, dtype: Any = Int64, hop: Any = 5 * MINUTE
) -> Windowed:
    return Windowed(Field(name="n", dtype=dtype), Aggregation(of, function, window, hop, "n"))


PLAYS = count("plays", "play", HOUR)
REFUSALS: list[tuple[str, list[Any], str]] = [
    (
        "mean of an id",
        [mean("n", "play.author", HOUR)],
        "n.column: needs <action>.value or position or scene for a mean, got 'play.author'; "
        "use 'play.value'",
    ),
    ("sum of a time", [total("n", "play.time_ms", HOUR)], "position or scene for a sum"),
    ("mean of nothing", [mean("n", cast(Any, "play"), HOUR)], "for a mean, got 'play'"),
    ("smallest id", [smallest("n", "play.item", HOUR)], "scene or time_ms for a min"),
    (
        "ids of the newest time",
        [greatest("n", "like.time_ms", HOUR, SLOT)],
        "n.transform: needs none for a time, which no later request has again, got one over "
        "like.time_ms; declare 'like.age_ms', the time that has passed at the request",
    ),
    (
        "distinct of nothing",
        [distinct("n", cast(Any, "play"), HOUR)],
        "needs <action>.user or item or author",
    ),
    ("distinct 0", [distinct("n", "play.item", HOUR, capacity=0)], "n.capacity: needs 1 to 256"),
    (
        "distinct of many tiles",
        [distinct("n", "play.item", DAY, hop=MINUTE, capacity=16)],
        "n.capacity: needs 1 to 10 over 1440 tiles, got 16; use a longer hop, or count fewer",
    ),
    ("no capacity", [raw("play.item", "distinct")], "n.function: needs count, sum, mean, std"),
    ("a capacity of a sum", [raw("play.value", "sum:3")], "got 'sum:3'"),
    (
        "no half-life",
        [raw("play", "decayed_sum:0", dtype=Float64)],
        "n.half_life: needs a half-life longer than 0, got 0 ms",
    ),
    ("a mean as Int64", [raw("play.value", "mean")], "n.dtype: needs Float64, got Int64"),
    ("last of nothing", [last("n", cast(Any, "play"))], "<action>.<column> for last, got 'play'"),
    (
        "last time",
        [last("n", "play.time_ms")],
        "n.column: needs a column, or how long ago the newest was, got 'play.time_ms'; "
        "use 'play.age_ms'",
    ),
    (
        "last within nothing",
        [raw("play.item", "last", window=0 * HOUR)],
        "n.window: needs a window longer than 0, got 0 ms",
    ),
    (
        "ratio of a stranger",
        [PLAYS, smoothed("n", "plays", "clicks")],
        "n.column: needs numbers of the view that are no ratios: plays, got 'clicks'",
    ),
    (
        "ratio of itself",
        [PLAYS, smoothed("n", "plays", "n")],
        "needs numbers of the view that are no ratios: plays, got 'n'",
    ),
    (
        "ratio of one",
        [raw("plays", "ratio:0:1", window=None, hop=None)],
        "needs <feature>/<feature>",
    ),
    (
        "ratio of a window",
        [PLAYS, raw("plays/plays", "ratio:0:1", dtype=Float64)],
        "n.window: needs no window for a ratio, whose features have theirs, got 1 h",
    ),
    (
        "a weight below 0",
        [PLAYS, smoothed("n", "plays", "plays", prior=1, weight=-1)],
        "n.function: needs a finite prior, and a weight of 0 or more, got 1.0 and -1.0",
    ),
    (
        "a prior that is no number",
        [PLAYS, raw("plays/plays", "ratio:much:1", window=None, hop=None, dtype=Float64)],
        "got much and 1",
    ),
    (
        "a type among others",
        [count("n", only("play", also=[cast(Any, "watch")]), HOUR)],
        "n.column: needs an action, one of impression,",
    ),
    (
        "a condition of another form",
        [count("n", only("play", "value > 3.5"), HOUR)],
        "n.where: needs <column> <op> <whole number>, op one of ==, !=, <, <=, >, >=, or <column> "
        "in (<numbers>), joined by and, got 'value > 3.5'; write it as in 'value >= 3000 and",
    ),
    ("or", [count("n", only("play", "scene == 1 or scene == 2"), HOUR)], "joined by and, got"),
    (
        "a condition on no column",
        [count("n", only("play", "song == 3"), HOUR)],
        "n.where: needs a column of an action, one of user,",
    ),
    (
        "a number beyond int64",
        [count("n", only("play", "item == 9223372036854775808"), HOUR)],
        "n.where: needs 1 to 64 whole numbers of int64, got '9223372036854775808'",
    ),
    ("no numbers", [count("n", only("play", "item in (,)"), HOUR)], "whole numbers of int64"),
    ("half a number", [count("n", only("play", "item in (1-2)"), HOUR)], "got '1-2'"),
    (
        "too many conditions",
        [count("n", only("play", " and ".join(f"item != {i}" for i in range(9))), HOUR)],
        "n.where: needs at most 8 conditions, got 9",
    ),
    (
        "one sequence, two filters",
        [
            recent("s", only("play", "scene == 1"), 3, [column("a", "item")]),
            recent("s", "play", 3, [column("b", "author")]),
        ],
        "user_activity.s.where: needs one where for all columns of a sequence, got scene_is_1 and",
    ),
]


@pytest.mark.parametrize(
    ("windows", "message"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_refused(windows: list[Any], message: str) -> None:
    with pytest.raises(DeclarationError) as refused:
        compiled(*windows)
    assert str(refused.value).startswith("user_activity.")
    assert message in str(refused.value)


def test_numeric_columns_are_those_that_sums_have_room_for() -> None:
    """Below 2^40: `schemas.actions` refuses greater values, and the others have 16 bits."""
    assert set(NUMERIC) == {"value", "position", "scene"}
