"""`POST /get-online-features`: features of entities, in the JSON of Feast's Python feature server.

    {"entities": {"user_id": [7, 8]}, "features": ["users:fans", "user_activity:clicks_1h"]}
    {"entities": {"user_id": [7], "video_id": [1]}, "feature_service": "ranking"}

    {"metadata": {"feature_names": ["user_id", "fans", "clicks_1h"]},
     "results": [{"values": [7, 8], "statuses": ["PRESENT", "PRESENT"],
                  "event_timestamps": ["1970-01-01T00:00:00Z", …]}, …]}

Join keys come first, as far as the features need them, then the features as they were asked for.
`full_feature_names` prefixes them with their view. An empty list is null, NULL_VALUE: Feast's
client infers a value's type from the value and fails on an empty one. Source: Feast 0.67,
`feature_server.py` and `type_map.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import pydantic_core

from aggregation.online import OnlineRows, OnlineView
from predictor.limits import Limits
from predictor.protocol import as_list, as_text, kind_of, parse_object
from predictor.rank import Ranker
from schemas.errors import PlanError, RequestError
from schemas.ids import key_id
from schemas.plan import Plan, ViewPlan
from schemas.status import FieldStatus, Status
from schemas.stored import RowKeys
from schemas.values import value_name

_BODY_KEYS: Final = frozenset(
    (
        "entities",
        "feature_service",
        "features",
        "full_feature_names",
        "include_feature_view_version_metadata",
    )
)
_INT64: Final = 1 << 63
_NO_TIME: Final = "1970-01-01T00:00:00Z"
_NO_VERSION: Final = 0  # Feast's versions of a view are off; generations are encore's own matter


@dataclass(frozen=True, slots=True)
class FeatureQuery:
    """A checked request. entities: join key → n values. views: each with its n entity ids.

    references: (view, feature, name in the reply), in the reply's order.
    """

    entities: Mapping[str, list[Any]]
    views: Mapping[str, tuple[OnlineView, list[int]]]
    references: tuple[tuple[str, str, str], ...]
    with_versions: bool

    @property
    def count(self) -> int:
        """How many values the reply has."""
        return len(self.references) * len(next(iter(self.entities.values())))

    def keys(self) -> list[RowKeys]:
        """The store keys of all rows: of the first view, then of the next."""
        return [view.row_keys(ids) for view, ids in self.views.values()]

    def rows(
        self, raw: Sequence[bytes | None], failed: Status | None, now_ms: int
    ) -> dict[str, OnlineRows]:
        """The features of each view's rows. raw: what `keys` hold, unless `failed`."""
        found, first = {}, 0
        for name, (view, ids) in self.views.items():
            part = raw[first : first + len(ids)]
            first += len(ids)
            unread = failed is not None
            found[name] = view.unread(len(ids)) if unread else view.rows(part, ids, now_ms)
        return found


def parse_features(body: bytes, plan: Plan, limits: Limits) -> FeatureQuery:
    """A request body against the plan. Raises RequestError (400)."""
    fields = parse_object(body, _BODY_KEYS)
    full = _flag(fields, "full_feature_names")
    chosen = _chosen(fields, plan, limits)
    names: dict[str, list[str]] = {}
    for view, feature in chosen:
        names.setdefault(view, []).append(feature)
    try:
        views = {name: OnlineView(plan.view(name), held) for name, held in names.items()}
    except PlanError as error:
        asked = _asked(error)
        raise RequestError("features", required=error.required, got=asked, do=error.do) from None
    references = tuple(
        (view, name, value_name(view, name) if full else name) for view, name in chosen
    )
    _check_names([name for *_, name in references])
    entities = _entities(fields.get("entities"), plan, limits)
    keyed = {name: (view, _ids(view.view, entities)) for name, view in views.items()}
    needed = {key for view, _ in keyed.values() for key in view.view.join_keys}
    used = {key: values for key, values in entities.items() if key in needed}
    with_versions = _flag(fields, "include_feature_view_version_metadata")
    query = FeatureQuery(used, keyed, references, with_versions)
    if query.count > limits.values:
        raise RequestError(
            "entities",
            required=f"at most {limits.values} values, rows times features",
            got=str(query.count),
            do="ask for fewer rows at once",
        )
    return query


async def read_features(
    ranker: Ranker, query: FeatureQuery, now_ms: int, timeout_ms: float
) -> bytes:
    """The reply's JSON. Raises RequestError (503) when overloaded.

    Rows that the store does not give in time are INVALID and null.
    """
    return await ranker.look_up(
        query.keys(),
        lambda raw, failed: _reply(query, query.rows(raw, failed, now_ms)),
        query.count,
        timeout_ms,
    )


# --- request --------------------------------------------------------------------------------


