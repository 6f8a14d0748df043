from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregation.deletion import deletions, fold_in_order
from aggregation.finalise import finalise
from aggregation.fold import fold
from aggregation.online import OnlineView
from schemas.actions import ActionType
from schemas.layout import layout_of
from schemas.plan import ViewPlan
from schemas.row import TOMBSTONE_MS, Rows, decode_rows, empty_rows, encode_rows
from schemas.status import FieldStatus, Status
from tests.aggregation.functions import functions_view
from tests.aggregation.plans import small_view
from tests.aggregation.strategies import histories
from tests.oracle.fold import as_dicts, rows_of, since_deletion, state_of
from tests.streams.support import some_actions

VIEW = small_view()
LAYOUT = layout_of(VIEW)
History = tuple[NDArray[np.void], NDArray[np.intp], NDArray[np.int64]]


def three() -> Rows:
    return empty_rows(LAYOUT, np.arange(3, dtype=np.int64))


@given(histories(), st.lists(st.integers(0, 40), max_size=4))
def test_any_cut_equals_the_oracle(history: History, cuts: list[int]) -> None:
    actions, row, sent_ms = history
    rows = three()
    edges = sorted({0, len(actions), *(min(cut, len(actions)) for cut in cuts)})
    told = np.zeros(len(actions), int)
    for start, end in pairwise(edges):
        part = slice(start, end)
        report = fold_in_order(VIEW, rows, row[part], actions[part], sent_ms[part])
        told[part] = report.folded + 2 * report.late + 3 * report.future
    sent = list(zip(as_dicts(actions), sent_ms.tolist(), strict=True))
    by_row: list[list[Any]] = [[sent[n] for n in np.flatnonzero(row == each)] for each in range(3)]
    states = [state_of(VIEW, since_deletion(each)) for each in by_row]
    gone = [any(action["type"] == ActionType.DELETE_USER for action, _ in each) for each in by_row]
    wanted = rows_of(
        VIEW,
        range(3),
        [
            state or ({"newest_ms": TOMBSTONE_MS} if dead else None)
            for state, dead in zip(states, gone, strict=True)
        ],
    )
    assert encode_rows(LAYOUT, rows) == encode_rows(LAYOUT, wanted)
    whole = fold(VIEW, three(), row, actions, sent_ms)
    assert told.tolist() == (whole.folded + 2 * whole.late + 3 * whole.future).tolist()


@given(histories())
def test_item_rows_are_left_as_they_are(history: History) -> None:
    view = replace(VIEW, entity="item")
    rows, plain = three(), three()
    assert not deletions(view, history[0]).any()
    fold_in_order(view, rows, history[1], history[0], history[2])
    fold(view, plain, history[1], history[0], history[2])
    assert encode_rows(LAYOUT, rows) == encode_rows(LAYOUT, plain)


def test_a_tombstone_is_not_found_and_keeps_its_fence() -> None:
    rows = three()
    rows.newest_ms[:2], rows.epoch[:] = TOMBSTONE_MS, (1, 0, 1)
    rows.offset[:] = 7
    read, status = decode_rows(LAYOUT, encode_rows(LAYOUT, rows), rows.entity_ids)
    # Epoch 0 is a batch row's: its newest time is a value that somebody gave.
    assert status.tolist() == [Status.NOT_FOUND, Status.PRESENT, Status.PRESENT]
    assert (read.epoch[0], read.offset[0]) == (1, 7)
    assert not any(present[0] for present in read.present.values())


def test_whoever_reads_a_tombstone_reads_the_empty_state() -> None:
    rows = three()
    rows.newest_ms[:], rows.epoch[:], rows.offset[:] = TOMBSTONE_MS, 1, 7
    names = [feature.name for feature in VIEW.features]
    view = OnlineView(VIEW, names)
    found = view.rows(encode_rows(LAYOUT, rows), [0, 1, 2], 1_650_800_000_000)
    none = view.rows([None] * 3, [0, 1, 2], 1_650_800_000_000)
    assert found == none
    assert found.event_ms == [0, 0, 0]
    assert FieldStatus.INVALID not in {each for name in names for each in found.statuses[name]}


def test_a_deleted_or_expired_row_has_the_values_of_none_whatever_their_kind() -> None:
    view = functions_view(ttl_ms=3_600_000)
    layout, ids = layout_of(view), np.array([7])
    actions = some_actions(200, 1)
    now_ms, row = int(actions["time_ms"].max()), np.zeros(200, np.intp)
    lived, deleted, none = (empty_rows(layout, ids) for _ in range(3))
    fold(view, lived, row, actions, np.full(200, now_ms))
    actions["type"][-1] = ActionType.DELETE_USER
    fold_in_order(view, deleted, row, actions, np.full(200, now_ms))
    then_ms = now_ms + view.ttl_ms + 1
    assert values(view, lived, now_ms) != values(view, none, now_ms)
    assert values(view, deleted, now_ms) == values(view, none, now_ms)
    assert values(view, lived, then_ms) == values(view, none, then_ms)


def values(view: ViewPlan, rows: Rows, now_ms: int) -> dict[str, tuple[list[Any], list[Any]]]:
    """Feature → values and nulls."""
    found = finalise(view, rows, now_ms)
    return {name: (found.values[name].tolist(), found.null[name].tolist()) for name in found.values}
