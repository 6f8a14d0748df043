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

What comes back for a String or an Array stands in `aggregation/online.py`; docs/feast.md lists
which of Feast's own tests hold.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from feast import Entity, FeatureView, utils
from feast.base_feature_view import BaseFeatureView
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.serving.ServingService_pb2 import GetOnlineFeaturesResponse
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from pydantic import StrictStr

from aggregation.online import OnlineRows, OnlineView
from catalog.columns import rows_of
from catalog.compiler import compile_view
from catalog.entity_keys import entity_id
from catalog.lock import LOCK_NAME, require_lock
from catalog.materialize import write_rows
from catalog.numbering import number
from catalog.registry import read_registry, registered, registry_path
from catalog.values import to_protos, to_python
from schemas.elements import element_of
from schemas.errors import PlanError, SettingsError
from schemas.plan import Plan, ViewPlan
from schemas.status import FieldStatus
from store.base import RowStore
from store.newest import require_batch
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

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[WriteRow],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """As `online_write_batch`, in a thread."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

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
        names = requested_features or [field.name for field in table.features]
        read = self._prepare(config, table, names, entity_keys)
        raw = self._open(config).read(read.keys)
        return read.rows(read.program.rows(raw, read.entity_ids, _now_ms(config)))

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[ReadRow]:
        """As `online_read`, in a thread: Feast calls it from whatever event loop there is."""
        return await asyncio.to_thread(
            self.online_read, config, table, entity_keys, requested_features
        )

    def _read_features_per_fv(
        self, config: RepoConfig, grouped_refs: list[tuple[FeatureView, list[str]]], *given: Any
    ) -> None:
        """Feast's hook under `get_online_features`: all views in one round trip, and the status of
        each value, which `online_read` has no place for."""
        join_key_values, join_key_names, response, full_names, with_versions = given
        reads: list[tuple[_Read, Any, int]] = []
        for table, names in grouped_refs:
            entities, places, length = utils._get_unique_entities(
                table, join_key_values, join_key_names
            )
            keys = utils._get_entity_key_protos(entities)
            reads.append((self._prepare(config, table, names, keys), places, length))
        raw = iter(self._open(config).read([key for read, _, _ in reads for key in read.keys]))
        now_ms = _now_ms(config)
        for read, places, length in reads:
            found = read.program.rows([next(raw) for _ in read.keys], read.entity_ids, now_ms)
            utils._populate_response_from_feature_data(
                read.names,
                read.rows(found),
                places,
                response,
                full_names,
                read.table,
                length,
                with_versions,
            )
            _set_statuses(response, read.names, found, places)

    async def _read_features_per_fv_async(self, *given: Any) -> None:
        """The same under `get_online_features_async`, in a thread."""
        await asyncio.to_thread(self._read_features_per_fv, *given)

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

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads and writes may be awaited."""
        return SupportedAsyncMethods(read=True, write=True)

    async def close(self) -> None:
        """Feast's hook at the end of its server."""
        self.disconnect()

    def _prepare(
        self, config: RepoConfig, table: FeatureView, names: list[str], keys: list[EntityKey]
    ) -> _Read:
        view = self._view(config, table)
        ids = [entity_id(view, key) for key in keys]
        return _Read(table, names, OnlineView(view, names), ids)

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


@dataclass(frozen=True)
class _Read:
    """One view's part of a read. names: the features asked for. entity_ids: of its rows."""

    table: FeatureView
    names: list[str]
    program: OnlineView
    entity_ids: list[int]

    @property
    def keys(self) -> list[str]:
        """The store keys of the rows."""
        return self.program.keys(self.entity_ids)

    def rows(self, found: OnlineRows) -> list[ReadRow]:
        """As `online_read` returns them: (None, None) where nothing can be told of a row."""
        dtypes = {field.name: field.dtype for field in self.table.features}
        values = {name: to_protos(dtypes[name], found.values[name]) for name in self.names}
        none = (FieldStatus.NOT_FOUND, FieldStatus.OUTSIDE_MAX_AGE, FieldStatus.INVALID)
        return [
            (None, None)
            if self.names and found.statuses[self.names[0]][index] in none
            else (_event_time(event_ms), {name: values[name][index] for name in self.names})
            for index, event_ms in enumerate(found.event_ms)
        ]


def _set_statuses(
    response: GetOnlineFeaturesResponse,
    names: list[str],
    found: OnlineRows,
    places: Iterable[list[int]],
) -> None:
    """Statuses of the feature vectors that were added last. places: of each row in the reply."""
    for name, vector in zip(names, response.results[-len(names) :], strict=True):
        for status, indexes in zip(found.statuses[name], places, strict=True):
            for index in indexes:
                vector.statuses[index] = status


def _event_time(newest_ms: int) -> datetime | None:
    return datetime.fromtimestamp(newest_ms / 1000, UTC) if newest_ms > 0 else None


def _table_of(view: ViewPlan, data: Sequence[WriteRow]) -> pa.Table:
    """Feast's rows as a batch source would hold them; features that were not given are null."""
    held: dict[str, list[Any]] = {name: [] for name in view.join_keys}
    for key, _, _, _ in data:
        entity_id(view, key)  # refuses a key of another kind
        for name, value in zip(key.join_keys, key.entity_values, strict=True):
            held[name].append(to_python(value))
    times = [when if when.tzinfo else when.replace(tzinfo=UTC) for _, _, when, _ in data]
    given = list(dict.fromkeys(name for _, values, _, _ in data for name in values))
    for name in given:
        held[name] = [to_python(values.get(name)) for _, values, _, _ in data]
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
