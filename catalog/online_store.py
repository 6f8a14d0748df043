"""Feast's online store over encore's rows.

What works: `get_online_features` for batch and windowed views (values as a request at that moment
would see them), `write_to_online_store`, `push` and `materialize` for batch views. Windowed views
are fed by their topic; a push to one is refused. The run time never comes through here: workers and
the ranking service read the plan, not Feast.

In `feature_store.yaml`:

    online_store:
      type: catalog.online_store.EncoreOnlineStore
      store_url: redis://127.0.0.1:6379/0
      lock: plan.lock.json          # relative to the repo
      now_ms: 1651795196782         # only to read as of a moment; else the clock

A String's id is turned back where its transform is a vocabulary; where it cannot be (a hash, or a
value out of the vocabulary) the value reads "id:<n>".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from feast import Entity, FeatureView
from feast.base_feature_view import BaseFeatureView
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import StrictStr

from aggregation.finalise import Finaliser
from catalog.columns import rows_of
from catalog.compiler import compile_view
from catalog.elements import element_name, element_of
from catalog.lock import LOCK_NAME, require_lock
from catalog.materialize import require_batch, write_rows
from catalog.numbering import number
from catalog.registry import read_registry, registered, registry_path
from catalog.values import FeatureColumn, to_protos
from schemas.errors import PlanError, SettingsError
from schemas.ids import string_id
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import Plan, ViewPlan
from schemas.row import decode_rows
from schemas.status import FAILED, Status
from store.base import RowStore
from store.redis_store import RedisRowStore

WRITE_ROWS: Final = 4_096

WriteRow = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
ReadRow = tuple[datetime | None, dict[str, Value] | None]


class EncoreOnlineStoreConfig(FeastConfigBaseModel):
    """Settings of the adapter; see the module's page."""

    type: StrictStr = "catalog.online_store.EncoreOnlineStore"
    store_url: StrictStr = ""
    lock: StrictStr = LOCK_NAME
    now_ms: int | None = None


