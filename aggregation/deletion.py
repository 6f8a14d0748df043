"""Fold what a log says in its order, deletions included.

A `delete_user` action empties its user's row: what lies before it in the log counts no more, what
lies behind it counts as ever, whatever its event time. The log decides and not the clock of a
device, so a row is a function of the log whichever way it was cut into batches. Whether an action
was late or from the future is judged and told all the same.

An emptied row is kept as a *tombstone*: no field is present, its newest event time is
`TOMBSTONE_MS`, and its fence keeps older messages from bringing anything back. Readers find nothing
there (`Status.NOT_FOUND`). Item rows hold sums over users and are left as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregation.fold import FoldReport, fold
from schemas.actions import ActionType
from schemas.plan import ViewPlan
from schemas.row import TOMBSTONE_MS, Rows


def fold_in_order(
    view: ViewPlan,
    rows: Rows,
    row_index: NDArray[np.intp],
    actions: NDArray[np.void],
    sent_ms: NDArray[np.int64],
) -> FoldReport:
    """As `aggregation.fold.fold`, for actions whose order within each row is that of the log.

    In the report, `folded` are also the actions that a later one deleted; rows that a deletion
    emptied are touched. Raises ValueError, PlanError.
    """
    deletes = deletions(view, actions)  # (a,) bool
    if not deletes.any():
        return fold(view, rows, row_index, actions, sent_ms)
    row_index = np.asarray(row_index, np.intp)
    last = np.full(len(rows), -1, np.intp)  # (n,) place of each row's last deletion
    np.maximum.at(last, row_index[deletes], np.flatnonzero(deletes))
    before = np.arange(len(actions)) <= last[row_index]  # (a,) bool
    reports = []
    for part in (before, ~before):
        reports.append(fold(view, rows, row_index[part], actions[part], sent_ms[part]))
        if part is before:
            _empty(rows, np.flatnonzero(last >= 0))
    return _joined(reports[0], reports[1], before, last >= 0)


def deletions(view: ViewPlan, actions: NDArray[np.void]) -> NDArray[np.bool_]:
    """(a,) bool: the actions that empty a row of this view."""
    if view.entity != "user":
        return np.zeros(len(actions), bool)
    return np.asarray(actions["type"] == ActionType.DELETE_USER)


def _empty(rows: Rows, at: NDArray[np.intp]) -> None:
    """Make tombstones of the rows `at`; their fences stay."""
    columns: tuple[dict[str, NDArray[Any]], ...] = (rows.values, rows.lengths, rows.present)
    for column in columns:
        for name, held in column.items():
            if not held.flags.writeable:
                column[name] = held = held.copy()
            held[at] = 0
    rows.newest_ms = rows.newest_ms.copy()
    rows.newest_ms[at] = TOMBSTONE_MS


def _joined(
    first: FoldReport, second: FoldReport, before: NDArray[np.bool_], emptied: NDArray[np.bool_]
) -> FoldReport:
    """The report of both parts together."""
    whole: dict[str, NDArray[np.bool_]] = {}
    for name in ("folded", "late", "future"):
        mask = np.zeros(len(before), bool)  # (a,)
        mask[before], mask[~before] = getattr(first, name), getattr(second, name)
        whole[name] = mask
    touched = first.touched | second.touched | emptied  # (n,)
    return replace(second, **whole, touched=touched, saturated=first.saturated + second.saturated)
