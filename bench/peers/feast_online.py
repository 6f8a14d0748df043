"""Feast serving the same features from the same server, in each way its documentation offers.

regular: one `get_online_features` of a service over users and items. split: a user service and an
item service, one call each, so that the user's features are not repeated for every item.
precomputed: split, with `precompute_online=True` (one stored vector an entity and service).

Feast computes no windows, so its rows hold the values as finalised at the benchmark's `now_ms`:
less work at request time than ours does. Its rows live in a database of their own on the same
server; the registry is cached for good; hiredis parses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from feast import Entity, FeatureService, FeatureView, Field, FileSource
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import Array as FeastArray
from feast.types import FeastType, Float32, Float64, Int32, Int64
from feast.value_type import ValueType
from numpy.typing import NDArray

from aggregation.program import ServiceProgram
from bench.peers.feast_redis import feast_on_redis
from schemas.plan import FeaturePlan, Side
from schemas.values import (
    Block,
    ValueColumn,
    ValueFeature,
    from_columns,
    to_columns,
    value_features,
)

JOIN_KEYS: Final[dict[Side, str]] = {"user": "bench_user", "item": "bench_item"}
DATABASE: Final = 1
_TYPES: Final[dict[str, tuple[FeastType, ValueType]]] = {
    "i32": (Int32, ValueType.INT32),
    "u16": (Int32, ValueType.INT32),
    "u32": (Int64, ValueType.INT64),
    "i64": (Int64, ValueType.INT64),
    "f32": (Float32, ValueType.FLOAT),
    "f64": (Float64, ValueType.DOUBLE),
}
Response = dict[str, list[Any]]
Request = tuple[int, NDArray[np.int64]]


class FeastOnline:
    """Feast on Redis, loaded with a service's finalised features.

    directory: for its registry; source: any Parquet file with an `event_timestamp`, since a view
    must name one.
    """

    def __init__(
        self, program: ServiceProgram, address: tuple[str, int], directory: Path, source: Path
    ) -> None:
        self._program = program
        self._features = {
            side: value_features(program.plan, program.service, side) for side in JOIN_KEYS
        }
        host, port = address
        self._store = feast_on_redis("bench", f"{host}:{port}", DATABASE, directory)
        entities = {
            side: Entity(name=side, join_keys=[key], value_type=ValueType.INT64)
            for side, key in JOIN_KEYS.items()
        }
        file = FileSource(path=str(source), timestamp_field="event_timestamp")
        self._views: dict[Side, list[FeatureView]] = {
            side: _views(self._features[side], entities[side], file) for side in JOIN_KEYS
        }
        users, items = self._views["user"], self._views["item"]
        self._services = {
            "both": FeatureService(name="both", features=[*users, *items]),
            "user": FeatureService(name="user_split", features=[*users]),
            "item": FeatureService(name="item_split", features=[*items]),
            "user_pre": FeatureService(name="user_pre", features=[*users], precompute_online=True),
            "item_pre": FeatureService(name="item_pre", features=[*items], precompute_online=True),
        }
        self._store.apply([*entities.values(), *users, *items, *self._services.values()])

    def load(self, side: Side, ids: NDArray[np.int64], block: Block) -> None:
        """Stores one side's values through Feast's own `online_write_batch`. block: (n,)."""
        columns = to_columns(block)
        keys = [
            EntityKey(join_keys=[JOIN_KEYS[side]], entity_values=[Value(int64_val=entity_id)])
            for entity_id in ids.tolist()
        ]
        provider = self._store._get_provider()
        written_at = datetime.now(tz=UTC)
        for view in self._views[side]:
            protos = {
                each.feature.name: _protos(each.feature, columns[each.name])
                for each in self._features[side]
                if each.view.name == view.name
            }
            rows: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]] = [
                (key, dict(zip(protos, values, strict=True)), written_at, None)
                for key, values in zip(keys, zip(*protos.values(), strict=True), strict=True)
            ]
            provider.online_write_batch(self._store.config, view, rows, None)

    def precompute(self) -> int:
        """Feast's `feast precompute` of both sides. Returns vectors written."""
        return sum(
            self._store.precompute_feature_service(name) for name in ("user_pre", "item_pre")
        )

    def regular(self, request: Request) -> tuple[Response, Response]:
        """One call for all; the user's columns come back once an item."""
        user_id, item_ids = request
        entities = {
            JOIN_KEYS["user"]: [user_id] * len(item_ids),
            JOIN_KEYS["item"]: item_ids.tolist(),
        }
        response = self._ask("both", entities)
        return response, response

    def split(self, request: Request) -> tuple[Response, Response]:
        """A call for the user and one for the items."""
        return self._two(request, "user", "item")

    def precomputed(self, request: Request) -> tuple[Response, Response]:
        """The same from precomputed vectors."""
        return self._two(request, "user_pre", "item_pre")

    def blocks(self, answer: tuple[Response, Response]) -> tuple[Block, Block]:
        """A response as value blocks, (1,) and (N,), from which tensors are computed."""
        user, item = answer
        return (
            _block(self._features["user"], self._program.user_dtype, user, 1),
            _block(
                self._features["item"], self._program.item_dtype, item, len(item[JOIN_KEYS["item"]])
            ),
        )

    def _two(self, request: Request, user: str, item: str) -> tuple[Response, Response]:
        user_id, item_ids = request
        return (
            self._ask(user, {JOIN_KEYS["user"]: [user_id]}),
            self._ask(item, {JOIN_KEYS["item"]: item_ids.tolist()}),
        )

    def _ask(self, service: str, entities: Mapping[str, list[int]]) -> Response:
        found = self._store.get_online_features(
            features=self._services[service], entity_rows=entities, full_feature_names=True
        )
        answer: Response = found.to_dict()
        return answer


