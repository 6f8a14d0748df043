"""Fold actions into the state of rows, many rows and actions at once.

The state of a row is a function of the set of actions folded into it, not of how they were batched
or in which order they came:

- rings hold integer counts that saturate, and exact sums, of the tiles up to a head, and the head
  of every ring is the tile of the row's newest folded action, whatever its type;
- sequences are the newest K of all matching actions in a total order (`aggregation.sequences`);
- whether an action is late or from the future depends on it and its own `sent_ms` only.

Symbols: n rows, r of them touched, a actions, m folded actions, T slots of a ring, K capacity of a
sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.matching import OrderedActions, run_numbers, run_starts
from aggregation.rings import add_counts, add_values, moved_slots
from aggregation.saturate import saturate
from aggregation.sequences import Entries, merge
from schemas.actions import ActionType
from schemas.plan import AccumulatorPlan, SequencePlan, ViewPlan
from schemas.row import Rows

Array = NDArray[Any]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]

#: What a program takes, (action, columns that must be known), → positions in order that match.
Taken = dict[tuple[str, tuple[str, ...]], Index]

NO_COLUMNS: Final[tuple[str, ...]] = ()


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What became of each action, (a,) bool each; at most one is true.

    folded: is in its row's state now (also when no accumulator or sequence of the view takes it:
    it moves the row's clock). late, future: outside the view's bounds, for the side output. An
    action with none of the three is an instruction (`delete_user`) and is left to the caller.
    touched: (n,) bool rows with at least one folded action. saturated: ring cells that this call
    cut off at their maximum.
    """

    folded: Mask
    late: Mask
    future: Mask
    touched: Mask
    saturated: int


def fold(
    view: ViewPlan, rows: Rows, row_index: Array, actions: NDArray[np.void], sent_ms: Array
) -> FoldReport:
    """Fold actions into rows in place; the fence fields are the caller's.

    view: a streamed view. rows: its n rows; arrays that are read-only are replaced. row_index:
    (a,) the row of each action, in [0, n). actions: (a,) ACTION, as a decoder passed them. sent_ms:
    (a,) when the message of each was sent; an action is late when `time_ms < sent_ms - skew_ms`,
    from the future when `time_ms > sent_ms + future_ms`. The work grows with a and the number of
    rows touched, not with n.

    Raises ValueError for arrays that do not fit, PlanError for a program no action can feed. Rows
    are unchanged after either.
    """
    row_index, sent_ms = np.asarray(row_index, np.intp), np.asarray(sent_ms, np.int64)
    n = len(rows.entity_ids)
    if not len(actions) == len(row_index) == len(sent_ms):
        got = f"{len(actions)}, {len(row_index)} and {len(sent_ms)}"
        raise ValueError(f"fold: needs one row and one sent_ms an action, got {got}")
    if ((row_index < 0) | (row_index >= n)).any():
        raise ValueError(f"fold: needs row_index within [0, {n})")
    late, future, chosen = _judge(view, actions, sent_ms)
    ordered = OrderedActions.of(actions, row_index, np.flatnonzero(chosen))
    taken = {columns: ordered.matching(*columns) for columns in _wanted(view)}
    touched = np.zeros(n, bool)
    saturated = 0
    if len(ordered.rows):
        touched[ordered.rows] = True
        saturated = _fold_rings(view, rows, ordered, taken)
        for sequence in view.sequences:
            _fold_sequence(sequence, rows, ordered, taken[_entries_of(sequence)])
        _advance_clock(view, rows, ordered)
    return FoldReport(chosen, late, future, touched, saturated)


def _judge(
    view: ViewPlan, actions: NDArray[np.void], sent_ms: NDArray[np.int64]
) -> tuple[Mask, Mask, Mask]:
    """Late, future and folded actions, (a,) bool each."""
    time_ms = actions["time_ms"]  # (a,) int64
    behaviour = actions["type"] != ActionType.DELETE_USER  # (a,)
    late = behaviour & (time_ms < sent_ms - view.skew_ms)
    future = behaviour & (time_ms > sent_ms + view.future_ms)
    return late, future, behaviour & ~late & ~future


def _wanted(view: ViewPlan) -> set[tuple[str, tuple[str, ...]]]:
    """Each (action, columns) that some accumulator or sequence of the view takes."""
    rings = {(ring.action, _columns(ring)) for ring in view.accumulators}
    return rings | {_entries_of(sequence) for sequence in view.sequences}


