"""Feast's rows in Redis: a hash an entity, a field a feature, each value a serialized protobuf.

Written by Feast's own `online_write_batch` and parsed by its own parser, so that what is measured
is Feast, not our idea of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from feast import Entity, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.infra.online_stores.helpers import _mmh3
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import Array, FeastType, Float32, Int32, Int64
from google.protobuf.timestamp_pb2 import Timestamp

from bench.peers.codecs import Batch, Row
from schemas.plan import FieldPlan

VIEW: Final = "user_static"
WRITTEN_AT: Final = datetime(2022, 4, 24, tzinfo=UTC)
_TYPES: Final[dict[str, tuple[FeastType, ValueType]]] = {
    "i32": (Int32, ValueType.INT32),
    "i64": (Int64, ValueType.INT64),
    "f32": (Float32, ValueType.FLOAT),
}


class FeastRows:
    """A `bench.peers.codecs.Codec`: an encoded row is the list of its hash values, in field order.

    host, port: the store `write` writes to.
    """

    name = "feast"

    def __init__(self, fields: Sequence[FieldPlan], host: str, port: int) -> None:
        self._fields = [plan.name for plan in fields]
        self._value_types = {
            plan.name: ValueType.INT64_LIST if plan.capacity else _TYPES[plan.dtype][1]
            for plan in fields
        }
        self._store = RedisOnlineStore()
        self._config = RepoConfig(
            project="bench",
            provider="local",
            registry="unused.db",
            online_store={"type": "redis", "connection_string": f"{host}:{port}"},
            entity_key_serialization_version=3,
        )
        schema = [
            Field(
                name=plan.name,
                dtype=Array(Int64) if plan.capacity else _TYPES[plan.dtype][0],
            )
            for plan in fields
        ]
        self._view = FeatureView(
            name=VIEW,
            entities=[Entity(name="user", join_keys=["user_id"], value_type=ValueType.INT64)],
            schema=[Field(name="user_id", dtype=Int64), *schema],
            source=FileSource(path="unused.parquet", timestamp_field="event_timestamp"),
        )

    def encode(self, batch: Batch) -> list[list[bytes]]:
        """As `Codec.encode`: values to protobuf by column, then what `online_write_batch` does."""
        columns = self._proto_columns(batch.dicts)
        stamp = Timestamp()
        encoded = []
        for row in zip(*columns, strict=True):
            stamp.FromDatetime(WRITTEN_AT)
            hashed: dict[Any, bytes] = {f"_ts:{VIEW}": stamp.SerializeToString()}
            for name, value in zip(self._fields, row, strict=True):
                hashed[_mmh3(f"{VIEW}:{name}")] = value.SerializeToString()
            first, *others = hashed.values()
            encoded.append([*others, first])
        return encoded

    def decode(self, encoded: Sequence[list[bytes]]) -> Any:
        """As `Codec.decode`: Feast's parser of HMGET replies."""
        names = [*self._fields, f"_ts:{VIEW}"]
        return self._store._convert_redis_values_to_protobuf(encoded, VIEW, names)

    def as_dicts(self, decoded: Any) -> list[Row]:
        """As `Codec.as_dicts`."""
        return [{name: _plain(value) for name, value in values.items()} for _, values in decoded]

    def write(self, ids: Sequence[int], batch: Batch) -> list[bytes]:
        """Stores the rows through Feast. Returns their keys."""
        keys = [
            EntityKey(join_keys=["user_id"], entity_values=[Value(int64_val=entity_id)])
            for entity_id in ids
        ]
        columns = self._proto_columns(batch.dicts)
        rows: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]] = [
            (key, dict(zip(self._fields, values, strict=True)), WRITTEN_AT, None)
            for key, values in zip(keys, zip(*columns, strict=True), strict=True)
        ]
        self._store.online_write_batch(self._config, self._view, rows, None)
        stored: list[bytes] = self._store._generate_redis_keys_for_entities(self._config, keys)
        return stored

    def read_back(self, keys: Sequence[bytes]) -> list[list[bytes]]:
        """The stored hash values of those keys, as HMGET replies."""
        _, fields = self._store._generate_hset_keys_for_features(self._view, list(self._fields))
        commands = [(key, fields) for key in keys]
        replies = self._store._read_hash_fields(self._config, commands)
        return [[bytes(value or b"") for value in reply] for reply in replies]

    def _proto_columns(self, rows: Sequence[Row]) -> list[list[Any]]:
        return [
            python_values_to_proto_values([row[name] for row in rows], self._value_types[name])
            for name in self._fields
        ]


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("val")
    if kind is None:
        return None
    found = getattr(value, kind)
    return list(found.val) if hasattr(found, "val") else found
