"""The same values at rest, in five formats: bytes, and the time to encode and decode them.

Two shapes: 20 scalars (14 int32, 6 float32), and 18 scalars with 2 sequences of 50 int64. The
values are attributes of users in the KuaiRand log and windows of 50 consecutive impressions.

Bytes are those of the value; Feast's value is its hash, field names and `_ts` included. MEMORY
USAGE is what the server accounts for one entity, key included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import redis
from isal.isal_zlib import crc32

from bench.peers.codecs import (
    Batch,
    Codec,
    EncoreRows,
    JsonRows,
    ProtoMap,
    as_dicts,
    equal,
    msgpack_rows,
    payload_bytes,
)
from bench.peers.feast_rows import FeastRows
from bench.report import Options, Report
from bench.samples import FLOATS, INTS, SEQUENCE, Sample, demo_plan, sample_users
from bench.server import own_store
from bench.timing import Timings, memory_bandwidth, take_turns
from schemas.layout import RowLayout, layout_of
from schemas.names import row_keys
from schemas.plan import Dtype, FieldPlan, ViewPlan
from schemas.row import empty_rows

ROWS: Final = 1_000
VIEW: Final = "user_static"
SEQUENCES: Final = ("last_videos", "last_authors")


@dataclass(frozen=True, slots=True)
class Shape:
    """One of the two shapes, measured. bytes, memory: name -> mean bytes an entity."""

    suffix: str
    layout: RowLayout
    payload: int
    bytes: dict[str, float]
    memory: dict[str, float]
    encode: Timings
    decode: Timings
    equal: dict[str, bool]
    crc_s: float


def run(options: Options) -> Report:
    """The benchmark. Raises LocalError, StoreError."""
    sample = sample_users(ROWS)
    turns = 15 if options.quick else 60
    with own_store() as (host, port):
        shapes = []
        for suffix in ("", "_seq"):
            options.say(f"format: {'18 scalars + 2 × 50 int64' if suffix else '20 scalars'} …")
            shapes.append(_measure(sample, suffix, (host, port), turns))
        own_bytes = _own_length_bytes(sample, (host, port))
    report = Report()
    for shape in shapes:
        _describe(report, shape)
    _describe_rest(report, shapes, own_bytes)
    state_bytes = {
        view.name: layout_of(view).size for view in demo_plan().views if view.kind == "streamed"
    }
    for name, size in state_bytes.items():
        report.note(f"A state row with its tiles ({name}): {size:,} bytes.")
    for shape in shapes:
        report.line.update(_keys(shape))
    report.line["state_row_bytes"] = max(state_bytes.values(), default=None)
    report.line["equal_values"] = all(all(shape.equal.values()) for shape in shapes)
    for shape in shapes:
        for name, same in shape.equal.items():
            what = f"{name}{shape.suffix}: decoded values are not those that were encoded"
            report.check(same, what)
    report.line["bytes_encore_seq_own"] = shapes[1].bytes["encore"]
    report.line["bytes_feast_seq_own"] = own_bytes
    return report


def view_of(suffix: str) -> ViewPlan:
    """The view of a shape, written out by hand: the benchmark needs no feature repo."""
    names = [*INTS, *FLOATS]
    names = names if not suffix else names[:18]
    scalars: list[tuple[str, Dtype, int]] = [
        (name, "i32" if name in INTS else "f32", 0) for name in names
    ]
    vectors: list[tuple[str, Dtype, int]] = [(name, "i64", SEQUENCE) for name in SEQUENCES]
    specs = scalars + (vectors if suffix else [])
    fields = tuple(
        FieldPlan(number, name, dtype, capacity)
        for number, (name, dtype, capacity) in enumerate(specs, start=1)
    )
    return ViewPlan(VIEW, "user", "batch", 1, fields, (), "users.parquet")


def batch_of(sample: Sample, layout: RowLayout, own_lengths: bool = False) -> Batch:
    """The sample's rows in a layout. own_lengths: each user's own newest impressions."""
    rows = empty_rows(layout, sample.ids)
    for plan in layout.scalars:
        rows.values[plan.name][:] = sample.scalars[plan.name]
        rows.present[plan.name][:] = ~sample.null[plan.name]
    for plan in layout.vectors:
        rows.values[plan.name][:] = (sample.own if own_lengths else sample.full)[plan.name]
        rows.lengths[plan.name][:] = sample.own_lengths if own_lengths else plan.capacity
        rows.present[plan.name][:] = True
    return Batch(rows, as_dicts(rows))


def _measure(sample: Sample, suffix: str, address: tuple[str, int], turns: int) -> Shape:
    layout = layout_of(view_of(suffix))
    batch = batch_of(sample, layout)
    feast = FeastRows(layout.fields, *address)
    codecs: list[Codec] = [EncoreRows(layout, sample.ids), feast, ProtoMap(), JsonRows()]
    msgpack = msgpack_rows()
    if msgpack is not None:
        codecs.append(msgpack)
    encoded: dict[str, list[Any]] = {codec.name: codec.encode(batch) for codec in codecs}
    memory, feast_bytes, stored = _at_rest(feast, layout, sample, batch, encoded, address)
    same = {
        codec.name: equal(
            batch.dicts,
            codec.as_dicts(codec.decode(encoded[codec.name])),
            wrapped=codec.name == "protomap",
        )
        for codec in codecs
    }
    same["feast"] &= stored == encoded["feast"]
    sizes = {name: float(np.mean([len(row) for row in rows])) for name, rows in encoded.items()}
    sizes["feast"] = feast_bytes
    encode = take_turns({codec.name: _encoding(codec, batch) for codec in codecs}, turns)
    decode = take_turns({codec.name: _decoding(codec, encoded) for codec in codecs}, turns)
    crc = take_turns({"crc": lambda _: [crc32(row) for row in encoded["encore"]]}, turns)
    payload = payload_bytes(batch.rows)
    return Shape(suffix, layout, payload, sizes, memory, encode, decode, same, crc.median("crc"))


def _encoding(codec: Codec, batch: Batch) -> Any:
    return lambda _: codec.encode(batch)


def _decoding(codec: Codec, encoded: dict[str, list[Any]]) -> Any:
    return lambda _: codec.decode(encoded[codec.name])


def _at_rest(
    feast: FeastRows,
    layout: RowLayout,
    sample: Sample,
    batch: Batch,
    encoded: dict[str, list[Any]],
    address: tuple[str, int],
) -> tuple[dict[str, float], float, list[list[bytes]]]:
    """Stores both. Returns MEMORY USAGE of each, Feast's bytes a row, and its values read back."""
    ids = sample.ids.tolist()
    with redis.Redis(*address) as client:
        client.flushall()
        feast_keys = feast.write(ids, batch)
        feast_bytes = _hash_bytes(client, feast_keys)
        our_keys = row_keys(layout.view, 1, ids)
        client.mset(dict(zip(our_keys, encoded["encore"], strict=True)))
        memory = {
            "feast": _memory_usage(client, feast_keys),
            "encore": _memory_usage(client, our_keys),
        }
    return memory, feast_bytes, feast.read_back(feast_keys)


