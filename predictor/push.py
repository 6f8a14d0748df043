"""`POST /push` and `POST /write-to-online-store`: batch rows in the JSON of Feast's server.

    {"push_source_name": "users_push", "to": "online", "df": {"user_id": [7],
     "event_timestamp": ["2026-01-01T00:00:00"], "fans": [12]}}
    {"feature_view_name": "users", "df": {…}}

`df` holds one list a column: the view's join keys, its timestamp (ISO 8601, UTC unless it says
otherwise) and features; a feature that is not given is null, and `created` is not looked at. A
pushed row replaces one that is not newer. Answered after the store has the rows; after an error
some may be there, and the same push again finishes the work. A request that is wrong writes none.

Rows are made and written a few at a time, on the event loop that serves requests: between two such
parts whoever else has something to do there has a turn, and the inference thread the interpreter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from predictor.features import check_key
from predictor.limits import Limits
from predictor.protocol import as_list, as_text, kind_of, parse_object
from predictor.pushed_columns import fill
from schemas.elements import element_of
from schemas.errors import PlanError, RequestError, StoreError
from schemas.ids import key_id
from schemas.layout import layout_of
from schemas.plan import Plan, ViewPlan
from schemas.rows import Rows, empty_rows
from store.base import AsyncRowStore
from store.newest import (
    ATTEMPTS,
    plan_writes,
    require_batch,
    still_changing,
    waiting_keys,
    waiting_rows,
)

_PUSH_KEYS: Final = frozenset(
    ("push_source_name", "df", "allow_registry_cache", "to", "transform_on_write")
)
_WRITE_KEYS: Final = frozenset(
    ("feature_view_name", "df", "allow_registry_cache", "transform_on_write")
)
_TIME: Final = "event_timestamp"  # what Feast's remote store calls the view's timestamp field
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_IGNORED: Final = frozenset(("created",))
#: Made, and written, together: less than a millisecond of the event loop each.
_VALUES_AT_ONCE: Final = 1_024
#: Between two that are made: beside a loop that goes on at once the inference thread waits for
#: the interpreter after each of its operations. Where parts are written the store takes its time.
_PAUSE_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Pushed:
    """Columns for one batch view, all known, of one length; values are still to be checked.

    columns: name -> n values.
    """

    view: ViewPlan
    columns: Mapping[str, list[Any]]

    def parts(self) -> Iterator[Rows]:
        """Its rows in order, a few at a time. Raises RequestError (400) for a wrong value."""
        n = len(next(iter(self.columns.values())))
        step = max(1, _VALUES_AT_ONCE // len(self.columns))
        for start in range(0, n, step):
            some = {name: held[start : start + step] for name, held in self.columns.items()}
            yield _rows(self.view, some)


def parse_push(body: bytes, plan: Plan, limits: Limits) -> list[Pushed]:
    """A push: columns for each view of the push source. Raises RequestError (400)."""
    fields = parse_object(body, _PUSH_KEYS)
    name = as_text(fields.get("push_source_name"), "push_source_name", limits)
    to = fields.get("to", "online")
    if to != "online":
        raise RequestError(
            "to",
            required='"online"',
            got=repr(to)[:80],
            do="append to the view's Parquet source for the offline store",
        )
    views = [view for view in plan.views if name in (view.push_source, view.name)]
    if not views:  # a topic is refused, too, but with what to do
        views = [view for view in plan.views if (view.kind, view.source) == ("streamed", name)]
    if not views:
        known = [view.push_source or view.name for view in plan.views if view.kind == "batch"]
        required = f"one of {', '.join(dict.fromkeys(known)) or 'no views'}"
        raise RequestError("push_source_name", required=required, got=repr(name))
    return [_pushed(view, fields.get("df"), limits) for view in views]


def parse_write(body: bytes, plan: Plan, limits: Limits) -> list[Pushed]:
    """Columns for one view, by its name. Raises RequestError (400)."""
    fields = parse_object(body, _WRITE_KEYS)
    name = as_text(fields.get("feature_view_name"), "feature_view_name", limits)
    try:
        view = plan.view(name)
    except PlanError as error:
        raise RequestError("feature_view_name", required=error.required, got=error.got) from None
    return [_pushed(view, fields.get("df"), limits)]


async def write_pushed(store: AsyncRowStore, pushed: list[Pushed], timeout_ms: float) -> None:
    """Writes the rows once all are made; newer stored rows stay.

    Raises RequestError: 400 for a wrong value, 503 for a store that fails.
    """
    parts: list[tuple[ViewPlan, Rows]] = []
    for each in pushed:
        for rows in each.parts():
            parts.append((each.view, rows))
            await asyncio.sleep(_PAUSE_S)
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            for view, rows in parts:
                await _write(store, view, rows)
    except (TimeoutError, StoreError) as error:
        got = str(error) or f"none in {timeout_ms:g} ms"
        raise RequestError(
            "store", required="a confirmation of the rows", got=got, do="push again", status=503
        ) from None


async def _write(store: AsyncRowStore, view: ViewPlan, rows: Rows) -> None:
    waiting = waiting_rows(view, rows)
    for _ in range(ATTEMPTS):
        planned = plan_writes(view, waiting, await store.read(waiting_keys(view, waiting)))
        if not planned.writes:
            return
        lost = planned.lost(await store.compare_and_set(list(planned.writes.values())))
        if not lost:
            return
        waiting = {entity: waiting[entity] for entity in lost}
    raise still_changing(view, len(waiting))


def _pushed(view: ViewPlan, value: object, limits: Limits) -> Pushed:
    """`df` as columns for the view."""
    try:
        require_batch(view)
    except PlanError as error:
        raise RequestError(view.name, required=error.required, got=error.got, do=error.do) from None
    return Pushed(view, _columns(view, value, limits))


def _rows(view: ViewPlan, columns: Mapping[str, list[Any]]) -> Rows:
    """Columns as rows of the view, n."""
    for key in view.join_keys:
        check_key(view, key, columns[key], f"df.{key}")
    ids: list[tuple[Any, ...]] = list(zip(*(columns[key] for key in view.join_keys), strict=True))
    rows = empty_rows(layout_of(view), np.array([key_id(each) for each in ids], np.int64))
    time_ms = _times(columns.get(view.timestamp_field) or columns[_TIME])  # (n,)
    rows.offset[:] = time_ms
    rows.newest_ms[:] = time_ms
    fill(view, rows, columns)
    return rows


def _columns(view: ViewPlan, value: object, limits: Limits) -> Mapping[str, list[Any]]:
    """The columns of `df`, all known, of one length, with key and time."""
    if not isinstance(value, dict):
        raise RequestError("df", required="an object of lists", got=kind_of(value))
    columns = {name: as_list(held, f"df.{name}"[:80]) for name, held in value.items()}
    time = view.timestamp_field if view.timestamp_field in columns else _TIME
    for name in (*view.join_keys, time):
        if name not in columns:
            got = ", ".join(columns) or "none"
            raise RequestError("df", required=f"a column {name}", got=got[:200])
    known = {feature.name for feature in view.features} | _IGNORED | {*view.join_keys, time}
    known |= {_array(feature.name, columns) for feature in view.features}
    if unknown := sorted(columns.keys() - known):
        required = f"features of {view.name}"
        raise RequestError("df", required=required, got=repr(unknown[0])[:80])
    lengths = sorted({len(held) for held in columns.values()})
    if len(lengths) > 1 or not 0 < lengths[0] <= limits.candidates:
        required = f"columns of one length, 1 to {limits.candidates}"
        raise RequestError("df", required=required, got=", ".join(map(str, lengths)))
    return columns


def _array(feature: str, columns: Mapping[str, list[Any]]) -> str:
    element = element_of(feature, columns)
    return feature if element is None else element[0]


def _times(values: list[Any]) -> NDArray[np.int64]:
    """ISO 8601 → ms since 1970. Returns (n,)."""
    return np.array([_time_ms(value) for value in values], np.int64)


def _time_ms(value: object) -> int:
    try:
        moment = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        moment = None
    if moment is not None:
        ahead = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        time_ms = (ahead - _EPOCH) // timedelta(milliseconds=1)
        if time_ms >= 0:
            return time_ms
    raise RequestError(f"df.{_TIME}", required="times since 1970 in ISO 8601", got=repr(value)[:80])
