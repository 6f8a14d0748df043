"""The newest entries of an action: sequences as they are declared and stored.

Grammar of a Feast Aggregation: column as `catalog.selections` says, function "last_n:<n>", or
"last_n:<n>:<sequence>" for a column of a sequence that has several; name always, no window.
Function "last" is the newest entry alone, a number; its window says how old it may be, none that
it may have any age.

A column that stands alone is a sequence of its own, as long as the longest `n` of those actions and
that column; an action that does not know the column is left out. The columns of a named sequence
rest side by side: entry i of each is of the same action. Every action that matches is an entry
there, and a column that its edge did not know holds UNKNOWN, id 0. Column `age_ms` is not stored:
it is how long ago each entry was, at the time of the request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from feast import Field
from feast.aggregation import Aggregation

from aggregation.matching import ACTION_COLUMNS
from catalog import tags
from catalog.drafts import SlotDraft
from catalog.durations import text, to_ms
from catalog.fields import MAX_CAPACITY, check_name
from catalog.selections import Selected, parse_selection
from schemas.actions import UNKNOWN
from schemas.errors import DeclarationError
from schemas.plan import FeatureKind, FeaturePlan, SequencePlan

AGE: Final = "age_ms"
TIME: Final = "time_ms"
LAST: Final = "last"
LAST_N: Final = re.compile(r"last_n:(-?\d+)(?::(.*))?")
#: Entries that `last` keeps: those whose time has not come yet hide the ones before them, up to 3.
LAST_KEPT: Final = 4


@dataclass(frozen=True)
class LastN:
    """The newest `n` values of one column of the actions that match.

    group: the declared name of the sequence that it is a column of, "" where it stands alone.
    single: only the newest of them, as a number, and not where it is older than within_ms (0: at
    any age).
    """

    name: str
    selected: Selected
    n: int
    group: str = ""
    single: bool = False
    within_ms: int = 0

    @property
    def column(self) -> str:
        """The column, `age_ms` among them."""
        return self.selected.column

    @property
    def sequence(self) -> str:
        """The stored sequence's name: `last_plays`, `last_play_item`."""
        alone = "time" if self.column in (AGE, TIME) else self.column
        parts = ("last", self.selected.actions, alone, self.selected.conditions)
        return self.group or "_".join(part for part in parts if part)

    @property
    def field(self) -> str:
        """The stored field of the column: of ages and times that of the event times."""
        if self.column in (AGE, TIME):
            return f"{self.sequence}_at_ms"
        return f"{self.sequence}_{self.column}" if self.group else self.sequence


def parse_last(declared: Aggregation, where: str) -> LastN | None:
    """An aggregation as a column of a sequence, None where it is another function.

    Raises DeclarationError.
    """
    found = LAST_N.fullmatch(declared.function)
    if found is None and declared.function != LAST:
        return None
    n, group = (int(found[1]), found[2]) if found else (LAST_KEPT, None)
    if not 1 <= n <= MAX_CAPACITY:
        raise DeclarationError(
            f"{where}.function", required=f"last_n of 1 to {MAX_CAPACITY}", got=str(n)
        )
    if group is not None:
        check_name(group, f"{where}.sequence")
    selected = parse_selection(declared.column, where, (AGE,))
    if not selected.column:
        raise DeclarationError(
            f"{where}.column",
            required=f"<action>.<column> for {'last_n' if found else LAST}",
            got=repr(declared.column),
            do=f"use '{selected.action}.item'",
        )
    if found is None:
        if selected.column == TIME:
            raise DeclarationError(
                f"{where}.column",
                required="a column, or how long ago the newest was",
                got=repr(declared.column),
                do=f"use '{selected.action}.{AGE}'",
            )
        return LastN(declared.name, selected, n, single=True, within_ms=_within(declared, where))
    if declared.time_window is not None:
        raise DeclarationError(
            f"{where}.window",
            required="no window for last_n, which keeps the newest whatever their age",
            got=text(to_ms(declared.time_window)),
        )
    return LastN(declared.name, selected, n, group or "")


def _within(declared: Aggregation, where: str) -> int:
    """How old the newest may be, 0 for any age."""
    if declared.time_window is None:
        return 0
    within_ms = to_ms(declared.time_window)
    if within_ms <= 0:
        raise DeclarationError(
            f"{where}.window", required="a window longer than 0", got=text(within_ms)
        )
    return within_ms