class EncoreOnlineStore(OnlineStore):
    """Reads finalised features and writes batch rows. One store connection pool a process."""

    def __init__(self) -> None:
        self._store: RowStore | None = None
        self._plan: tuple[tuple[int, int, int], Plan] | None = None

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[WriteRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Writes rows of a batch view; newer stored rows stay. PlanError for a windowed view."""
        view = self._view(config, table)
        require_batch(view)
        for start in range(0, len(data), WRITE_ROWS):
            part = data[start : start + WRITE_ROWS]
            write_rows(view, rows_of(view, _table_of(view, part)), self._open(config))
            if progress is not None:
                progress(len(part))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """Finalised features in the order of `entity_keys`; (None, None) where there is no row.

        A streamed view without a row has its empty state. A corrupt row reads as no row.
        """
        view = self._view(config, table)
        names = requested_features or [field.name for field in table.features]
        columns = [_column(view, table, name) for name in names]
        entity_ids = np.array([_entity_id(key) for key in entity_keys], np.int64)  # (n,)
        keys = row_keys(view.name, view.generation, entity_ids.tolist())
        rows, status = decode_rows(layout_of(view), self._open(config).read(keys), entity_ids)
        wanted = {source for column in columns for source in column.sources}
        features = Finaliser(view, wanted)(rows, _now_ms(config))
        known = ~np.isin(status, FAILED)  # (n,)
        if view.kind == "batch":
            known &= (status == Status.PRESENT) & ~features.expired
        values = {column.name: to_protos(column, features) for column in columns}
        return [
            (
                _event_time(int(rows.newest_ms[index])),
                {name: protos[index] for name, protos in values.items()},
            )
            if known[index]
            else (None, None)
            for index in range(len(entity_keys))
        ]

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[BaseFeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Called by `feast apply`. Refuses what the lock file does not hold: `encore apply` is the
        one way to change what is stored.
        """
        lock = _lock_path(config)
        plan = require_lock(lock)
        entities = {entity.name: entity for entity in _registered_entities(config)}
        entities.update({entity.name: entity for entity in entities_to_keep})
        known = {view.name: view for view in plan.views}
        stale = [view.name for view in tables_to_delete if view.name in known]
        for table in tables_to_keep:
            view = known.get(table.name)
            if (
                view is None
                or not isinstance(table, FeatureView)
                or number(compile_view(table, entities), view) != view
            ):
                stale.append(table.name)
        if stale:
            raise PlanError(
                str(lock),
                required="the plan of the views being applied",
                got=f"an older one of {', '.join(sorted(stale))}",
                do="run `encore apply`, which applies to Feast's registry, too",
            )

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Called by `feast teardown`. Rows stay: they are other processes' state as well."""
        self.disconnect()

    def disconnect(self) -> None:
        """Closes the connections; the next call opens them again."""
        if self._store is not None:
            self._store.close()
            self._store = None

    async def close(self) -> None:
        """Feast's hook at the end of its server."""
        self.disconnect()

    def _open(self, config: RepoConfig) -> RowStore:
        if self._store is None:
            url = config.online_store.store_url
            if not url or url.startswith("$"):
                raise SettingsError(
                    "feature_store.yaml.online_store.store_url",
                    required="redis://host:port/db",
                    got=repr(url),
                    do="set ENCORE_STORE_URL",
                )
            self._store = RedisRowStore(url)
        return self._store

    def _view(self, config: RepoConfig, table: FeatureView) -> ViewPlan:
        """The view's plan; the lock file is read again when it has changed."""
        lock = _lock_path(config)
        try:
            stat = lock.stat()
        except FileNotFoundError:
            return require_lock(lock).view(table.name)
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if self._plan is None or self._plan[0] != stamp:
            self._plan = (stamp, require_lock(lock))
        return self._plan[1].view(table.name)


def _lock_path(config: RepoConfig) -> Path:
    return Path(config.repo_path or ".") / str(config.online_store.lock)


def _registered_entities(config: RepoConfig) -> Sequence[Entity]:
    registry = read_registry(registry_path(config, Path(config.repo_path or ".")))
    return () if registry is None else registered(registry, config.project).entities


def _now_ms(config: RepoConfig) -> int:
    fixed: int | None = config.online_store.now_ms
    return fixed if fixed is not None else time.time_ns() // 1_000_000


def _event_time(newest_ms: int) -> datetime | None:
    return datetime.fromtimestamp(newest_ms / 1000, UTC) if newest_ms > 0 else None


def _entity_id(key: EntityKey) -> int:
    """The id of a key with one int64, int32 or string value."""
    value = key.entity_values[0]
    match value.WhichOneof("val"):
        case "string_val":
            return string_id(value.string_val)
        case "int64_val" | "int32_val" as kind:
            return int(getattr(value, kind))
        case kind:
            raise PlanError(key.join_keys[0], required="an integer or string id", got=str(kind))


def _column(view: ViewPlan, table: FeatureView, name: str) -> FeatureColumn:
    """A requested feature as the plan's: itself, or the elements an Array is stored as."""
    field = next((field for field in table.features if field.name == name), None)
    known = {feature.name for feature in view.features}
    if field is not None and name in known:
        return FeatureColumn(name, (name,), field.dtype, view.written.get(name))
    elements: list[str] = []
    while (element := element_name(name, len(elements))) in known:
        elements.append(element)
    if field is None or not elements:
        raise PlanError(
            f"{view.name}.{name}",
            required="a feature of the lock file",
            got="none of that name",
            do="run `encore apply`",
        )
    return FeatureColumn(name, tuple(elements), field.dtype, None)


def _table_of(view: ViewPlan, data: Sequence[WriteRow]) -> pa.Table:
    """Feast's rows as a batch source would hold them; features that were not given are null."""
    held: dict[str, list[Any]] = {view.join_key: [_entity_id(key) for key, _, _, _ in data]}
    times = [when if when.tzinfo else when.replace(tzinfo=UTC) for _, _, when, _ in data]
    given = list(dict.fromkeys(name for _, values, _, _ in data for name in values))
    for name in given:
        held[name] = [_python_value(values.get(name)) for _, values, _, _ in data]
    table = pa.table(held)
    stamps = pa.array(times, pa.timestamp("us", "UTC"))
    table = table.append_column(view.timestamp_field, stamps)
    return _with_nulls(view, table)


def _with_nulls(view: ViewPlan, table: pa.Table) -> pa.Table:
    """Adds a null column for each feature that no row gave."""
    names = table.column_names
    for feature in view.features:
        if feature.name not in names and element_of(feature.name, names) is None:
            table = table.append_column(feature.name, pa.nulls(table.num_rows))
    return table


def _python_value(value: Value | None) -> Any:
    kind = None if value is None else value.WhichOneof("val")
    if value is None or kind is None:
        return None
    held = getattr(value, kind)
    return list(held.val) if kind.endswith("_list_val") else held
