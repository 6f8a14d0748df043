"""Ways to keep a row of named values as bytes, ours and the usual ones, behind one face.

Each codec starts from the input that suits it and is not charged for making it: ours from columns,
the others from one dict a row. Decoding ends where each value can be read by its name: columns, a
dict, or a parsed message.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from schemas.layout import RowLayout
from schemas.row import Rows, decode_rows, encode_rows

Value = int | float | list[int] | None
Row = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Batch:
    """n rows, as columns and as dicts. None is null; a float is exactly a float32."""

    rows: Rows
    dicts: list[Row]


class Codec(Protocol):
    """One format. `name` labels its keys in the JSON line."""

    name: str

    def encode(self, batch: Batch) -> list[Any]:
        """One encoded value a row."""
        ...

    def decode(self, encoded: Sequence[Any]) -> Any:
        """All rows, each value readable by name."""
        ...

    def as_dicts(self, decoded: Any) -> list[Row]:
        """What `decode` gave as plain values, to compare with the batch; never timed."""
        ...


class EncoreRows:
    """Our rows: FlatBuffer, trailer, one layout. Decoding checks each row's crc32 and entity."""

    name = "encore"

    def __init__(self, layout: RowLayout, entity_ids: Any) -> None:
        self._layout = layout
        self._ids = entity_ids

    def encode(self, batch: Batch) -> list[bytes]:
        """As `Codec.encode`."""
        return encode_rows(self._layout, batch.rows)

    def decode(self, encoded: Sequence[bytes]) -> Rows:
        """As `Codec.decode`."""
        rows, status = decode_rows(self._layout, encoded, self._ids[: len(encoded)])
        assert not status.any()
        return rows

    def as_dicts(self, decoded: Rows) -> list[Row]:
        """As `Codec.as_dicts`."""
        return as_dicts(decoded)


def as_dicts(rows: Rows) -> list[Row]:
    """Rows as one dict a row."""
    columns: dict[str, list[Value]] = {}
    for name, values in rows.values.items():
        listed = values.tolist()
        if name in rows.lengths:
            pairs = zip(listed, rows.lengths[name].tolist(), strict=True)
            listed = [value[:length] for value, length in pairs]
        there = rows.present[name].tolist()
        columns[name] = [value if here else None for value, here in zip(listed, there, strict=True)]
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class ProtoMap:
    """protobuf `map<string, Feature>`, the shape of tf.train.Example; parsed, not walked."""

    name = "protomap"

    def __init__(self) -> None:
        self._features = _features_message()

    def encode(self, batch: Batch) -> list[bytes]:
        """As `Codec.encode`; a null has no entry."""
        encoded = []
        for row in batch.dicts:
            message = self._features()
            for name, value in row.items():
                if isinstance(value, list):
                    message.feature[name].ints.value.extend(value)
                elif isinstance(value, float):
                    message.feature[name].floats.value.append(value)
                elif value is not None:
                    message.feature[name].ints.value.append(value)
            encoded.append(message.SerializeToString())
        return encoded

    def decode(self, encoded: Sequence[bytes]) -> list[Any]:
        """As `Codec.decode`."""
        parse = self._features.FromString
        return [parse(row) for row in encoded]

    def as_dicts(self, decoded: list[Any]) -> list[Row]:
        """As `Codec.as_dicts`; every list is a vector, since a scalar is a list of one."""
        return [
            {
                name: list(getattr(feature, feature.WhichOneof("kind")).value)
                for name, feature in message.feature.items()
            }
            for message in decoded
        ]


class JsonRows:
    """Compact JSON by the standard library."""

    name = "json"

    def encode(self, batch: Batch) -> list[bytes]:
        """As `Codec.encode`."""
        return [json.dumps(row, separators=(",", ":")).encode() for row in batch.dicts]

    def decode(self, encoded: Sequence[bytes]) -> list[Row]:
        """As `Codec.decode`."""
        return [json.loads(row) for row in encoded]

    def as_dicts(self, decoded: list[Row]) -> list[Row]:
        """As `Codec.as_dicts`."""
        return decoded


class MsgpackRows:
    """msgpack maps, floats as float32."""

    name = "msgpack"

    def __init__(self, msgpack: ModuleType) -> None:
        self._pack = msgpack.Packer(use_single_float=True).pack
        self._unpack = msgpack.unpackb

    def encode(self, batch: Batch) -> list[bytes]:
        """As `Codec.encode`."""
        return [self._pack(row) for row in batch.dicts]

    def decode(self, encoded: Sequence[bytes]) -> list[Row]:
        """As `Codec.decode`."""
        unpack = self._unpack
        return [unpack(row) for row in encoded]

    def as_dicts(self, decoded: list[Row]) -> list[Row]:
        """As `Codec.as_dicts`."""
        return decoded


def msgpack_rows() -> MsgpackRows | None:
    """None where msgpack (extra `bench`) is not installed."""
    if importlib.util.find_spec("msgpack") is None:
        return None
    return MsgpackRows(importlib.import_module("msgpack"))


def equal(expected: Sequence[Row], found: Sequence[Row], wrapped: bool = False) -> bool:
    """Value for value, nulls included; a missing key is null. wrapped: scalars came as lists."""
    for want, got in zip(expected, found, strict=True):
        for name, value in want.items():
            there = got.get(name)
            if wrapped and isinstance(there, list) and not isinstance(value, list):
                there = there[0] if there else None
            if wrapped and value == [] and there is None:
                there = []
            if there != value:
                return False
    return True


def payload_bytes(rows: Rows) -> int:
    """Bytes of one row's values at their declared widths and capacities: what nobody can avoid."""
    return sum(
        int(values.itemsize * np.prod(values.shape[1:], dtype=int))
        for values in rows.values.values()
    )


def _features_message() -> Any:
    """The message class, described here since no protoc is needed for three messages."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="bench_features.proto", package="bench", syntax="proto3"
    )
    for name, kind in (("Ints", kinds.TYPE_INT64), ("Floats", kinds.TYPE_FLOAT)):
        message = file.message_type.add(name=name)
        message.field.add(name="value", number=1, type=kind, label=kinds.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of) in enumerate((("floats", "Floats"), ("ints", "Ints")), start=1):
        _message_field(feature, name, number, f".bench.{of}").oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    _message_field(entry, "value", 2, ".bench.Feature")
    _message_field(
        features, "feature", 1, ".bench.Features.FeatureEntry"
    ).label = kinds.LABEL_REPEATED
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    found: Mapping[str, Any] = message_factory.GetMessageClassesForFiles([file.name], pool)
    return found["bench.Features"]


def _message_field(message: Any, name: str, number: int, type_name: str) -> Any:
    kinds = descriptor_pb2.FieldDescriptorProto
    return message.field.add(
        name=name,
        number=number,
        type=kinds.TYPE_MESSAGE,
        label=kinds.LABEL_OPTIONAL,
        type_name=type_name,
    )