def _views(
    features: Sequence[ValueFeature], entity: Entity, source: FileSource
) -> list[FeatureView]:
    names = dict.fromkeys(each.view.name for each in features)
    return [
        FeatureView(
            name=name,
            entities=[entity],
            schema=[
                Field(name=entity.join_key, dtype=Int64),
                *(_field(each.feature) for each in features if each.view.name == name),
            ],
            source=source,
        )
        for name in names
    ]


def _field(feature: FeaturePlan) -> Field:
    dtype = _TYPES[feature.dtype][0]
    return Field(name=feature.name, dtype=FeastArray(Int64) if feature.capacity else dtype)


def _protos(feature: FeaturePlan, column: ValueColumn) -> list[Any]:
    values: list[Any] = column.values.tolist()
    if column.lengths is not None:
        pairs = zip(values, column.lengths.tolist(), strict=True)
        values = [value[:length] for value, length in pairs]
        return python_values_to_proto_values(values, ValueType.INT64_LIST)
    nulls = column.null.tolist()
    listed = [None if null else value for value, null in zip(values, nulls, strict=True)]
    return python_values_to_proto_values(listed, _TYPES[feature.dtype][1])


def _block(
    features: Sequence[ValueFeature], dtype: np.dtype[np.void], answer: Response, n: int
) -> Block:
    """Feast's lists → a value block of n records."""
    columns = {}
    for each in features:
        listed = answer[each.name][:n]
        null = np.array([value is None for value in listed], bool)  # (n,)
        lengths = None
        values = np.zeros((n, *dtype[each.name].shape), dtype[each.name].base)  # (n,) or (n, L)
        if each.feature.capacity:
            lengths = np.array([len(value or ()) for value in listed])  # (n,)
            for row, value in enumerate(listed):
                values[row, : lengths[row]] = value or ()
        else:
            values[:] = [0 if value is None else value for value in listed]
        columns[each.name] = ValueColumn(values, lengths, null)
    return from_columns(dtype, columns, n)
