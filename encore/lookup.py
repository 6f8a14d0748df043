"""One entity's features as a request would see them at `now_ms`, for people to look at."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from aggregation.finalise import Features, finalise
from schemas.actions import UNKNOWN
from schemas.errors import PlanError, SettingsError
from schemas.ids import key_id
from schemas.layout import layout_of
from schemas.names import PLAN_KEY, row_key
from schemas.plan import Plan, ViewPlan, load_published
from schemas.row import decode_rows
from schemas.status import Status
from store.base import RowStore

Scalar = int | float | bool | None
Value = Scalar | list[Scalar]


@dataclass(frozen=True, slots=True)
class Reading:
    """One view of one entity.

    status: name of the row's Status; of a streamed view, NOT_FOUND reads as the empty state.
    epoch, offset: the row's fence, (0, -1) where there is none. newest_ms: its newest event.
    values: {feature: value}, None for null, and for what the edge did not know of an action.
    """

    view: str
    entity_id: int
    key: str
    status: str
    epoch: int
    offset: int
    newest_ms: int
    expired: bool
    values: dict[str, Value]


def published_plan(store: RowStore) -> Plan:
    """The plan that workers and servers run. Raises PlanError when none is published."""
    return load_published(store.get_text(PLAN_KEY))


def parse_entities(words: Collection[str]) -> dict[str, int]:
    """`["user_id=42"]` → `{"user_id": 42}`. Raises SettingsError for anything else.

    >>> parse_entities(["user_id=42", "video_id=7"])
    {'user_id': 42, 'video_id': 7}
    """
    entities: dict[str, int] = {}
    for word in words:
        key, _, text = word.partition("=")
        try:
            entities[key] = int(text)
        except ValueError:
            raise SettingsError(
                "features", required="KEY=INTEGER, such as user_id=42", got=repr(word)
            ) from None
        if not -(1 << 63) <= entities[key] < 1 << 63:
            raise SettingsError("features", required="an int64 id", got=repr(word))
    return entities


def views_of(plan: Plan, entities: Collection[str], view: str | None) -> list[ViewPlan]:
    """The views that these join keys select, or the one that is named.

    Raises PlanError for a key or a view that the plan does not have.
    """
    known = sorted({key for candidate in plan.views for key in candidate.join_keys})
    for key in entities:
        if key not in known:
            raise PlanError("features", required=f"one of {', '.join(known)}", got=repr(key))
    chosen = [plan.view(view)] if view else list(plan.views)
    return [candidate for candidate in chosen if set(candidate.join_keys) <= set(entities)]


def read_features(
    store: RowStore, views: Collection[ViewPlan], entities: Mapping[str, int], now_ms: int
) -> list[Reading]:
    """The features of each view's entity at `now_ms`, in one round trip. Raises StoreError."""
    ids = [key_id([entities[key] for key in view.join_keys]) for view in views]
    keys = [row_key(v.name, v.generation, i) for v, i in zip(views, ids, strict=True)]
    raw = store.read(keys)
    readings = []
    for view, entity_id, key, data in zip(views, ids, keys, raw, strict=True):
        rows, status = decode_rows(layout_of(view), [data], np.array([entity_id], np.int64))
        features = finalise(view, rows, now_ms)
        readings.append(
            Reading(
                view=view.name,
                entity_id=entity_id,
                key=key,
                status=Status(int(status[0])).name,
                epoch=int(rows.epoch[0]),
                offset=int(rows.offset[0]),
                newest_ms=int(rows.newest_ms[0]),
                expired=bool(features.expired[0]),
                values={f.name: _value(view, features, f.name) for f in view.features},
            )
        )
    return readings


def _value(view: ViewPlan, features: Features, name: str) -> Value:
    """The one row's value as Python has it."""
    if features.null[name][0]:
        return None
    row = features.values[name][0]
    if name not in features.lengths:
        value: Value = row.tolist()
        return value
    entries: list[Scalar] = row[: int(features.lengths[name][0])].tolist()
    if view.kind == "streamed" and row.dtype == np.int64:
        return [None if entry == UNKNOWN else entry for entry in entries]
    return entries
