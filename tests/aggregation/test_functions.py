"""What the functions keep and give, beside what `test_fold` and `test_finalise` hold in general."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregation.distinct import stored_hashes
from aggregation.finalise import Finaliser, finalise
from aggregation.fold import fold
from aggregation.moments import deviation
from aggregation.rings import TileRuns
from aggregation.tiles import ADD, MAX_ACTIONS, SUM_LIMIT, WORD
from schemas.actions import ACTION, MAX_VALUE, ActionType
from schemas.errors import PlanError
from schemas.layout import layout_of
from schemas.plan import ConditionPlan, FeaturePlan, ViewPlan
from schemas.row import Rows, empty_rows
from tests.aggregation.functions import functions_view
from tests.aggregation.plans import small_view
from tests.aggregation.strategies import T0, histories
from tests.oracle.fold import as_dicts, column_of, in_time, matching

FUNCTIONS = functions_view()
HUGE = MAX_VALUE - 1
IDS = np.array([7], np.int64)


def tile(function: Any, values: list[int], width: int = 1, held: Any = None) -> NDArray[Any]:
    """One tile after values were added to what was held."""
    dtypes = {"count": np.uint16, "sum": np.int64, "squares": np.int64}
    ring = np.zeros((1, width), dtypes.get(function, np.uint64)) if held is None else held
    where = np.zeros(len(values), np.intp)
    ADD[function](ring, TileRuns.of(where, where, 1), np.array(values, np.int64))
    return ring


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, HUGE), min_size=1, max_size=30), st.data())
def test_squares_are_exact_in_two_words(values: list[int], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(values) - 1))
    held = tile("squares", values[:cut], 2) if cut else None
    low, high = tile("squares", values[cut:], 2, held)[0].tolist()
    assert high * 2**40 + low == sum(value * value for value in values)
    assert 0 <= low <= WORD


def test_sums_and_squares_stop_at_their_ends_and_say_so() -> None:
    where, values = np.zeros(2**12, np.intp), np.full(2**12, HUGE)
    runs = TileRuns.of(where, where, 1)
    sums, squares = np.zeros((1, 1), np.int64), np.zeros((1, 2), np.int64)
    assert (ADD["sum"](sums, runs, values), ADD["squares"](squares, runs, values)) == (1, 1)
    assert sums[0, 0] == SUM_LIMIT == 2**51 - 1
    assert squares.tolist() == [[WORD, SUM_LIMIT]]
    assert ADD["sum"](sums, TileRuns.of(where[:1], where[:1], 1), np.array([0])) == 0
    just = np.array([[7, SUM_LIMIT - 1]])
    assert ADD["squares"](just, TileRuns.of(where[:1], where[:1], 1), np.array([1 << 20])) == 0
    assert just.tolist() == [[7, SUM_LIMIT]], "what just fits is not cut off"


MOMENTS = st.lists(
    st.one_of(
        st.integers(0, HUGE), st.integers(HUGE - 3, HUGE), st.integers(0, 3), st.just(123_456_789)
    ),
    min_size=1,
    max_size=200,
)


@settings(max_examples=150, deadline=None)
@given(MOMENTS)
def test_deviations_cancel_nothing_away(values: list[int]) -> None:
    """Values that differ by 1 around 2^40 have the deviation that exact fractions say."""
    squares = sum(value * value for value in values)
    arrays = (len(values), sum(values), squares % 2**40, squares // 2**40)
    found = deviation(*(np.array([each], np.int64) for each in arrays))[0]
    exact = Fraction(squares, len(values)) - Fraction(sum(values), len(values)) ** 2
    assert found == pytest.approx(math.sqrt(exact), rel=1e-14)


def test_deviations_of_long_windows_of_full_tiles_do_not_overflow() -> None:
    """As many of the greatest values as 4,096 tiles hold before they are cut off."""
    count = 2**11 * 4_096 - 1
    squares = count * HUGE * HUGE
    arrays = (count, count * HUGE, squares % 2**40, squares // 2**40)
    assert deviation(*(np.array([each], np.int64) for each in arrays)).tolist() == [0.0]


def test_a_deviation_does_not_depend_on_where_its_mean_lies() -> None:
    """All but one of a billion values are one more than it."""
    count, value = 10**9, 12_345
    total = count * (value + 1) - 1
    squares = (count - 1) * (value + 1) ** 2 + value * value
    arrays = (count, total, squares % 2**40, squares // 2**40)
    found = deviation(*(np.array([each], np.int64) for each in arrays))[0]
    assert found == pytest.approx(math.sqrt(count - 1) / count, rel=1e-14)


@pytest.mark.parametrize("capacity", [1, 8, 64])
def test_distinct_is_exact_up_to_its_capacity(capacity: int) -> None:
    view = distinct_view(capacity)
    for many in (0, 1, capacity - 1, capacity):
        rows = empty_rows(layout_of(view), IDS)
        twice = [value for value in range(many) for _ in range(2)]
        fold_items(view, rows, twice)
        assert finalise(view, rows, T0).values["items"][0] == many


def test_distinct_estimates_beyond_its_capacity() -> None:
    """Its error is about 1 / sqrt(k - 1): none of 300 is further off than five of those, and the
    mean is within a fifth of one."""
    view, capacity, truth = distinct_view(32), 32, 1_000
    errors = []
    for seed in range(300):
        rows = empty_rows(layout_of(view), IDS)
        fold_items(view, rows, list(range(seed * 10_000, seed * 10_000 + truth)))
        errors.append(finalise(view, rows, T0).values["items"][0] / truth - 1)
    sigma = 1 / math.sqrt(capacity - 1)
    assert abs(np.mean(errors)) < sigma / 5
    assert 0.7 * sigma < np.std(errors) < 1.3 * sigma
    assert max(map(abs, errors)) < 5 * sigma


def test_the_greatest_hash_is_one_less() -> None:
    """So that no stored hash is 0, which means that there is none."""
    assert stored_hashes(np.arange(-1_000, 1_000)).min() > 0


def distinct_view(capacity: int) -> ViewPlan:
    """Distinct items of one tile."""
    (ring,) = (each for each in FUNCTIONS.accumulators if each.field == "items")
    ring = replace(ring, where=(), width=capacity + 1)
    fields = tuple(
        replace(each, capacity=ring.tiles * ring.width) if each.name == "items" else each
        for each in FUNCTIONS.fields
        if each.name in ("items", "head")
    )
    feature = FeaturePlan("items", "i64", "distinct", "items", tiles=1)
    return replace(
        FUNCTIONS, fields=fields, accumulators=(ring,), sequences=(), features=(feature,)
    )


def fold_items(view: ViewPlan, rows: Rows, items: list[int]) -> None:
    actions = np.zeros(len(items), ACTION)
    actions["type"], actions["time_ms"], actions["item"] = ActionType.PLAY, T0, items
    fold(view, rows, np.zeros(len(items), np.intp), actions, actions["time_ms"])


# --- values from the actions, no state in sight ---------------------------------------------


@settings(max_examples=150, deadline=None)
@given(history=histories(rows=1), wait_ms=st.integers(-2_500, 8_000))
def test_functions_say_what_the_actions_say(history: tuple[Any, Any, Any], wait_ms: int) -> None:
    """Within the skew of the newest action, values follow from the actions in the window."""
    actions, row, sent_ms = history
    rows = empty_rows(layout_of(FUNCTIONS), IDS)
    fold(FUNCTIONS, rows, row, actions, sent_ms)
    now_ms = max(T0, int(rows.newest_ms[0])) + wait_ms
    features = finalise(FUNCTIONS, rows, now_ms)
    live = [
        action
        for action, sent in zip(as_dicts(actions), sent_ms.tolist(), strict=True)
        if in_time(FUNCTIONS, action, sent) and action["type"] != ActionType.DELETE_USER
        if 0 <= now_ms // 1_000 - action["time_ms"] // 1_000 < 5
    ]
    rings = {ring.field: ring for ring in FUNCTIONS.accumulators}

    def of(field: str) -> list[int]:
        ring = rings[field]
        known = [column_of(action, ring.column or "item") for action in matching(live, ring)]
        return [value for value in known if value is not None]

    def value(name: str) -> Any:
        return None if features.null[name][0] else features.values[name][0].item()

    plays = of("total")
    assert value("long_ones") == len(of("n"))
    assert value("mean_ms") == (pytest.approx(sum(plays) / len(plays)) if plays else None)
    if plays:
        mean = Fraction(sum(plays), len(plays))
        variance = sum((play - mean) ** 2 for play in plays) / len(plays)
        assert value("std_ms") == pytest.approx(math.sqrt(variance), rel=1e-13)
    assert value("least_ms") == min(of("least"), default=None)
    assert value("greatest_place") == max(of("greatest"), default=None)
    authors = of("authors")
    tiles = {action["time_ms"] // 1_000 for action in live}
    if all(
        len({column_of(a, "author") for a in live if a["time_ms"] // 1_000 == t} - {None}) <= 2
        for t in tiles
    ):
        assert value("authors_5s") == len(set(authors))


def test_nothing_in_the_window_is_null_or_zero() -> None:
    rows = empty_rows(layout_of(FUNCTIONS), IDS)
    features = finalise(FUNCTIONS, rows, T0)
    zero = {feature.name for feature in FUNCTIONS.features if not features.null[feature.name][0]}
    assert zero == {
        *("long_ones", "known_places", "placed_5s", "low_5s", "decayed_ms", "decayed_n"),
        *("authors_5s", "authors_1s", "items_5s"),
    }
    for feature in FUNCTIONS.features:
        assert features.values[feature.name][0] == 0


def test_a_value_of_zero_is_there() -> None:
    rows = empty_rows(layout_of(FUNCTIONS), IDS)
    actions = np.zeros(1, ACTION)
    actions["type"], actions["time_ms"], actions["scene"] = ActionType.PLAY, T0, 1
    fold(FUNCTIONS, rows, np.zeros(1, int), actions, actions["time_ms"])
    features = finalise(FUNCTIONS, rows, T0)
    for name in ("mean_ms", "std_ms", "last_value"):
        assert (features.null[name][0], features.values[name][0]) == (False, 0)


@pytest.mark.parametrize(("wait_ms", "age_ms"), [(-1, None), (0, 0), (3_999, 3_999), (4_000, None)])
def test_the_last_is_there_from_its_time_until_it_is_too_old(
    wait_ms: int, age_ms: int | None
) -> None:
    rows = empty_rows(layout_of(FUNCTIONS), IDS)
    actions = np.zeros(1, ACTION)
    actions["type"], actions["time_ms"], actions["scene"] = ActionType.PLAY, T0, 1
    fold(FUNCTIONS, rows, np.zeros(1, int), actions, actions["time_ms"])
    features = finalise(FUNCTIONS, rows, T0 + wait_ms)
    found = None if features.null["last_age"][0] else features.values["last_age"][0]
    assert found == age_ms
    assert features.null["last_item"][0] == (wait_ms < 0)


def test_a_value_does_not_depend_on_the_rows_beside_it() -> None:
    """Bit for bit, floats too: what is served for one is rebuilt among a thousand."""
    random = np.random.default_rng(3)
    n, ids = 20_000, np.arange(300, dtype=np.int64)
    actions = np.zeros(n, ACTION)
    actions["time_ms"] = T0 + random.integers(0, 6_000, n)
    actions["type"], actions["scene"] = random.choice([2, 3, 6], n), 1
    actions["value"], actions["item"] = random.integers(0, 10**7, n), random.integers(0, 99, n)
    rows = empty_rows(layout_of(FUNCTIONS), ids)
    fold(FUNCTIONS, rows, random.integers(0, 300, n), actions, actions["time_ms"])
    together = finalise(FUNCTIONS, rows, T0 + 6_500)
    for index in (0, 7, 299):
        one = Rows(
            ids[index : index + 1],
            {name: column[index : index + 1] for name, column in rows.values.items()},
            {name: column[index : index + 1] for name, column in rows.lengths.items()},
            {name: column[index : index + 1] for name, column in rows.present.items()},
            rows.epoch[index : index + 1],
            rows.offset[index : index + 1],
            rows.newest_ms[index : index + 1],
        )
        alone = finalise(FUNCTIONS, one, T0 + 6_500)
        for name, values in together.values.items():
            assert values[index].tobytes() == alone.values[name][0].tobytes(), name


def test_a_ratio_alone_brings_what_it_is_of_and_leaves_it_out() -> None:
    rows = empty_rows(layout_of(FUNCTIONS), IDS)
    features = Finaliser(FUNCTIONS, ["smooth", "rate"])(rows, T0)
    assert set(features.values) == set(features.null) == {"smooth", "rate"}


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        (FeaturePlan("bad", "f64", "mean", "total", tiles=5), "rings of sum, count"),
        (FeaturePlan("bad", "f64", "mean", "plays", tiles=5, others=("total",)), "sum, count"),
        (FeaturePlan("bad", "i64", "mean", "total", tiles=5, others=("plays",)), "f32 or f64"),
        (FeaturePlan("bad", "i64", "max", "least", tiles=5), "rings of max"),
        (FeaturePlan("bad", "i64", "min", "least", tiles=9), "1 to 8 tiles"),
        (FeaturePlan("bad", "i64", "window", "least", tiles=5), "count or sum"),
        (FeaturePlan("bad", "f64", "decayed_sum", "total", tiles=5), "half-life above 0 ms"),
        (FeaturePlan("bad", "f64", "ratio", "total"), "two numbers of the view"),
        (FeaturePlan("bad", "f64", "ratio", "rate", others=("rate",)), "themselves no ratios"),
        (FeaturePlan("bad", "i64", "ratio", "low_5s", others=("low_5s",)), "f32 or f64"),
        (FeaturePlan("bad", "i64", "last", "total"), "a column of a sequence without gaps"),
    ],
)
def test_what_the_state_cannot_give_is_refused(feature: FeaturePlan, message: str) -> None:
    broken = replace(FUNCTIONS, features=(*FUNCTIONS.features, feature))
    with pytest.raises(PlanError, match=rf"functions\.bad: needs .*{message}"):
        Finaliser(broken, ["bad"])


def test_rings_of_different_hops_make_no_mean() -> None:
    rings = tuple(
        replace(each, hop_ms=2_000, head="head_2s") if each.field == "plays" else each
        for each in FUNCTIONS.accumulators
    )
    with pytest.raises(PlanError, match="needs rings of one hop"):
        Finaliser(replace(FUNCTIONS, accumulators=rings), ["mean_ms"])


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (ConditionPlan("velocity", "==", (1,)), "plan column: needs one of user"),
        (ConditionPlan("value", "==", (1, 2)), "plan condition: needs in, or one of"),
    ],
)
def test_a_condition_no_action_can_meet_is_refused(condition: Any, message: str) -> None:
    view = small_view()
    ring = replace(view.accumulators[0], where=(condition,))
    broken = replace(view, accumulators=(ring, *view.accumulators[1:]))
    rows = empty_rows(layout_of(broken), IDS)
    actions = np.zeros(1, ACTION)
    actions["type"], actions["time_ms"] = ActionType.CLICK, T0
    with pytest.raises(PlanError, match=message):
        fold(broken, rows, np.zeros(1, int), actions, actions["time_ms"])
    assert not any(present.any() for present in rows.present.values())


def test_more_actions_than_sums_have_room_for_are_refused() -> None:
    rows = empty_rows(layout_of(FUNCTIONS), IDS)
    actions = np.broadcast_to(np.zeros(1, ACTION), MAX_ACTIONS + 1)
    where = np.broadcast_to(np.zeros(1, np.intp), MAX_ACTIONS + 1)
    with pytest.raises(ValueError, match="at most 4194304 actions"):
        fold(FUNCTIONS, rows, where, actions, where)