def _hash_bytes(client: Any, keys: list[bytes]) -> float:
    """Mean bytes of a hash: its field names and values."""
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.hgetall(key)
    found = pipe.execute()
    return float(np.mean([sum(len(k) + len(v) for k, v in each.items()) for each in found]))


def _memory_usage(client: Any, keys: list[Any]) -> float:
    pipe = client.pipeline(transaction=False)
    for key in keys:
        pipe.memory_usage(key, samples=0)
    return float(np.mean(pipe.execute()))


def _own_length_bytes(sample: Sample, address: tuple[str, int]) -> float:
    """Feast's bytes a row when sequences are as long as each user's own history."""
    layout = layout_of(view_of("_seq"))
    feast = FeastRows(layout.fields, *address)
    with redis.Redis(*address) as client:
        client.flushall()
        keys = feast.write(sample.ids.tolist(), batch_of(sample, layout, own_lengths=True))
        return _hash_bytes(client, keys)


def _keys(shape: Shape) -> dict[str, Any]:
    end = shape.suffix
    per_row = 1e6 / ROWS
    line: dict[str, Any] = {f"payload{end}": shape.payload}
    line |= {f"bytes_{name}{end}": size for name, size in shape.bytes.items()}
    line[f"overhead_bytes{end}"] = shape.bytes["encore"] - shape.payload
    line[f"mem_ratio_feast{end}"] = shape.memory["feast"] / shape.memory["encore"]
    for name in shape.bytes:
        line[f"encode_us_{name}{end}"] = shape.encode.median(name) * per_row
        line[f"decode_us_{name}{end}"] = shape.decode.median(name) * per_row
    line[f"decode_ratio_feast{end}"] = shape.decode.ratio("feast", "encore")
    line[f"decode_ratio_protomap{end}"] = shape.decode.ratio("protomap", "encore")
    return line


def _describe(report: Report, shape: Shape) -> None:
    per_row = 1e6 / ROWS
    rows = [
        (
            name,
            size,
            size - shape.payload,
            shape.memory.get(name),
            shape.encode.median(name) * per_row,
            shape.decode.median(name) * per_row,
            shape.decode.ratio(name, "encore"),
            "yes" if shape.equal[name] else "NO",
        )
        for name, size in shape.bytes.items()
    ]
    what = "18 scalars + 2 sequences of 50 int64" if shape.suffix else "20 scalars"
    report.table(
        f"{what}: {shape.payload} bytes of payload, mean of {ROWS:,} rows",
        [
            "format",
            "bytes",
            "− payload",
            "MEMORY USAGE",
            "encode µs",
            "decode µs",
            "÷ ours",
            "equal",
        ],
        rows,
    )


def _describe_rest(report: Report, shapes: list[Shape], feast_own: float) -> None:
    if "msgpack" not in shapes[0].bytes:
        report.note("msgpack: not installed (extra `bench`), left out.")
    report.note("")
    bandwidth = memory_bandwidth()
    for shape in shapes:
        ours_us = shape.decode.median("encore") * 1e6
        crc_us = shape.crc_s * 1e6
        copy_us = shape.bytes["encore"] * ROWS / bandwidth * 1e6
        report.note(
            f"What bounds our decode of {ROWS:,} rows of {shape.bytes['encore']:.0f} bytes: the "
            f"checksums take {crc_us:,.0f} µs and one copy {copy_us:,.0f} µs (memory at "
            f"{bandwidth / 1e9:.1f} GB/s), of {ours_us:,.0f} µs."
        )
    report.note(
        "Of peers only the parse is timed (Feast: its own parser of HMGET replies; protobuf: "
        "ParseFromString), not reading values out of the messages. Ours ends in numpy columns, "
        "checksums verified."
    )
    report.note(
        f"Rows are padded: ours stays {shapes[1].bytes['encore']:.0f} bytes with sequences as "
        f"short as each user's own history, where Feast's hash takes {feast_own:.0f} on average."
    )