def compile_sequences(
    view: str, declared: Sequence[LastN]
) -> tuple[list[SequencePlan], list[FeaturePlan]]:
    """The stored sequences, by name, and the features read from them. Raises DeclarationError."""
    members: dict[str, list[LastN]] = {}
    for each in declared:
        members.setdefault(each.sequence, []).append(each)
    for found in members.values():
        _check_one_sequence(view, found)
    stored = [_stored(name, found) for name, found in sorted(members.items())]
    features = [
        FeaturePlan(
            name=each.name,
            dtype="i64",
            kind=_kind(each),
            source=each.field,
            capacity=0 if each.single else each.n,
            within_ms=each.within_ms,
        )
        for each in declared
    ]
    return stored, features


def _kind(column: LastN) -> FeatureKind:
    if column.single:
        return "last"
    return "age" if column.column == AGE else "sequence"


def sequence_slot(slot: SlotDraft, column: LastN, field: Field, where: str) -> SlotDraft:
    """The slot of a sequence's column. Raises DeclarationError."""
    if column.column == TIME:
        raise refuse_time(column.selected, where)
    if column.single:
        return slot
    length = tags.integer(field.tags, tags.LENGTH, where, low=1, default=column.n)
    if length > column.n:
        raise DeclarationError(
            f"{where}.length",
            required=f"at most the {column.n} stored",
            got=str(length),
            do=f"declare last_n of {length}, or a length of {column.n}",
        )
    gaps = column.group and ACTION_COLUMNS.get(column.column)
    return replace(
        slot, length=length, aligned=column.group, sentinels=(float(UNKNOWN),) if gaps else ()
    )


def refuse_time(selected: Selected, where: str) -> DeclarationError:
    """What to raise for a transform over a time."""
    return DeclarationError(
        f"{where}.transform",
        required="none for a time, which no later request has again",
        got=f"one over {selected.action}.{TIME}",
        do=f"declare '{selected.action}.{AGE}', the time that has passed at the request",
    )


def check_aligned(view: str, slots: Iterable[SlotDraft]) -> None:
    """Raises DeclarationError unless the slots of one sequence take equally many entries."""
    lengths: dict[str, SlotDraft] = {}
    for slot in slots:
        first = lengths.setdefault(slot.aligned, slot) if slot.aligned else slot
        if slot.length != first.length:
            raise DeclarationError(
                f"{view}.{slot.declared}.length",
                required=f"{first.length}, as {first.declared} of the same sequence",
                got=str(slot.length),
                do="declare length= once, with recent(…)",
            )


def _stored(name: str, members: Sequence[LastN]) -> SequencePlan:
    first = members[0]
    kept = {each.column: each.field for each in members if each.column not in (AGE, TIME)}
    columns = tuple(sorted(kept))
    return SequencePlan(
        name=name,
        action=first.selected.action,
        columns=columns,
        fields=tuple(kept[column] for column in columns),
        time_field=f"{name}_at_ms",
        capacity=max(each.n for each in members),
        gaps=bool(first.group),
        where=first.selected.where,
    )


def _check_one_sequence(view: str, members: Sequence[LastN]) -> None:
    """Columns of one named sequence agree in what they are columns of."""
    first = members[0]
    where = f"{view}.{first.sequence}"
    if len({each.group for each in members}) > 1:
        raise DeclarationError(
            where,
            required="a name that no other sequence has",
            got=f"that of {', '.join(each.name for each in members if not each.group)}",
            do="name the sequence otherwise",
        )
    if not first.group:
        return
    for what, values in (
        ("action", [each.selected.action for each in members]),
        ("where", [each.selected.conditions or "none" for each in members]),
        ("length", [str(each.n) for each in members]),
    ):
        if len(set(values)) > 1:
            raise DeclarationError(
                f"{where}.{what}",
                required=f"one {what} for all columns of a sequence",
                got=" and ".join(dict.fromkeys(values)),
                do="declare them with one recent(…)",
            )
    columns = [each.column for each in members]
    for column in columns:
        if columns.count(column) > 1:
            names = [each.name for each in members if each.column == column]
            raise DeclarationError(
                f"{where}.{column}",
                required="each column once",
                got=" and ".join(names),
                do="keep one of them",
            )
