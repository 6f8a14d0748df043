"""Finalising against its oracles: from the state, and from the actions themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregation.finalise import Features, Finaliser, finalise
from aggregation.fold import fold
from schemas.actions import ACTION, ActionType
from schemas.errors import PlanError
from schemas.layout import layout_of
from schemas.plan import FeaturePlan, ViewPlan
from schemas.row import Rows, decode_rows, empty_rows, encode_rows
from tests.aggregation.functions import functions_view
from tests.aggregation.plans import HOUR, MINUTE, activity_view, small_view, users_view
from tests.aggregation.strategies import T0, histories, nows
from tests.oracle.finalise import row_of, value_of
from tests.oracle.fold import as_dicts, column_of, in_time

IDS = np.array([11, 12, 13], np.int64)
SMALL = small_view()
FUNCTIONS = functions_view()
MORTAL = small_view(ttl_ms=6_000)


def got(features: Features, name: str, index: int) -> Any:
    """One finalised feature as the oracle would write it; checks the padding on the way."""
    if features.null[name][index]:
        assert not features.values[name][index].any()
        return None
    if name not in features.lengths:
        return features.values[name][index].item()
    length = int(features.lengths[name][index])
    assert length <= features.values[name].shape[1]
    assert not features.values[name][index, length:].any()
    return features.values[name][index, :length].tolist()


def state_after(view: ViewPlan, history: tuple[Any, Any, Any]) -> Rows:
    actions, row, sent_ms = history
    layout = layout_of(view)
    rows = empty_rows(layout, IDS)
    fold(view, rows, row, actions, sent_ms)
    return decode_rows(layout, encode_rows(layout, rows), IDS)[0]


@settings(max_examples=300, deadline=None)
@given(
    view=st.sampled_from([SMALL, MORTAL, FUNCTIONS, functions_view(ttl_ms=6_000)]),
    history=histories(),
    now_ms=nows,
)
def test_values_equal_the_oracle_at_any_time(
    view: ViewPlan, history: tuple[Any, Any, Any], now_ms: int
) -> None:
    rows = state_after(view, history)
    features = finalise(view, rows, now_ms)
    for index in range(len(IDS)):
        row = row_of(view, rows, index)
        for feature in view.features:
            expected = value_of(view, feature, row, now_ms)
            found = got(features, feature.name, index)
            if feature.kind == "std" and expected is not None:
                assert found == pytest.approx(expected, rel=1e-14), feature.name
            else:
                assert found == expected, feature.name


@settings(max_examples=200, deadline=None)
@given(history=histories(rows=1), wait_ms=st.integers(-2_500, 12_000))
def test_windows_and_sequences_say_what_the_actions_say(
    history: tuple[Any, Any, Any], wait_ms: int
) -> None:
    """No state in sight: within the skew of the newest action, values follow from the actions."""
    actions, _, sent_ms = history
    rows = state_after(SMALL, history)
    now_ms = max(T0, int(rows.newest_ms[0])) + wait_ms
    features = finalise(SMALL, rows, now_ms)
    live = [
        action
        for action, sent in zip(as_dicts(actions), sent_ms.tolist(), strict=True)
        if in_time(SMALL, action, sent) and action["type"] != ActionType.DELETE_USER
    ]
    hop_ms = 1_000
    clicks = [a for a in live if a["type"] == ActionType.CLICK]
    for name, tiles in (("click_5s", 5), ("click_2s", 2)):
        inside = [a for a in clicks if 0 <= now_ms // hop_ms - a["time_ms"] // hop_ms < tiles]
        assert features.values[name][0] == len(inside)
    liked = sorted(
        (a["time_ms"], author)
        for a in live
        if a["type"] == ActionType.LIKE and (author := column_of(a, "author")) is not None
    )
    expected = [author for time_ms, author in liked[-2:] if time_ms <= now_ms][::-1]
    assert got(features, "liked_author", 0) == expected


@pytest.mark.parametrize(
    ("minutes", "clicks"),
    [(0, 1), (9, 2), (10, 3), (59, 3), (60, 2), (64, 2), (65, 1), (69, 1), (70, 0), (10_000, 0)],
)
def test_an_hour_of_clicks_falls_while_nothing_happens(minutes: int, clicks: int) -> None:
    view = activity_view()
    rows = empty_rows(layout_of(view), IDS)
    actions = np.zeros(3, ACTION)
    actions["type"] = ActionType.CLICK
    start = T0 // HOUR * HOUR
    actions["time_ms"] = start + np.array([0, 5, 10]) * MINUTE
    fold(view, rows, np.zeros(3, int), actions, actions["time_ms"])
    features = finalise(view, rows, start + minutes * MINUTE)
    assert features.values["click_1h"].tolist() == [clicks, 0, 0]


@pytest.mark.parametrize(("wait_ms", "there"), [(5_999, True), (6_000, True), (6_001, False)])
def test_a_row_is_there_until_its_time_to_live_has_passed(wait_ms: int, there: bool) -> None:
    rows = empty_rows(layout_of(MORTAL), IDS)
    actions = np.zeros(1, ACTION)
    actions["type"], actions["time_ms"], actions["user"] = ActionType.PLAY, T0, 7
    actions["known"] = 0x1F
    fold(MORTAL, rows, np.zeros(1, int), actions, actions["time_ms"])
    features = finalise(MORTAL, rows, T0 + wait_ms)
    assert features.lengths["plays_item"][0] == there


def test_narrow_features_are_cut_off_not_wrapped() -> None:
    rows = empty_rows(layout_of(SMALL), IDS)
    actions = np.zeros(300, ACTION)
    actions["type"], actions["time_ms"] = ActionType.CLICK, T0
    fold(SMALL, rows, np.zeros(300, int), actions, actions["time_ms"])
    values = finalise(SMALL, rows, T0).values
    assert values["any_small"].dtype == np.int8
    assert (values["any_small"][0], values["any_5s"][0]) == (127, 300)
    assert values["click_5s"][0] == 255  # the u8 ring's own limit


def test_nan_is_a_value_and_null_is_zero() -> None:
    view = users_view()
    rows = empty_rows(layout_of(view), IDS)
    rows.values["onehot"][:] = np.nan
    rows.present["onehot"][:] = [True, False, True]
    rows.values["interests"][:] = 5
    rows.lengths["interests"][:] = [2, 3, 0]
    rows.present["interests"][:] = [True, False, True]
    features = finalise(view, rows, T0)
    assert np.array_equal(
        features.values["onehot"], np.array([np.nan, 0, np.nan], np.float32), True
    )
    assert features.values["interests"].tolist() == [[5, 5, 0], [0, 0, 0], [0, 0, 0]]
    assert features.lengths["interests"].tolist() == [2, 0, 0]
    assert features.null["interests"].tolist() == [False, True, False]


def test_only_the_features_asked_for_are_computed() -> None:
    rows = empty_rows(layout_of(SMALL), IDS)
    features = Finaliser(SMALL, ["click_5s", "liked_author"])(rows, T0)
    assert set(features.values) == {"click_5s", "liked_author"}


@pytest.mark.parametrize(
    "feature",
    [
        FeaturePlan("bad", "i64", "window", "no_such", tiles=1),
        FeaturePlan("bad", "i64", "window", "click_5s_tiles", tiles=0),
        FeaturePlan("bad", "i64", "window", "click_5s_tiles", tiles=9),
        FeaturePlan("bad", "i64", "sequence", "no_such", capacity=1),
        FeaturePlan("bad", "i64", "sequence", "liked_author", capacity=3),
        FeaturePlan("bad", "i64", "field", "no_such"),
        FeaturePlan("bad", "i64", "field", "liked_author"),
    ],
)
def test_a_feature_the_state_cannot_give_is_refused(feature: FeaturePlan) -> None:
    broken = ViewPlan(
        SMALL.name,
        "user",
        "streamed",
        1,
        SMALL.fields,
        (feature,),
        "actions",
        accumulators=SMALL.accumulators,
        sequences=SMALL.sequences,
    )
    with pytest.raises(PlanError, match=r"small\.bad: needs"):
        Finaliser(broken)
    with pytest.raises(PlanError, match="needs one of"):
        Finaliser(SMALL, ["no_such"])


@settings(max_examples=100, deadline=None)
@given(
    view=st.sampled_from([SMALL, MORTAL, FUNCTIONS, functions_view(ttl_ms=6_000)]),
    history=histories(),
    now_ms=nows,
    times=st.integers(6, 9),
)
def test_a_value_does_not_depend_on_how_many_rows_are_finalised_together(
    view: ViewPlan, history: tuple[Any, Any, Any], now_ms: int, times: int
) -> None:
    """Few rows and many go different ways."""
    layout = layout_of(view)
    few = state_after(view, history)
    raw = encode_rows(layout, few) * times
    many, _ = decode_rows(layout, raw, np.tile(IDS, times))
    expected, found = finalise(view, few, now_ms), finalise(view, many, now_ms)
    for name, values in expected.values.items():
        assert found.values[name].tobytes() == np.concatenate([values] * times).tobytes(), name
        np.testing.assert_array_equal(found.null[name], np.tile(expected.null[name], times))
    for name, lengths in expected.lengths.items():
        np.testing.assert_array_equal(found.lengths[name], np.tile(lengths, times))
