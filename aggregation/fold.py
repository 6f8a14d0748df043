"""Fold actions into the state of rows, many rows and actions at once.

The state of a row is a function of the set of actions folded into it, not of how they were batched
or in which order they came:

- rings hold integers of the tiles up to a head (`aggregation.tiles`), and the head of every ring is
  the tile of the row's newest folded action, whatever its type;
- sequences are the newest K of all matching actions in a total order (`aggregation.sequences`);
- whether an action is late or from the future depends on it and its own `sent_ms` only.

Symbols: n rows, r of them touched, a actions, m folded actions, T slots of a ring, K capacity of a
sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregation.matching import OrderedActions, Selection, run_numbers, run_starts
from aggregation.rings import TileRuns, moved_slots
from aggregation.saturate import saturate
from aggregation.sequences import Entries, merge
from aggregation.tiles import ADD, MAX_ACTIONS
from schemas.actions import ActionType
from schemas.plan import AccumulatorPlan, SequencePlan, ViewPlan
from schemas.row import Rows

Array = NDArray[Any]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]

#: What a program takes → positions in order that match.
Taken = dict[Selection, Index]


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What became of each action, (a,) bool each; at most one is true.

    folded: is in its row's state now (also when no accumulator or sequence of the view takes it:
    it moves the row's clock). late, future: outside the view's bounds, for the side output. An
    action with none of the three is an instruction (`delete_user`) and is left to the caller.
    touched: (n,) bool rows with at least one folded action. saturated: tiles that this call cut off
    at their maximum.
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

    Raises ValueError for arrays that do not fit or more than 2^22 actions, PlanError for a program
    no action can feed. Rows are unchanged after either.
    """
    row_index, sent_ms = np.asarray(row_index, np.intp), np.asarray(sent_ms, np.int64)
    n = len(rows.entity_ids)
    if not len(actions) == len(row_index) == len(sent_ms):
        got = f"{len(actions)}, {len(row_index)} and {len(sent_ms)}"
        raise ValueError(f"fold: needs one row and one sent_ms an action, got {got}")
    if ((row_index < 0) | (row_index >= n)).any():
        raise ValueError(f"fold: needs row_index within [0, {n})")
    if len(actions) > MAX_ACTIONS:
        raise ValueError(f"fold: needs at most {MAX_ACTIONS} actions a call, got {len(actions)}")
    late, future, chosen = judge(view, actions, sent_ms)
    ordered = OrderedActions.of(actions, row_index, np.flatnonzero(chosen))
    wanted = {Selection.of(ring) for ring in view.accumulators}
    wanted |= {Selection.of(sequence) for sequence in view.sequences}
    taken = {selection: ordered.matching(selection) for selection in wanted}
    touched = np.zeros(n, bool)
    saturated = 0
    if len(ordered.rows):
        touched[ordered.rows] = True
        saturated = _fold_rings(view, rows, ordered, taken)
        for sequence in view.sequences:
            _fold_sequence(sequence, rows, ordered, taken[Selection.of(sequence)])
        _advance_clock(view, rows, ordered)
    return FoldReport(chosen, late, future, touched, saturated)


def judge(
    view: ViewPlan, actions: NDArray[np.void], sent_ms: NDArray[np.int64]
) -> tuple[Mask, Mask, Mask]:
    """Late, future and folded actions by the view's time bounds, (a,) bool each.

    actions: (a,) ACTION. sent_ms: (a,) when the message of each was sent.
    """
    time_ms = actions["time_ms"]  # (a,) int64
    behaviour = actions["type"] != ActionType.DELETE_USER  # (a,)
    late = behaviour & (time_ms < sent_ms - view.skew_ms)
    future = behaviour & (time_ms > sent_ms + view.future_ms)
    return late, future, behaviour & ~late & ~future


def _fold_rings(view: ViewPlan, rows: Rows, ordered: OrderedActions, taken: Taken) -> int:
    """Advance and fill all rings. Returns the number of tiles cut off at their maximum."""
    saturated = 0
    shapes: dict[tuple[str, int, int], list[AccumulatorPlan]] = {}
    for ring in view.accumulators:
        shapes.setdefault((ring.head, ring.hop_ms, ring.tiles), []).append(ring)
    for (head, hop_ms, tiles), rings in shapes.items():
        newest = _new_heads(rows, head, hop_ms, ordered)  # (r,)
        left = _left_slots(rows, head, ordered.rows, newest, tiles)
        tile = ordered.time_ms // hop_ms  # (m,)
        inside = tile > newest[ordered.group] - tiles  # (m,)
        filled: dict[Selection, tuple[Index, TileRuns | None]] = {}
        for selection in {Selection.of(ring) for ring in rings}:
            at = taken[selection]
            at = at[inside[at]]  # (k,)
            row = ordered.rows[ordered.group[at]]  # (k,)
            filled[selection] = at, TileRuns.of(row, tile[at] % tiles, tiles) if len(at) else None
        for ring in rings:
            state = _writeable(rows.values, ring.field)  # (n, T * W)
            _clear(state, left, ring.width)
            at, runs = filled[Selection.of(ring)]
            if runs is not None:
                values = ordered.column(ring.column, at) if ring.column else at  # (k,)
                saturated += ADD[ring.function](state, runs, values)
    return saturated


def _left_slots(
    rows: Rows, head: str, at: Index, newest: NDArray[np.int64], tiles: int
) -> tuple[Index, Index]:
    """The (row, slot) pairs that tiles left since the rows' heads. at: (r,). newest: (r,)."""
    held = rows.values[head][at]  # (r,)
    moved = rows.present[head][at] & (held < newest)  # (r,) a row without a head is all zeros
    row, slot = np.nonzero(moved_slots(held[moved], newest[moved], tiles))
    return at[moved][row], slot


def _clear(state: Array, left: tuple[Index, Index], width: int) -> None:
    """Zero all numbers of the tiles at those (row, slot) pairs. state: (n, T * W)."""
    row, slot = left
    if width == 1:
        state[row, slot] = 0
    else:
        state[row[:, None], slot[:, None] * width + np.arange(width)] = 0


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
        _writeable(rows.values, name)[at] = values
        _writeable(rows.lengths, name)[at] = lengths


def _advance_clock(view: ViewPlan, rows: Rows, ordered: OrderedActions) -> None:
    """Heads and newest_ms of the touched rows, and all their state fields present."""
    at = ordered.rows  # (r,)
    for head, hop_ms in {(ring.head, ring.hop_ms) for ring in view.accumulators}:
        newest = _new_heads(rows, head, hop_ms, ordered)
        _writeable(rows.values, head)[at] = newest
        _fill(rows.present, head, at, True)
    for ring in view.accumulators:
        _fill(rows.present, ring.field, at, True)
        _fill(rows.lengths, ring.field, at, ring.tiles * ring.width)
    for sequence in view.sequences:
        for name in (sequence.time_field, *sequence.fields):
            _fill(rows.present, name, at, True)
    newest_ms = rows.newest_ms.copy()  # (n,)
    newest_ms[at] = np.maximum(newest_ms[at], ordered.newest_ms)
    rows.newest_ms = newest_ms


def _fill(columns: dict[str, Any], name: str, at: Index, value: int) -> None:
    """Write one value at rows `at`, where it is not there yet."""
    if (columns[name][at] != value).any():
        _writeable(columns, name)[at] = value


def _writeable(columns: dict[str, Any], name: str) -> Array:
    """A column that can be written to: a copy takes the place of one that cannot."""
    if not columns[name].flags.writeable:
        columns[name] = columns[name].copy()
    column: Array = columns[name]
    return column