def _chosen(fields: Mapping[str, Any], plan: Plan, limits: Limits) -> list[tuple[str, str]]:
    """(view, feature) of each reference, of the service's or the listed ones."""
    service, listed = fields.get("feature_service"), fields.get("features") or []
    if (service is None) == (not listed):
        got = "neither" if service is None else "both"
        raise RequestError("features", required="features or a feature_service", got=got)
    references: list[Any] = as_list(listed, "features")
    if service is not None:
        name = as_text(service, "feature_service", limits)
        try:
            references = list(plan.service(name).features)
        except PlanError as error:
            raise RequestError("feature_service", required=error.required, got=repr(name)) from None
        if not references:
            raise RequestError(
                f"feature_service.{name}",
                required="a plan that says what the service chose",
                got="a plan of an older version",
                do="run `encore apply`",
            )
    if len(references) > limits.page:
        got = str(len(references))
        raise RequestError("features", required=f"at most {limits.page}", got=got)
    return list(_split(references, limits))


def _split(references: list[Any], limits: Limits) -> Iterator[tuple[str, str]]:
    for index, each in enumerate(references):
        view, colon, name = as_text(each, f"features[{index}]", limits).partition(":")
        if not (view and colon and name):
            got = repr(each)
            raise RequestError(f"features[{index}]", required='"view:feature"', got=got)
        yield view, name


def _asked(error: PlanError) -> str:
    return error.got if error.where == "plan.views" else f"{error.where}, {error.got}"


def _check_names(names: list[str]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise RequestError(
                "features",
                required="each name once",
                got=f"{name} twice",
                do="set full_feature_names, or drop one",
            )


def _entities(value: object, plan: Plan, limits: Limits) -> dict[str, list[Any]]:
    """Join key → values; all of one length."""
    known = sorted({key for view in plan.views for key in view.join_keys})
    if not isinstance(value, dict):
        raise RequestError("entities", required="an object of lists", got=kind_of(value))
    entities: dict[str, list[Any]] = {}
    for key, values in value.items():
        if key not in known:
            required = f"one of {', '.join(known)}"
            raise RequestError("entities", required=required, got=repr(key)[:80])
        entities[key] = as_list(values, f"entities.{key}")
    lengths = {len(values) for values in entities.values()}
    if len(lengths) > 1:
        got = ", ".join(str(length) for length in sorted(lengths))
        raise RequestError("entities", required="lists of one length", got=got)
    if not lengths or not 0 < min(lengths) <= limits.candidates:
        got = str(min(lengths)) if lengths else "none"
        raise RequestError("entities", required=f"1 to {limits.candidates} rows", got=got)
    return entities


def _ids(view: ViewPlan, entities: Mapping[str, list[Any]]) -> list[int]:
    """The ids of a view's rows, n."""
    for key in view.join_keys:
        if key not in entities:
            got = ", ".join(entities)
            raise RequestError("entities", required=f"{key}, which keys {view.name}", got=got)
        check_key(view, key, entities[key], f"entities.{key}")
    columns = [entities[key] for key in view.join_keys]
    return [key_id(values) for values in zip(*columns, strict=True)]


def check_key(view: ViewPlan, key: str, values: list[Any], where: str) -> None:
    """Raises RequestError for a value that cannot be this join key's."""
    is_string = key in view.string_keys
    for value in values:
        right = type(value) is str if is_string else type(value) is int
        if not right or (not is_string and not -_INT64 <= value < _INT64):
            required = "strings" if is_string else "integers of 64 bits"
            got = repr(value)[:80] if right else kind_of(value)
            raise RequestError(where, required=required, got=got)


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(name, required="true or false", got=kind_of(value))
    return value


# --- reply ----------------------------------------------------------------------------------


def _reply(query: FeatureQuery, found: Mapping[str, OnlineRows]) -> bytes:
    n = len(next(iter(query.entities.values())))
    present = FieldStatus.PRESENT.name
    results = [
        {"values": values, "statuses": [present] * n, "event_timestamps": [_NO_TIME] * n}
        for values in query.entities.values()
    ]
    times = {name: [_time(each) for each in rows.event_ms] for name, rows in found.items()}
    for view, feature, _ in query.references:
        values = [None if value == [] else value for value in found[view].values[feature]]
        statuses = [
            FieldStatus.NULL_VALUE.name if value is None and status.name == present else status.name
            for value, status in zip(values, found[view].statuses[feature], strict=True)
        ]
        results.append({"values": values, "statuses": statuses, "event_timestamps": times[view]})
    metadata: dict[str, Any] = {
        "feature_names": [*query.entities, *(name for *_, name in query.references)]
    }
    if query.with_versions:
        views = [{"name": view, "version": _NO_VERSION} for view in query.views]
        metadata["feature_view_metadata"] = views
    return pydantic_core.to_json({"metadata": metadata, "results": results}, inf_nan_mode="null")


def _time(event_ms: int) -> str:
    """RFC 3339, as protobuf's JSON writes a Timestamp."""
    if event_ms <= 0:
        return _NO_TIME
    moment = datetime.fromtimestamp(event_ms // 1000, UTC).replace(tzinfo=None)
    fraction = f".{event_ms % 1000:03d}" if event_ms % 1000 else ""
    return f"{moment.isoformat()}{fraction}Z"
