"""Typed helpers for what a streamed view folds: windows and sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from feast import Field
from feast.aggregation import Aggregation
from feast.types import Array, FeastType, Int64

from catalog import tags as names
from catalog.arguments import duration, instance
from catalog.selections import Only, only
from catalog.transforms import Transform
from catalog.words import Action, ActionColumn, SequenceColumn

MINUTE: Final = timedelta(minutes=1)
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
WEEK: Final = timedelta(days=7)


@dataclass(frozen=True)
class Windowed:
    """One feature of a streamed view: what readers get, and how it is computed."""

    field: Field
    aggregation: Aggregation


@dataclass(frozen=True)
class Column:
    """A column of a sequence. Make one with `column`."""

    name: str
    of: SequenceColumn
    transform: Transform | None
    shares: str


@dataclass(frozen=True)
class Sequenced:
    """The columns of one sequence, a feature each, aligned position by position."""

    columns: tuple[Windowed, ...]


@dataclass(frozen=True)
class Span:
    """A function of a window. function: as a Feast Aggregation holds it. hop: the default one
    unless given."""

    function: str
    window: timedelta
    hop: timedelta | None = None


def windowed(
    name: str,
    column: str | Only,
    span: Span,
    transform: Transform | None,
    dtype: FeastType = Int64,
) -> Windowed:
    """The feature of a window. column: the action, or a column of it."""
    window = duration(span.window, f"{name}.window")
    hop = default_hop(window) if span.hop is None else duration(span.hop, f"{name}.hop")
    aggregation = Aggregation(str(column), span.function, window, hop, name)
    return Windowed(new_field(name, dtype, transform, {}), aggregation)


@dataclass(frozen=True)
class Measure:
    """A function of a column's values in a window. Declare a feature of it by calling it."""

    function: str
    dtype: FeastType = Int64

    def __call__(
        self,
        name: str,
        column: ActionColumn | Only,
        window: timedelta,
        transform: Transform | None = None,
        *,
        hop: timedelta | None = None,
    ) -> Windowed:
        """The feature `name`. column: an action's, such as "play.value", the play's milliseconds.

        hop: the step of the window, by default that of `default_hop`.
        """
        return windowed(name, column, Span(self.function, window, hop), transform, self.dtype)


total: Final = Measure("sum")
"""The sum of an action's column over the window."""


def count(
    name: str,
    action: Action | Only,
    window: timedelta,
    transform: Transform | None = None,
    *,
    hop: timedelta | None = None,
) -> Windowed:
    """How many actions of that type ("click", or "*" for any) the window holds."""
    return windowed(name, action, Span("count", window, hop), transform)


def column(
    name: str, of: SequenceColumn, transform: Transform | None = None, *, shares: str = ""
) -> Column:
    """A column of a sequence, as the feature `name`.

    of: "item", "author", "value" (play ms), "tag" (the item's first), …, or "age_ms", how long ago
    the action was at the time of the request. shares: "view:feature" whose ids and table it uses.
    """
    return Column(name, of, transform, shares)


def last_n(
    name: str,
    column: ActionColumn | Only,
    n: int,
    transform: Transform | None = None,
    *,
    shares: str = "",
    length: int | None = None,
) -> Windowed:
    """The newest `n` values of an action's column ("play.item"), newest first.

    length: how many of them a tensor takes; all unless given.
    """
    extra = {names.SHARES: shares, names.LENGTH: length}
    return _newest(name, str(column), f"last_n:{n}", transform, extra)


def recent(
    name: str,
    action: Action | Only,
    n: int,
    columns: Sequence[Column],
    *,
    length: int | None = None,
) -> Sequenced:
    """The newest `n` actions of a type, newest first: several columns of them, side by side.

    Each column is a feature; entry i of all of them is of the same action, and one that its edge
    did not know has id 0. name: of what is stored. length: how many entries a tensor takes; all
    unless given.
    """
    of = action if isinstance(action, Only) else only(action)
    return Sequenced(
        tuple(
            _newest(
                each.name,
                str(of.column(each.of)),
                f"last_n:{n}:{name}",
                each.transform,
                {names.SHARES: each.shares, names.LENGTH: length},
            )
            for each in columns
        )
    )


def _newest(
    name: str,
    column: str,
    function: str,
    transform: Transform | None,
    extra: Mapping[str, object],
) -> Windowed:
    field = new_field(name, Array(Int64), transform, extra)
    return Windowed(field, Aggregation(column=column, function=function, name=name))


def default_hop(window: timedelta) -> timedelta:
    """5 min up to an hour, 1 h up to a day, 1 d beyond.

    >>> default_hop(timedelta(days=7))
    datetime.timedelta(days=1)
    """
    if window <= HOUR:
        return 5 * MINUTE
    return HOUR if window <= DAY else DAY


def new_field(
    name: str, dtype: FeastType, transform: Transform | None, extra: Mapping[str, object]
) -> Field:
    """A Feast Field with encore's tags; those that are None or "" are left out."""
    held = {tag: str(value) for tag, value in extra.items() if value is not None and value != ""}
    if transform is not None:
        where = f"{name}.transform"
        made = instance(transform, Transform, where, "an ID transform, such as log_buckets(…)")
        held[names.TRANSFORM] = made.to_json(where)
    return Field(name=name, dtype=dtype, tags=held)
