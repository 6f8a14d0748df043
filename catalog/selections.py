"""Which actions a declaration takes, as text and as the plan holds it.

    "play"                                      actions of a type, "*" for any
    "play|finish.value"                         a column of actions of several types
    "play.value where value >= 3000 and scene in (1, 2)"

A condition compares a column with whole numbers: ==, !=, <, <=, >, >= and in. All of them must
hold; an action whose edge did not know a column meets no condition on it. Text that means the same
gives the same selection: types, conditions and the numbers of an `in` are put in order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast

from aggregation.matching import ACTION_COLUMNS, ANY_ACTION, OR
from catalog.words import Action, ActionColumn
from schemas.actions import ACTION_TYPES, ActionType
from schemas.errors import DeclarationError
from schemas.plan import Comparison, ConditionPlan

ACTIONS: Final = tuple(
    name for name, kind in ACTION_TYPES.items() if kind is not ActionType.DELETE_USER
)
MAX_CONDITIONS: Final = 8
MAX_LISTED: Final = 64
WHERE: Final = " where "

_LONGEST_NAME: Final = 40
_CONDITION: Final = re.compile(r"(\w+)\s*(==|!=|<=|>=|<|>)\s*(-?\d+)|(\w+)\s+in\s*\(([-\d,\s]+)\)")
_NUMBER: Final = re.compile(r"-?\d{1,19}")
_INT64: Final = 1 << 63
_WORDS: Final[dict[str, str]] = {
    "==": "is",
    "!=": "not",
    "<": "lt",
    "<=": "le",
    ">": "gt",
    ">=": "ge",
    "in": "in",
}


@dataclass(frozen=True)
class Only:
    """Actions that are narrowed down, or a column of them. Make one with `only`."""

    what: Action | ActionColumn
    where: str
    also: tuple[Action, ...]

    def __str__(self) -> str:
        """As a Feast Aggregation's column holds it."""
        action, dot, column = self.what.partition(".")
        types = OR.join((action, *self.also))
        return f"{types}{dot}{column}{WHERE}{self.where}" if self.where else f"{types}{dot}{column}"

    def column(self, name: str) -> Only:
        """A column of these actions."""
        return Only(cast(ActionColumn, f"{self.what}.{name}"), self.where, self.also)


def only(what: Action | ActionColumn, where: str = "", *, also: Sequence[Action] = ()) -> Only:
    """The actions that meet all of some conditions, wherever an action or its column is named.

    where: as in "value >= 3000 and scene in (1, 2)": columns compared with whole numbers by ==, !=,
    <, <=, >, >= and in. An action whose edge did not know a column meets no condition on it. also:
    further types of actions, which count as the first.
    """
    return Only(what, where, tuple(also))


@dataclass(frozen=True)
class Selected:
    """A column of the actions that match, "" where none is named."""

    action: str
    column: str
    where: tuple[ConditionPlan, ...] = ()

    @property
    def actions(self) -> str:
        """The actions in the name of a stored field: `play`, `play_or_finish`, `any`."""
        return "any" if self.action == ANY_ACTION else self.action.replace(OR, "_or_")

    @property
    def conditions(self) -> str:
        """The conditions in the name of a stored field: `value_ge_3000`, "" for none."""
        spelled = "_".join(
            "_".join((each.column, _WORDS[each.op], *map(_spelled, each.values)))
            for each in self.where
        )
        if len(spelled) <= _LONGEST_NAME:
            return spelled
        return "where_" + hashlib.sha256(spelled.encode()).hexdigest()[:12]


def _spelled(value: int) -> str:
    return f"m{-value}" if value < 0 else str(value)


def selected_text(action: str, column: str, where: Sequence[ConditionPlan]) -> str:
    """The inverse of `parse_selection`, for people.

    >>> selected_text("play", "value", [ConditionPlan("value", ">=", (3_000,))])
    'play.value where value >= 3000'
    """
    conditions = " and ".join(
        f"{each.column} {each.op} {tuple(each.values) if each.op == 'in' else each.values[0]}"
        for each in where
    )
    of = f"{action}.{column}" if column else action
    return f"{of}{WHERE}{conditions}" if conditions else of


def parse_selection(declared: str, where: str, columns: Sequence[str] = ()) -> Selected:
    """The text of a Feast Aggregation's column. columns: further ones that a sequence knows.

    Raises DeclarationError.
    """
    what, _, conditions = declared.partition(WHERE)
    action, dot, column = what.strip().partition(".")
    if dot and column not in (*ACTION_COLUMNS, *columns):
        raise DeclarationError(
            f"{where}.column",
            required=f"a column of an action, one of {', '.join((*ACTION_COLUMNS, *columns))}",
            got=repr(column),
        )
    return Selected(_types(action, where), column, _conditions(conditions, where))


def _types(action: str, where: str) -> str:
    if action == ANY_ACTION:
        return action
    names = action.split(OR)
    for name in names:
        if name not in ACTIONS:
            raise DeclarationError(
                f"{where}.column",
                required=f"an action, one of {', '.join(ACTIONS)} or *",
                got=repr(name),
            )
    return OR.join(sorted(set(names), key=ACTIONS.index))


def _conditions(text: str, where: str) -> tuple[ConditionPlan, ...]:
    if not text.strip():
        return ()
    found = {_condition(each.strip(), where) for each in re.split(r"\s+and\s+", text)}
    if len(found) > MAX_CONDITIONS:
        raise DeclarationError(
            f"{where}.where", required=f"at most {MAX_CONDITIONS} conditions", got=str(len(found))
        )
    return tuple(sorted(found, key=lambda each: (each.column, each.op, each.values)))


def _condition(text: str, where: str) -> ConditionPlan:
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise DeclarationError(
            f"{where}.where",
            required="<column> <op> <whole number>, op one of ==, !=, <, <=, >, >=, or "
            "<column> in (<numbers>), joined by and",
            got=repr(text),
            do="write it as in 'value >= 3000 and scene in (1, 2)'",
        )
    column, op = (found[4], "in") if found[4] else (found[1], found[2])
    if column not in ACTION_COLUMNS:
        raise DeclarationError(
            f"{where}.where",
            required=f"a column of an action, one of {', '.join(ACTION_COLUMNS)}",
            got=repr(column),
        )
    values = _numbers(found[5] if found[4] else found[3], where)
    if op == "in" and len(values) == 1:
        op = "=="
    return ConditionPlan(column, cast(Comparison, op), values)


def _numbers(text: str, where: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    whole = all(_NUMBER.fullmatch(part) for part in parts)
    values = tuple(sorted({int(part) for part in parts})) if whole else ()
    if not 1 <= len(values) <= MAX_LISTED or not -_INT64 <= values[0] <= values[-1] < _INT64:
        raise DeclarationError(
            f"{where}.where", required=f"1 to {MAX_LISTED} whole numbers of int64", got=repr(text)
        )
    return values
