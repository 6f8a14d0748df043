"""The fold against its oracle, whatever the order and the batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregation.fold import FoldReport, fold
from schemas.actions import ACTION, KNOWN_AUTHOR, ActionType
from schemas.errors import PlanError
from schemas.layout import layout_of
from schemas.plan import ViewPlan
from schemas.row import Rows, decode_rows, empty_rows, encode_rows
from tests.aggregation.functions import functions_view
from tests.aggregation.plans import StreamedView, activity_view, small_view
from tests.aggregation.strategies import T0, histories
from tests.oracle.fold import as_dicts, in_time, rows_of, state_of

IDS = np.array([11, 12, 13], np.int64)
SMALL = small_view()
FUNCTIONS = functions_view()


def expected_bytes(
    view: ViewPlan,
    actions: NDArray[np.void],
    row: NDArray[np.intp],
    sent_ms: NDArray[np.int64],
    ids: NDArray[np.int64] = IDS,
) -> list[bytes]:
    sent = list(zip(as_dicts(actions), sent_ms.tolist(), strict=True))
    states = [
        state_of(view, [each for each, at in zip(sent, row, strict=True) if at == index])
        for index in range(len(ids))
    ]
    return encode_rows(layout_of(view), rows_of(view, ids.tolist(), states))


def folded(
    view: ViewPlan, *batches: tuple[Any, Any, Any], ids: NDArray[np.int64] = IDS
) -> list[bytes]:
    """Each batch folded into rows that were stored and read back in between."""
    layout = layout_of(view)
    stored: list[bytes | None] = [None] * len(ids)
    for batch in batches:
        rows, _ = decode_rows(layout, stored, ids)
        actions, row, sent_ms = batch
        fold(view, rows, row, actions, sent_ms)
        stored = list(encode_rows(layout, rows))
    return [row or b"" for row in stored]


@settings(max_examples=400, deadline=None)
@given(view=st.sampled_from([SMALL, FUNCTIONS]), history=histories(), data=st.data())
def test_state_is_a_function_of_the_set_of_actions(
    view: ViewPlan, history: tuple[Any, Any, Any], data: st.DataObject
) -> None:
    """Shuffled, in batches, with duplicates, late and future ones: the oracle sees a set."""
    actions, row, sent_ms = history
    order = np.array(data.draw(st.permutations(range(len(actions)))), np.intp)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(actions)), max_size=5)))
    batches = [
        (actions[part], row[part], sent_ms[part]) for part in np.split(order, np.array(cuts, int))
    ]
    assert folded(view, *batches) == expected_bytes(view, actions, row, sent_ms)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([SMALL, FUNCTIONS]), histories())
def test_one_action_at_a_time_equals_all_at_once(
    view: ViewPlan, history: tuple[Any, Any, Any]
) -> None:
    actions, row, sent_ms = history
    singly = [(actions[i : i + 1], row[i : i + 1], sent_ms[i : i + 1]) for i in range(len(actions))]
    assert folded(view, *singly, history) == folded(view, history, *singly)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([SMALL, FUNCTIONS]), histories())
def test_the_report_says_what_became_of_each(view: ViewPlan, history: tuple[Any, Any, Any]) -> None:
    """Whatever the functions: late and future actions are told apart from the rest, and from none
    of them is anything in the rows."""
    actions, row, sent_ms = history
    rows = empty_rows(layout_of(view), IDS)
    report = fold(view, rows, row, actions, sent_ms)
    for index, action in enumerate(as_dicts(actions)):
        instruction = action["type"] == ActionType.DELETE_USER
        timely = in_time(view, action, int(sent_ms[index]))
        assert report.folded[index] == (timely and not instruction)
        assert report.late[index] == (
            not instruction and action["time_ms"] < sent_ms[index] - view.skew_ms
        )
        assert report.future[index] == (
            not instruction and action["time_ms"] > sent_ms[index] + view.future_ms
        )
    expected = np.zeros(len(IDS), bool)
    expected[row[report.folded]] = True
    assert np.array_equal(report.touched, expected)
    rest = (actions[report.folded], row[report.folded], sent_ms[report.folded])
    assert encode_rows(layout_of(view), rows) == folded(view, rest)


def act(kind: str, time_ms: int, **columns: Any) -> NDArray[np.void]:
    """One action, (1,)."""
    action = np.zeros(1, ACTION)
    action["type"], action["time_ms"] = ActionType[kind.upper()], time_ms
    for name, value in columns.items():
        action[name] = value
    return action


def fold_all(view: ViewPlan, rows: Rows, *actions: NDArray[np.void]) -> FoldReport:
    """Into row 0, each sent when it happened."""
    batch = np.concatenate(actions)
    return fold(view, rows, np.zeros(len(batch), np.intp), batch, batch["time_ms"])


@pytest.mark.parametrize(
    ("offset_ms", "fate"),
    [(-2_501, "late"), (-2_500, "folded"), (0, "folded"), (1_000, "folded"), (1_001, "future")],
)
def test_bounds_are_judged_against_when_it_was_sent(offset_ms: int, fate: str) -> None:
    rows = empty_rows(layout_of(SMALL), IDS)
    action = act("click", T0 + offset_ms)
    report = fold(SMALL, rows, np.zeros(1, int), action, np.array([T0]))
    fates = {"late": report.late, "folded": report.folded, "future": report.future}
    assert {name for name, mask in fates.items() if mask[0]} == {fate}
    assert (rows.newest_ms[0] > 0) == (fate == "folded")


def test_u16_counts_saturate_and_say_so() -> None:
    view = activity_view()
    layout = layout_of(view)
    rows = empty_rows(layout, IDS)
    actions = np.repeat(act("click", T0), 40_000)
    where = np.zeros(len(actions), np.intp)
    reports = [
        fold(view, rows, where[part], actions[part], actions["time_ms"][part])
        for part in (slice(40_000), slice(25_535), slice(25_535, 40_000))
    ]
    # One cell a hop; what just fits is not cut off.
    assert [each.saturated for each in reports] == [0, 0, 3]
    assert rows.values["click_1h_tiles"].max() == 65_535
    both = np.concatenate((actions, actions))
    at_once = empty_rows(layout, IDS)
    fold(view, at_once, np.zeros(len(both), np.intp), both, both["time_ms"])
    assert encode_rows(layout, at_once) == encode_rows(layout, rows)


def test_a_deletion_is_an_instruction_that_nothing_counts() -> None:
    rows = empty_rows(layout_of(SMALL), IDS)
    report = fold_all(SMALL, rows, act("delete_user", T0))
    assert not (report.folded | report.late | report.future | report.touched).any()
    assert encode_rows(layout_of(SMALL), rows) == folded(SMALL, (np.zeros(0, ACTION), [], []))


def test_an_action_that_does_not_know_its_author_is_no_liked_author() -> None:
    rows = empty_rows(layout_of(SMALL), IDS)
    known = act("like", T0, author=0, known=KNOWN_AUTHOR)  # id 0 is an author like any other
    unknown = act("like", T0 + 1, author=0)
    fold_all(SMALL, rows, known, unknown)
    assert rows.lengths["liked_author"][0] == 1
    assert rows.values["liked_time_ms"][0, 0] == T0
    assert rows.values["like_3s_tiles"][0].sum() == 2


def test_a_head_far_ahead_drops_what_left_the_ring() -> None:
    rows = empty_rows(layout_of(SMALL), IDS)
    fold_all(SMALL, rows, act("click", T0), act("click", T0 + 1_000))
    fold_all(SMALL, rows, act("click", T0 + 3_600_000))
    assert rows.values["click_5s_tiles"][0].sum() == 1


def test_read_only_columns_are_replaced_not_written() -> None:
    layout = layout_of(SMALL)
    rows = empty_rows(layout, IDS)
    before = dict(rows.values)
    for values in before.values():
        values.setflags(write=False)
    fold_all(SMALL, rows, act("like", T0, author=5, known=KNOWN_AUTHOR))
    assert rows.lengths["liked_author"][0] == 1
    assert not any(values.any() for values in before.values())


def test_an_unknown_action_or_column_is_refused_before_anything_changes() -> None:
    for action, column in (("clik", ""), ("delete_user", ""), ("play", "valu")):
        view = StreamedView("broken", skew_ms=0).ring("click", "", ("5s", 5_000, 1_000))
        view.ring(action, column, ("8s", 8_000, 1_000))
        rows = empty_rows(layout_of(view.plan()), IDS)
        with pytest.raises(PlanError, match="needs one of"):
            fold_all(view.plan(), rows, act("click", T0))
        assert not rows.present["click_5s_tiles"].any()


@pytest.mark.parametrize("row", [[-1], [3], [0, 1]])
def test_a_row_index_that_does_not_fit_is_refused(row: list[int]) -> None:
    rows = empty_rows(layout_of(SMALL), IDS)
    with pytest.raises(ValueError, match="fold: needs"):
        fold(SMALL, rows, np.array(row), act("click", T0), np.array([T0]))


def test_a_day_of_the_demo_view_equals_the_oracle() -> None:
    """Batches as a worker folds them: shuffled, delayed, many rows, days passing."""
    random = np.random.default_rng(7)
    view, n, users = activity_view(), 4_000, 40
    actions = np.zeros(n, ACTION)
    actions["time_ms"] = np.sort(T0 + random.integers(0, 3 * 86_400_000, n))
    actions["item"] = random.integers(0, 30, n)
    actions["author"] = random.integers(0, 9, n)
    actions["value"] = random.integers(0, 200_000, n)
    actions["type"] = random.choice([1, 2, 2, 3, 4, 6], n)
    actions["known"] = random.choice([0, KNOWN_AUTHOR, KNOWN_AUTHOR], n)
    row = random.integers(0, users, n)
    sent_ms = actions["time_ms"] + random.integers(-60_000, 600_000, n)
    ids = np.arange(users, dtype=np.int64)
    batches = [
        (actions[part], row[part], sent_ms[part])
        for part in np.array_split(random.permutation(n), 7)
    ]
    assert folded(view, *batches, ids=ids) == expected_bytes(view, actions, row, sent_ms, ids)
