"""Which actions an accumulator or sequence takes, and what it takes of them.

`delete_user` is an instruction, not behaviour: it is never folded, so not even `*` counts it. An
action whose edge did not know a column (its author, music, position, or a first tag) is counted by
counts of all, adds nothing to what is kept of that column, meets no condition on it, and is left
out of a sequence that keeps it, or is an entry with UNKNOWN there where the sequence may have gaps.

Symbols: a actions, m folded actions, r rows with at least one of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.actions import (
    ACTION_TYPES,
    KNOWN_AUTHOR,
    KNOWN_MUSIC,
    KNOWN_POSITION,
    KNOWN_TAGS_SHIFT,
    UNKNOWN,
    ActionType,
)
from schemas.errors import PlanError
from schemas.plan import AccumulatorPlan, Comparison, ConditionPlan, SequencePlan

ANY_ACTION: Final = "*"
OR: Final = "|"

#: The action types that are folded.
BEHAVIOUR: Final = frozenset(ACTION_TYPES) - {ActionType.DELETE_USER.name.lower()}

#: The action columns that declarations may name, and the bits of `known` of which one must be set.
ACTION_COLUMNS: Final[dict[str, int]] = {
    "user": 0,
    "item": 0,
    "author": KNOWN_AUTHOR,
    "music": KNOWN_MUSIC,
    "value": 0,
    "position": KNOWN_POSITION,
    "scene": 0,
    "time_ms": 0,
    "tag": 0xFF << KNOWN_TAGS_SHIFT & 0xFF,
}

Array = NDArray[Any]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]

_COMPARE: Final[dict[Comparison, Callable[[Array, int], Mask]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Selection:
    """What a ring or sequence takes. action, where: as in the plan. columns: those that must be
    known. Hashable: what several take alike is found once."""

    action: str
    columns: tuple[str, ...] = ()
    where: tuple[ConditionPlan, ...] = ()

    @classmethod
    def of(cls, program: AccumulatorPlan | SequencePlan) -> Selection:
        """What a ring, or a sequence, selects. Raises PlanError for a column that no action has."""
        if isinstance(program, SequencePlan):
            columns = program.columns
        else:
            columns = (program.column,) if program.column else ()
        for column in columns:
            _known_bits(column)
        gaps = isinstance(program, SequencePlan) and program.gaps
        return cls(program.action, () if gaps else columns, program.where)


@dataclass(frozen=True, slots=True)
class OrderedActions:
    """The folded actions of a call, by row, newest first within a row (ties in any order).

    rows: (r,) the touched rows, ascending. newest_ms: (r,) the newest action's time of each. order:
    (m,) index of each action into `actions`. group: (m,) place of its row in `rows`, ascending.
    time_ms, kind, known: (m,) of each.
    """

    actions: NDArray[np.void]
    rows: Index
    newest_ms: NDArray[np.int64]
    order: Index
    group: Index
    time_ms: NDArray[np.int64]
    kind: NDArray[np.uint8]
    known: NDArray[np.uint8]

    @classmethod
    def of(cls, actions: NDArray[np.void], row_index: Index, chosen: Index) -> OrderedActions:
        """Order the `chosen` (indexes into `actions`); row_index is (a,)."""
        row = row_index[chosen]  # (m,)
        time_ms = actions["time_ms"][chosen]  # (m,) int64
        by_row = _sorted_by(row, time_ms)
        row, time_ms, order = row[by_row], time_ms[by_row], chosen[by_row]
        starts = run_starts(row)  # (r,)
        group = run_numbers(starts, len(row))  # (m,)
        kind, known = actions["type"][order], actions["known"][order]  # (m,) u1
        return cls(actions, row[starts], time_ms[starts], order, group, time_ms, kind, known)

    def matching(self, selection: Selection) -> Index:
        """Positions, ascending, of the actions that a selection takes.

        Raises PlanError for a type, column or comparison that no action has.
        """
        taken = self._of_type(selection.action)  # (m,)
        for column in (*selection.columns, *(each.column for each in selection.where)):
            bits = _known_bits(column)
            if bits:
                taken = taken & (self.known & bits != 0)
        found = np.flatnonzero(taken)
        for condition in selection.where:
            found = found[_meets(self.column(condition.column, found), condition)]
        return found

    def _of_type(self, action: str) -> Mask:
        """Which actions are of these types, (m,)."""
        if action == ANY_ACTION:
            return np.ones(len(self.order), bool)
        names = action.split(OR)
        if not set(names) <= BEHAVIOUR:
            raise PlanError(
                "plan action",
                required=f"one of {', '.join((ANY_ACTION, *sorted(BEHAVIOUR)))}",
                got=repr(action),
            )
        of_type = np.zeros(256, bool)
        of_type[[ACTION_TYPES[name] for name in names]] = True
        taken: Mask = of_type[self.kind]
        return taken

    def column(self, name: str, at: Index) -> NDArray[np.int64]:
        """A column's values at positions `at` (k,), UNKNOWN where an action does not know it.

        Returns (k,) int64.
        """
        if name == "time_ms":
            return self.time_ms[at]
        values = self.actions["tags"][:, 0] if name == "tag" else self.actions[name]
        taken: NDArray[np.int64] = values[self.order[at]].astype(np.int64, copy=False)
        bits = _known_bits(name)
        return taken if not bits else np.where(self.known[at] & bits, taken, UNKNOWN)


def _meets(values: NDArray[np.int64], condition: ConditionPlan) -> Mask:
    """Which values, (k,), meet a condition on them."""
    if condition.op == "in":
        return np.isin(values, np.array(condition.values, np.int64))
    compare = _COMPARE.get(condition.op)
    if compare is None or len(condition.values) != 1:
        raise PlanError(
            "plan condition",
            required=f"in, or one of {', '.join(_COMPARE)} with one constant",
            got=f"{condition.op} with {len(condition.values)}",
        )
    return compare(values, condition.values[0])


def run_starts(keys: Array) -> Index:
    """Where each run of equal keys begins. keys: (m,). Returns (runs,) ascending."""
    if len(keys) == 0:
        return np.zeros(0, np.intp)
    return np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))


def run_numbers(starts: Index, total: int) -> Index:
    """The number of the run each of `total` elements is in. Returns (total,) ascending."""
    return np.repeat(np.arange(len(starts)), np.diff(starts, append=total))


def _known_bits(column: str) -> int:
    try:
        return ACTION_COLUMNS[column]
    except KeyError:
        names = ", ".join(ACTION_COLUMNS)
        raise PlanError("plan column", required=f"one of {names}", got=repr(column)) from None


def _sorted_by(row: Index, time_ms: NDArray[np.int64]) -> Index:
    """The order by row ascending, then time descending. Returns (m,)."""
    if len(row) == 0:
        return np.zeros(0, np.intp)
    newest = int(time_ms.max())
    span = newest - int(time_ms.min()) + 1
    if (int(row.max()) + 1) * span < 1 << 62:  # both in one key: one fast sort instead of two
        return np.argsort(row * span + (newest - time_ms))
    return np.lexsort((-time_ms, row))
