"""Any function of any column, filter, window and hop, declared by Feast's `Aggregation`, read back
from the registry, compiled, folded in any batches, stored and finalised: it says what its
declaration says of the actions (`tests/oracle/declared.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from aggregation.finalise import Features, finalise
from aggregation.fold import fold
from aggregation.native.library import Kernels
from catalog import declare
from catalog.compiler import Definitions, compile_plan
from catalog.declare import Lateness, Sequenced, StreamedFeatureView, Windowed
from catalog.functions import NUMERIC, ORDERED
from schemas.actions import ActionType
from schemas.layout import layout_of
from schemas.plan import ViewPlan, dump_plan, load_plan
from schemas.row import decode_rows, encode_rows
from schemas.stored import StoredRows
from tests.aggregation.native.test_rows import same, sides
from tests.aggregation.strategies import AGES_MS, SPAN_MS, T0, histories
from tests.catalog.declarations import activity_of, user
from tests.oracle.declared import Condition, Declared, says
from tests.oracle.fold import as_dicts, in_time

IDS = np.array([11, 12, 13], np.int64)
COLUMNS = ("user", "item", "author", "music", "value", "position", "scene", "time_ms", "tag")
WORDS = {
    "sum": declare.total,
    "mean": declare.mean,
    "std": declare.std,
    "min": declare.smallest,
    "max": declare.greatest,
}
#: Functions of a window, and the columns that they take.
TAKEN = {
    "count": ("",),
    **dict.fromkeys(("sum", "mean", "std"), NUMERIC),
    **dict.fromkeys(("min", "max"), ORDERED),
    "distinct": COLUMNS,
    "decayed_sum": ("", *NUMERIC),
}


def milliseconds(span_ms: int) -> timedelta:
    return timedelta(milliseconds=span_ms)


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    column = draw(st.sampled_from(COLUMNS))
    op = draw(st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in"]))
    constants = st.sampled_from([-1, 0, 1, 2, 3, 7, 32_767, 65_535, 2**39, T0 + 4_000])
    many = st.lists(constants, min_size=1, max_size=3)
    return column, op, tuple(draw(many)) if op == "in" else (draw(constants),)


@st.composite
def features(draw: st.DrawFn) -> Declared:
    """Anything but a ratio, over one to three types of actions, or all."""
    named = st.lists(st.sampled_from(["play", "like", "click", "share"]), min_size=1, max_size=3)
    types = tuple(draw(st.one_of(st.sampled_from([["*"], ["play"]]), named)))
    where = tuple(draw(st.lists(conditions(), max_size=2)))
    function = draw(st.sampled_from([*TAKEN, "last", "last_n", "recent"]))
    if function not in TAKEN:
        times = {"last": ["age_ms"], "last_n": ["time_ms"], "recent": ["time_ms", "age_ms"]}
        column = draw(st.sampled_from([*COLUMNS[:-2], "tag", *times[function]]))
        number = draw(
            st.sampled_from([0, 1_500, 9_000]) if function == "last" else st.integers(1, 5)
        )
        return Declared(function, types, column, where, number=number)
    hop_ms = draw(st.sampled_from([1_000, 1_500, 4_000]))
    window_ms = hop_ms * draw(st.sampled_from([1, 2, 5, 9]))
    numbers = {"distinct": st.integers(1, 4), "decayed_sum": st.sampled_from([700, 3_000, 60_000])}
    number = draw(numbers.get(function, st.just(0)))
    column = draw(st.sampled_from(TAKEN[function]))
    return Declared(function, types, column, where, window_ms, hop_ms, number)


def written(name: str, of: Declared) -> Windowed | Sequenced:
    """As an engineer writes it in a feature repo."""
    text = " and ".join(
        f"{column} in ({', '.join(map(str, given))})" if op == "in" else f"{column} {op} {given[0]}"
        for column, op, given in of.where
    )
    first, *also = of.types
    if of.function == "recent":
        action = declare.only(cast(Any, first), text, also=cast(Any, also))
        return declare.recent(
            f"{name}_s", action, of.number, [declare.column(name, cast(Any, of.column))]
        )
    what = f"{first}.{of.column}" if of.column else first
    taken = declare.only(cast(Any, what), text, also=cast(Any, also))
    if of.function == "last":
        return declare.last(name, taken, within=milliseconds(of.number) if of.number else None)
    if of.function == "last_n":
        return declare.last_n(name, taken, of.number)
    window, hop = milliseconds(of.window_ms), milliseconds(of.hop_ms)
    if of.function == "count":
        return declare.count(name, taken, window, hop=hop)
    if of.function == "distinct":
        return declare.distinct(name, taken, window, capacity=of.number, hop=hop)
    if of.function == "decayed_sum":
        half_life = milliseconds(of.number)
        return declare.decayed_sum(name, taken, window, half_life=half_life, hop=hop)
    return WORDS[of.function](name, taken, window, hop=hop)


@dataclass(frozen=True)
class Case:
    """declared: by name. ratios: name → above, below, prior, weight."""

    declared: dict[str, Declared]
    ratios: dict[str, tuple[str, str, float, float]]
    lateness: Lateness
    ttl_ms: int

    def view(self) -> ViewPlan:
        """Compiled from what Feast's registry keeps, and read back from the lock file's text."""
        lines = [written(name, each) for name, each in self.declared.items()]
        lines += [
            declare.smoothed(name, above, below, prior=prior, weight=weight)
            for name, (above, below, prior, weight) in self.ratios.items()
        ]
        ttl = milliseconds(self.ttl_ms)
        view = activity_of(*lines, ttl=ttl, lateness=self.lateness)
        again = StreamedFeatureView.from_proto(view.to_proto(), skip_udf=True)
        plan = compile_plan(Definitions((user,), (again,), ()), None)
        return load_plan(dump_plan(plan)).view(view.name)

    def says(self, name: str, actions: Sequence[dict[str, Any]], now_ms: int) -> Any:
        newest_ms = max((each["time_ms"] for each in actions), default=0)
        living = actions if not self.ttl_ms or newest_ms >= now_ms - self.ttl_ms else ()
        if name in self.declared:
            return says(self.declared[name], living, now_ms)
        above, below, prior, weight = self.ratios[name]
        over, under = (self.says(each, actions, now_ms) for each in (above, below))
        if over is None or under is None or under + weight == 0:
            return None
        return (over + prior * weight) / (under + weight)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    drawn = draw(st.lists(features(), min_size=1, max_size=5))
    declared = {f"f{at}": each for at, each in enumerate(drawn)}
    numbers = [name for name, each in declared.items() if each.function not in ("last_n", "recent")]
    ratios = {}
    if len(numbers) > 1:
        prior, weight = draw(st.sampled_from([(0.0, 0.0), (0.25, 0.0), (0.25, 4.0)]))
        ratios["rate"] = (draw(st.sampled_from(numbers)), numbers[-1], prior, weight)
    skew_ms, future_ms = draw(st.sampled_from([0, 1_200, 2_500])), draw(st.sampled_from([0, 900]))
    lateness = Lateness(milliseconds(skew_ms), milliseconds(future_ms))
    # Which a TTL must not cut; `last` has how far it looks back for its number.
    longest_ms = max(each.number if each.function == "last" else each.window_ms for each in drawn)
    ttl_ms = draw(st.sampled_from([0, max(6_000, longest_ms)]))
    return Case(declared, ratios, lateness, ttl_ms)


def read(found: Features, name: str, index: int) -> Any:
    if found.null[name][index]:
        return None
    if name in found.lengths:
        return found.values[name][index, : found.lengths[name][index]].tolist()
    return found.values[name][index].item()


History = tuple[NDArray[np.void], NDArray[np.intp], NDArray[np.int64]]


def stored_after(view: ViewPlan, history: History, order: Sequence[int], cut: int) -> list[bytes]:
    """In two batches, through stored bytes."""
    layout, stored = layout_of(view), cast(list[bytes | None], [None] * len(IDS))
    for part in (np.array(order[:cut], np.intp), np.array(order[cut:], np.intp)):
        rows, _ = decode_rows(layout, stored, IDS)
        fold(view, rows, history[1][part], history[0][part], history[2][part])
        stored = list(encode_rows(layout, rows))
    return cast(list[bytes], stored)


#: From the newest event to the reader.
waits = st.one_of(st.integers(-2_500, SPAN_MS), st.sampled_from(AGES_MS))


@settings(max_examples=250, deadline=None)
@given(case=cases(), history=histories(), wait_ms=waits, data=st.data())
def test_a_feature_says_what_its_declaration_says(
    built: Kernels, case: Case, history: History, wait_ms: int, data: st.DataObject
) -> None:
    actions, row, sent_ms = history
    view = case.view()
    order = data.draw(st.permutations(range(len(actions))))
    raw = stored_after(view, history, order, data.draw(st.integers(0, len(actions))))
    rows, _ = decode_rows(layout_of(view), list(raw), IDS)
    each = zip(as_dicts(actions), row.tolist(), sent_ms.tolist(), strict=True)
    counted = [
        (action, at)
        for action, at, sent in each
        if action["type"] != ActionType.DELETE_USER and in_time(view, action, sent)
    ]
    newest_ms = max((action["time_ms"] for action, _ in counted), default=T0)
    now_ms = newest_ms + max(wait_ms, -view.skew_ms)
    found = finalise(view, rows, now_ms)
    for name in (*case.declared, *case.ratios):
        parts = case.ratios[name][:2] if name in case.ratios else (name,)
        if now_ms < newest_ms and any(not case.declared[part].window_ms for part in parts):
            continue  # entries that are yet to come have pushed others out
        for index in range(len(IDS)):
            mine = [action for action, at in counted if at == index]
            said, expected = read(found, name, index), case.says(name, mine, now_ms)
            if isinstance(expected, float):
                expected = pytest.approx(expected, rel=1e-9, abs=1e-9)
            assert said == expected, (name, case)
    native, plain = sides([view], built)
    stored = StoredRows.of(list(raw))
    same(native.block(stored, IDS, now_ms), plain.block(stored, IDS, now_ms))
