"""Typed helpers for the functions of a window beside counts and sums, and of features."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from feast.aggregation import Aggregation
from feast.types import Float64, Int64

from catalog import tags as names
from catalog.arguments import duration
from catalog.durations import to_ms
from catalog.selections import Only
from catalog.sequences import LAST
from catalog.transforms import Transform
from catalog.windows import Measure, Span, Windowed, new_field, windowed
from catalog.words import Action, ActionColumn

mean: Final = Measure("mean", Float64)
"""The mean of an action's column over the window; null of an empty one."""

std: Final = Measure("std", Float64)
"""The standard deviation of a column over the window, of all its actions rather than a sample: 0 of
one, null of none."""

smallest: Final = Measure("min")
"""The smallest value of a column over the window; null of an empty one."""

greatest: Final = Measure("max")
"""The greatest value of a column over the window; null of an empty one."""


def distinct(
    name: str,
    column: ActionColumn | Only,
    window: timedelta,
    transform: Transform | None = None,
    *,
    capacity: int = 32,
    hop: timedelta | None = None,
) -> Windowed:
    """How many different values of a column ("play.author") the window holds.

    capacity: exact while no hop of the window holds more of them; beyond, an estimate that is off
    by about 1 / sqrt(capacity - 1). A row keeps 8 * (capacity + 1) bytes a hop.
    """
    return windowed(name, column, Span(f"distinct:{capacity}", window, hop), transform)


def decayed_sum(
    name: str,
    column: Action | ActionColumn | Only,
    window: timedelta,
    transform: Transform | None = None,
    *,
    half_life: timedelta,
    hop: timedelta | None = None,
) -> Windowed:
    """The sum of a column, or with an action alone their count, where what is older weighs less.

    half_life: after which an action weighs half; by whole hops, those of the newest weigh 1.
    """
    half_life_ms = to_ms(duration(half_life, f"{name}.half_life"))
    span = Span(f"decayed_sum:{half_life_ms}", window, hop)
    return windowed(name, column, span, transform, Float64)


def last(
    name: str,
    column: ActionColumn | Only,
    transform: Transform | None = None,
    *,
    within: timedelta | None = None,
    shares: str = "",
) -> Windowed:
    """The newest value of a column ("play.author"), or how long ago it was ("play.age_ms").

    within: how old it may be; of any age unless given. Null where there is none. shares:
    "view:feature" whose ids and table it uses.
    """
    field = new_field(name, Int64, transform, {names.SHARES: shares})
    oldest = None if within is None else duration(within, f"{name}.within")
    return Windowed(field, Aggregation(str(column), LAST, oldest, None, name))


def smoothed(
    name: str,
    above: str,
    below: str,
    transform: Transform | None = None,
    *,
    prior: float = 0.0,
    weight: float = 0.0,
) -> Windowed:
    """(above + prior * weight) / (below + weight), of two numbers of the same view, by their names.

    prior: the rate that is assumed where there is nothing yet. weight: how many observations that
    assumption is worth; without one, a below of 0 is null.
    """
    function = f"ratio:{float(prior)!r}:{float(weight)!r}"
    aggregation = Aggregation(f"{above}/{below}", function, name=name)
    return Windowed(new_field(name, Float64, transform, {}), aggregation)
