"""The functions over a window: how each is declared, and the rings it is computed from.

Grammar of a Feast Aggregation: column as `catalog.selections` says; time_window, slide_interval
(the hop) and name always.

| function | of a column | rings | type |
|---|---|---|---|
| `count` | none | count | Int64 |
| `sum` | value, position, scene | sum | Int64 |
| `mean` | value, position, scene | sum, count | Float64 |
| `std` | value, position, scene | squares, sum, count | Float64 |
| `min`, `max` | value, position, scene, time_ms | min or max | Int64 |
| `distinct:<k>` | any | distinct, k + 1 hashes a tile | Int64 |
| `decayed_sum:<half-life, ms>` | none, or value, position, scene | count or sum | Float64 |

One ring a (function, action, conditions, column, hop) serves all windows of that hop; it holds the
longest and the tiles that late actions may still reach. A count is u16, u32 where a mean needs it:
a count of 65,535 that stood still would spoil it. One head a hop.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from feast.aggregation import Aggregation
from feast.types import FeastType, Float64, Int64

from aggregation.matching import ACTION_COLUMNS
from aggregation.tiles import MAX_TILES
from catalog.drafts import FieldDraft
from catalog.durations import MINUTE_MS, either, label, text, to_ms
from catalog.selections import Selected, parse_selection
from schemas.errors import DeclarationError
from schemas.plan import (
    AccumulatorPlan,
    ConditionPlan,
    Dtype,
    FeatureKind,
    FeaturePlan,
    RingFunction,
)

MAX_DISTINCT: Final = 256
MAX_NUMBERS: Final = 1 << 14  # of one ring
NUMERIC: Final = ("value", "position", "scene")
ORDERED: Final = (*NUMERIC, "time_ms")
#: What streamed views take, for messages.
FUNCTIONS: Final = (
    "count, sum, mean, std, min, max, distinct:<k>, decayed_sum:<half-life in ms>, last, "
    "ratio:<prior>:<weight> or last_n:<n>"
)

_DECLARED: Final = re.compile(r"([a-z_]+?)(?::(\d{1,15}))?")
_DTYPES: Final[dict[RingFunction, Dtype]] = {
    "count": "u16",
    "sum": "i64",
    "squares": "i64",
    "min": "u64",
    "max": "u64",
    "distinct": "u64",
}


@dataclass(frozen=True)
class Function:
    """One row of the table. columns: those it takes, "" for none. parameter: what its number is,
    "" where it takes none."""

    kind: FeatureKind
    rings: tuple[RingFunction, ...]
    columns: tuple[str, ...]
    type: FeastType = Int64
    parameter: str = ""


TABLE: Final[dict[str, Function]] = {
    "count": Function("window", ("count",), ("",)),
    "sum": Function("window", ("sum",), NUMERIC),
    "mean": Function("mean", ("sum", "count"), NUMERIC, Float64),
    "std": Function("std", ("squares", "sum", "count"), NUMERIC, Float64),
    "min": Function("min", ("min",), ORDERED),
    "max": Function("max", ("max",), ORDERED),
    "distinct": Function("distinct", ("distinct",), tuple(ACTION_COLUMNS), parameter="capacity"),
    "decayed_sum": Function(
        "decayed_sum", ("sum",), ("", *NUMERIC), Float64, parameter="half-life in ms"
    ),
}


@dataclass(frozen=True)
class Ring:
    """What the features that share a ring have in common. width: numbers a tile."""

    hop_ms: int
    function: RingFunction
    action: str
    column: str
    where: tuple[ConditionPlan, ...]
    width: int

    @property
    def field(self) -> str:
        """The stored field: `count_click_5min`, `sum_play_value_1h`, `distinct16_any_author_1d`."""
        selected = Selected(self.action, self.column, self.where)
        name = f"distinct{self.width - 1}" if self.function == "distinct" else self.function
        parts = (name, selected.actions, self.column, selected.conditions, label(self.hop_ms))
        return "_".join(part for part in parts if part)

    @property
    def order(self) -> tuple[int, str, str, str, str]:
        """The key by which the rings of a plan are sorted."""
        return self.hop_ms, self.function, self.action, self.column, self.field


@dataclass(frozen=True)
class Window:
    """A function of what a window holds. parameter: 0 where it takes none."""

    name: str
    function: str
    selected: Selected
    window_ms: int
    hop_ms: int
    parameter: int = 0

    @property
    def type(self) -> FeastType:
        """What its Field must be."""
        return TABLE[self.function].type

    @property
    def of_time(self) -> bool:
        """Its value is a time."""
        return self.function in ("min", "max") and self.selected.column not in NUMERIC

    @property
    def tiles(self) -> int:
        """Tiles the window holds."""
        return self.window_ms // self.hop_ms

    @property
    def rings(self) -> tuple[Ring, ...]:
        """The rings it is computed from, in the order of `FeaturePlan.sources`."""
        functions = TABLE[self.function].rings
        if self.function == "decayed_sum" and not self.selected.column:
            functions = ("count",)
        return tuple(self._ring(function) for function in functions)

    def _ring(self, function: RingFunction) -> Ring:
        column, width = self.selected.column, {"squares": 2}.get(function, 1)
        if function == "count" and not ACTION_COLUMNS.get(column):
            column = ""  # every action knows it: a count of all
        if function == "distinct":
            width = self.parameter + 1
        action, where = self.selected.action, self.selected.where
        return Ring(self.hop_ms, function, action, column, where, width)

    @property
    def feature(self) -> FeaturePlan:
        """What a reader gets."""
        source, *others = (ring.field for ring in self.rings)
        return FeaturePlan(
            name=self.name,
            dtype="f64" if self.type == Float64 else "i64",
            kind=TABLE[self.function].kind,
            source=source,
            tiles=self.tiles,
            window_ms=self.window_ms,
            others=tuple(others),
            half_life_ms=self.parameter if self.function == "decayed_sum" else 0,
        )


def parse_window(declared: Aggregation, where: str) -> Window | None:
    """An aggregation as a function of a window, None where it is no such function.

    Raises DeclarationError.
    """
    found = _DECLARED.fullmatch(declared.function)
    function = TABLE.get(found[1]) if found else None
    if found is None or function is None or bool(function.parameter) != bool(found[2]):
        return None
    selected, parameter = parse_selection(declared.column, where), int(found[2] or 0)
    window_ms, hop_ms = _window(declared, where)
    _check_column(found[1], function, selected, declared.column, where)
    _check_parameter(found[1], parameter, window_ms // hop_ms, where)
    return Window(declared.name, found[1], selected, window_ms, hop_ms, parameter)


def compile_windows(
    windows: Sequence[Window], skew_ms: int
) -> tuple[list[AccumulatorPlan], list[FieldDraft], list[FeaturePlan]]:
    """The rings in order, their stored fields, heads first, and the features read from them."""
    tiles: dict[Ring, int] = {}
    wide: set[Ring] = set()
    for window in windows:
        for ring in window.rings:
            tiles[ring] = max(tiles.get(ring, 0), window.tiles)
            if window.function in ("mean", "std"):
                wide.add(ring)
    plans, fields, heads = [], [], {}
    for ring in sorted(tiles, key=lambda each: each.order):
        head = f"head_{label(ring.hop_ms)}"
        heads[head] = FieldDraft(head, "i64")
        held = tiles[ring] + -(-skew_ms // ring.hop_ms)
        plans.append(
            AccumulatorPlan(
                field=ring.field,
                head=head,
                function=ring.function,
                action=ring.action,
                column=ring.column,
                hop_ms=ring.hop_ms,
                tiles=held,
                where=ring.where,
                width=ring.width,
            )
        )
        dtype: Dtype = (
            "u32" if ring.function == "count" and ring in wide else _DTYPES[ring.function]
        )
        fields.append(FieldDraft(ring.field, dtype, held * ring.width))
    return plans, [*heads.values(), *fields], [window.feature for window in windows]


def _check_column(
    name: str, function: Function, selected: Selected, declared: str, where: str
) -> None:
    column, action = selected.column, selected.action
    if column in function.columns:
        return
    if function.columns == ("",):
        raise DeclarationError(
            f"{where}.column",
            required=f"the action alone for a {name}",
            got=repr(declared),
            do=f"use {action!r}",
        )
    known = [each for each in function.columns if each]
    raise DeclarationError(
        f"{where}.column",
        required=f"<action>.{' or '.join(known)} for a {name}",
        got=repr(declared),
        do=f"use '{action}.{known[0]}'",
    )


def _check_parameter(name: str, parameter: int, tiles: int, where: str) -> None:
    if name == "distinct":
        most = min(MAX_DISTINCT, MAX_NUMBERS // tiles - 1)
        if not 1 <= parameter <= most:
            raise DeclarationError(
                f"{where}.capacity",
                required=f"1 to {most} over {tiles} tiles",
                got=str(parameter),
                do="use a longer hop, or count fewer exactly" if parameter else "",
            )
    if name == "decayed_sum" and parameter == 0:
        raise DeclarationError(
            f"{where}.half_life", required="a half-life longer than 0", got=text(parameter)
        )


def _window(declared: Aggregation, where: str) -> tuple[int, int]:
    """(window_ms, hop_ms), checked to be whole tiles."""
    window_ms = to_ms(declared.time_window) if declared.time_window is not None else 0
    hop_ms = to_ms(declared.slide_interval) if declared.slide_interval is not None else 0
    if window_ms <= 0:
        raise DeclarationError(
            f"{where}.window", required="a window longer than 0", got=text(window_ms)
        )
    if hop_ms <= 0:
        raise DeclarationError(f"{where}.hop", required="a hop longer than 0", got=text(hop_ms))
    if window_ms % hop_ms:
        below = window_ms // hop_ms * hop_ms
        above = below + hop_ms
        raise DeclarationError(
            f"{where}.window",
            required=f"a multiple of the {text(hop_ms)} hop",
            got=text(window_ms),
            do=f"use {either(below, above) if below else text(above)}",
        )
    if window_ms // hop_ms > MAX_TILES:
        raise DeclarationError(
            f"{where}.hop",
            required=f"at most {MAX_TILES} tiles a window",
            got=f"{window_ms // hop_ms}",
            do=f"use a hop of {text(-(-window_ms // MAX_TILES // MINUTE_MS) * MINUTE_MS)} or more",
        )
    return window_ms, hop_ms