def _columns(ring: AccumulatorPlan) -> tuple[str, ...]:
    return (ring.column,) if ring.function == "sum" else NO_COLUMNS


def _entries_of(sequence: SequencePlan) -> tuple[str, tuple[str, ...]]:
    """The action, and the columns that it must know to be an entry."""
    return sequence.action, NO_COLUMNS if sequence.gaps else sequence.columns


def _fold_rings(view: ViewPlan, rows: Rows, ordered: OrderedActions, taken: Taken) -> int:
    """Advance and fill all rings. Returns the number of cells cut off at their maximum."""
    saturated = 0
    at = ordered.rows  # (r,)
    shapes = dict.fromkeys((ring.head, ring.hop_ms, ring.tiles) for ring in view.accumulators)
    for head, hop_ms, tiles in shapes:
        newest = _new_heads(rows, head, hop_ms, ordered)  # (r,)
        old = np.where(rows.present[head][at], rows.values[head][at], newest - tiles)  # (r,)
        clear = moved_slots(old, newest, tiles)  # (r, T)
        tile = ordered.time_ms // hop_ms  # (m,)
        inside = tile > newest[ordered.group] - tiles  # (m,)
        cells = ordered.group * tiles + tile % tiles  # (m,) in the touched rows' rings
        for ring in view.accumulators:
            if (ring.head, ring.hop_ms, ring.tiles) != (head, hop_ms, tiles):
                continue
            state = rows.values[ring.field][at]  # (r, T), a copy
            np.copyto(state, 0, where=clear)
            matching = taken[ring.action, _columns(ring)]
            matching = matching[inside[matching]]
            if ring.function == "count":
                saturated += add_counts(state, cells[matching])
            else:
                add_values(state, cells[matching], ordered.column(ring.column, matching))
            _put(rows.values, ring.field, at, state)
    return saturated


def _new_heads(rows: Rows, head: str, hop_ms: int, ordered: OrderedActions) -> NDArray[np.int64]:
    """The touched rows' heads once all folded actions are in. Returns (r,) int64."""
    newest: NDArray[np.int64] = ordered.newest_ms // hop_ms  # (r,)
    held = rows.present[head][ordered.rows]  # (r,)
    return np.where(held, np.maximum(rows.values[head][ordered.rows], newest), newest)


def _fold_sequence(
    sequence: SequencePlan, rows: Rows, ordered: OrderedActions, matching: Index
) -> None:
    """Merge the actions at the positions `matching` (k,), ascending, into one sequence."""
    if len(matching) == 0:
        return
    group = ordered.group[matching]  # (k,)
    starts = run_starts(group)
    at = ordered.rows[group[starts]]  # rows that gain an entry
    names = (sequence.time_field, *sequence.fields)
    held = tuple(rows.values[name][at] for name in names)  # (len(at), K) each
    keys = tuple(
        saturate(ordered.column(column, matching), old.dtype)
        for column, old in zip(("time_ms", *sequence.columns), held, strict=True)
    )
    lengths = rows.lengths[sequence.time_field][at]
    entries = Entries(run_numbers(starts, len(group)), keys)
    merged, lengths = merge(held, lengths, entries)
    for name, values in zip(names, merged, strict=True):
        _put(rows.values, name, at, values)
        _put(rows.lengths, name, at, lengths)


def _advance_clock(view: ViewPlan, rows: Rows, ordered: OrderedActions) -> None:
    """Heads and newest_ms of the touched rows, and all their state fields present."""
    at = ordered.rows  # (r,)
    for head, hop_ms in {(ring.head, ring.hop_ms) for ring in view.accumulators}:
        _put(rows.values, head, at, _new_heads(rows, head, hop_ms, ordered))
        _put(rows.present, head, at, True)
    for ring in view.accumulators:
        _put(rows.present, ring.field, at, True)
        _put(rows.lengths, ring.field, at, ring.tiles)
    for sequence in view.sequences:
        for name in (sequence.time_field, *sequence.fields):
            _put(rows.present, name, at, True)
    newest_ms = rows.newest_ms.copy()  # (n,)
    newest_ms[at] = np.maximum(newest_ms[at], ordered.newest_ms)
    rows.newest_ms = newest_ms


def _put(columns: dict[str, Any], name: str, at: Index, values: Any) -> None:
    """Write values at rows `at`, into a fresh column where this one is read-only."""
    if not columns[name].flags.writeable:
        columns[name] = columns[name].copy()
    columns[name][at] = values
