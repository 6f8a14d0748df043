"""Batch sources → rows: columns against a slow reading, writes against the rule of the newest."""

from __future__ import annotations

import math
import subprocess
import sys
import zlib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.columns import event_times, rows_of, source_columns
from catalog.materialize import Materialized, materialize, write_rows
from schemas.errors import DeclarationError, PlanError, StoreError
from schemas.ids import string_ids
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import FeaturePlan, FieldPlan, TransformPlan, ViewPlan
from schemas.row import Rows, decode_rows, encode_rows
from schemas.status import Status
from store.base import RowStore, Write
from store.memory import MemoryRowStore
from store.redis_store import RedisRowStore

DEGREES = TransformPlan("vocab", 4, values=("low", "full"))
SCALARS = (("age", "i32"), ("fans", "i64"), ("score", "f64"), ("rate", "f32"), ("live", "bool"))
FIELDS = (
    FieldPlan(0, "user_id", "i64"),
    *(FieldPlan(1 + index, name, dtype) for index, (name, dtype) in enumerate(SCALARS)),  # type: ignore[arg-type]
    FieldPlan(6, "degree", "i32"),
    FieldPlan(7, "tag_1", "i64"),
    FieldPlan(8, "tag_2", "i64"),
    FieldPlan(9, "likes", "f32", 3),
    FieldPlan(10, "retired", "i64"),
)
VIEW = ViewPlan(
    name="people",
    entity="user",
    kind="batch",
    generation=1,
    fields=FIELDS,
    features=tuple(
        FeaturePlan(field.name, field.dtype, "field", field.name, field.capacity)
        for field in FIELDS
        if field.name != "retired"
    ),
    source="sources/people.parquet",
    timestamp_field="event_timestamp",
    join_key="user_id",
    written={"degree": DEGREES},
)
SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("event_timestamp", pa.timestamp("us", "UTC")),
        ("age", pa.int32()),
        ("fans", pa.int64()),
        ("score", pa.float64()),
        ("rate", pa.float64()),
        ("live", pa.bool_()),
        ("degree", pa.large_string()),
        ("tag", pa.list_(pa.int64())),
        ("likes", pa.list_(pa.float64())),
    ]
)


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(
        [{**row, "event_timestamp": when(row.get("at_ms", 1_000))} for row in rows], SCHEMA
    )


def when(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)


def slow_value(field: FieldPlan, row: dict[str, Any]) -> Any:
    """One field of one source row, None where null: what `rows_of` computes by column."""
    if field.name in ("tag_1", "tag_2"):
        tags = row.get("tag") or []
        place = int(field.name[-1]) - 1
        return tags[place] if place < len(tags) else None
    value = row.get(field.name)
    if field.name == "degree" and value is not None:
        return int(string_ids([value], DEGREES)[0])
    if isinstance(value, float) and math.isnan(value):
        return None
    if field.name == "likes" and value is not None:
        return [0.0 if each is None or math.isnan(each) else each for each in value[:3]]
    return value


SOURCE_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user_id": st.integers(-(2**63), 2**63 - 1),
            "at_ms": st.integers(0, 2**41),
            "age": st.none() | st.integers(-(2**31), 2**31 - 1),
            "fans": st.none() | st.integers(-(2**63), 2**63 - 1),
            "score": st.none() | st.floats(),
            "rate": st.none() | st.floats(width=32),
            "live": st.none() | st.booleans(),
            "degree": st.none() | st.sampled_from(["low", "full", "new", "", "é"]),
            "tag": st.none() | st.lists(st.none() | st.integers(0, 99), max_size=4),
            "likes": st.none() | st.lists(st.none() | st.floats(width=32), max_size=5),
        }
    ),
    max_size=20,
)


@given(SOURCE_ROWS)
def test_columns_equal_the_slow_reading(source: list[dict[str, Any]]) -> None:
    held = table(source)
    rows = rows_of(VIEW, held.select(source_columns(VIEW, held.column_names)))
    assert rows.entity_ids.tolist() == [row["user_id"] for row in source]
    assert rows.offset.tolist() == rows.newest_ms.tolist() == [row["at_ms"] for row in source]
    assert not rows.epoch.any()
    for field in FIELDS:
        for index, row in enumerate(source):
            expected = slow_value(field, row)
            assert rows.present[field.name][index] == (expected is not None)
            if expected is None:
                continue
            value = rows.values[field.name][index]
            if field.capacity:
                value = value[: rows.lengths[field.name][index]].tolist()
            assert value == expected
    encode_rows(layout_of(VIEW), rows)


def test_sliced_and_chunked_tables_read_alike() -> None:
    source = [{"user_id": n, "tag": [n, n + 1], "degree": "low", "likes": [n]} for n in range(9)]
    whole = rows_of(VIEW, table(source))
    chunked = pa.concat_tables([table(source[:4]), table(source[4:])])
    for held in (chunked, table([source[0], *source]).slice(1)):
        rows = rows_of(VIEW, held)
        assert encode_rows(layout_of(VIEW), rows) == encode_rows(layout_of(VIEW), whole)


def test_an_empty_source() -> None:
    store = MemoryRowStore()
    assert write_rows(VIEW, rows_of(VIEW, table([])), store).entities == 0


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", pa.array([1, None]), "people.user_id: needs a key in every row, got 1 null"),
        ("user_id", pa.array([1.5, 2.5]), "people.user_id: needs integer or string keys"),
        ("event_timestamp", pa.array([1, None]), "an event time in every row, got 1 nulls"),
        ("event_timestamp", pa.array(["a", "b"]), "an event time in every row, got string"),
        ("event_timestamp", pa.array([-1, 5]), "needs times since 1970, got -1 to 5 ms"),
        ("age", pa.array([1, 1 << 40]), "people.age: needs values that fit the declared int32"),
        ("fans", pa.array([0.5, 1.0]), "people.fans: needs values that fit the declared int64"),
        (
            "fans",
            pa.array(["a", "b"]),
            "people.fans: needs a column of the declared i64, got str",
        ),
        ("degree", pa.array([1, 2]), "people.degree: needs a column of strings, got int64"),
        ("tag", pa.array([1, 2]), "people.tag_1: needs a column of lists, got int64"),
    ],
)
def test_a_source_that_does_not_hold_what_is_declared(
    column: str, values: pa.Array, message: str
) -> None:
    held = table([{"user_id": 1}, {"user_id": 2}])
    place = held.column_names.index(column)
    with pytest.raises(DeclarationError) as caught:
        rows_of(VIEW, held.set_column(place, column, values))
    assert message in str(caught.value)


def test_missing_columns_are_named() -> None:
    with pytest.raises(DeclarationError, match=r"got no age, tag_1, tag_2; write them into"):
        source_columns(VIEW, [name for name in SCHEMA.names if name not in ("age", "tag")])


def test_string_keys_become_their_ids_and_a_null_column_stays_null() -> None:
    held = table([{"user_id": 1}, {"user_id": 2}])
    held = held.set_column(0, "user_id", pa.array(["ann", "bob"]))
    held = held.set_column(2, "age", pa.nulls(2))
    rows = rows_of(VIEW, held)
    assert (
        rows.entity_ids.tolist() == [-2478671110384316413, 3128839018462398414]
        or len(set(rows.entity_ids.tolist())) == 2
    )
    assert not rows.present["age"].any()


def test_any_unit_of_time_is_read_as_ms() -> None:
    for unit, scale in (("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)):
        column = pa.chunked_array([pa.array([7 * scale], pa.timestamp(unit))])
        assert event_times(column, "t").tolist() == [7_000]
    assert event_times(pa.chunked_array([pa.array([7_000])]), "t").tolist() == [7_000]


# --- writing --------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "redis"])
def store(request: pytest.FixtureRequest) -> RowStore:
    if request.param == "memory":
        return MemoryRowStore()
    redis = RedisRowStore(request.getfixturevalue("valkey"))
    request.addfinalizer(redis.close)
    return redis


def view_named(request: pytest.FixtureRequest) -> ViewPlan:
    """The view under a name of its own: tests share one server."""
    return replace(VIEW, name=f"v{zlib.crc32(request.node.nodeid.encode())}")


def stored(view: ViewPlan, store: RowStore, ids: list[int]) -> tuple[Rows, list[int]]:
    raw = store.read(row_keys(view.name, view.generation, ids))
    rows, status = decode_rows(layout_of(view), raw, np.array(ids, np.int64))
    return rows, status.tolist()


def test_newer_rows_win_and_equal_ones_are_not_written(
    store: RowStore, request: pytest.FixtureRequest
) -> None:
    view = view_named(request)

    def write(*rows: dict[str, Any]) -> Materialized:
        return write_rows(view, rows_of(view, table(list(rows))), store)

    first = write({"user_id": 1, "age": 10}, {"user_id": 2, "age": 20})
    assert (first.read, first.entities, first.written) == (2, 2, 2)
    again = write({"user_id": 1, "age": 10}, {"user_id": 2, "age": 20})
    assert (again.written, again.equal) == (0, 2)
    older = write({"user_id": 1, "age": 11, "at_ms": 999}, {"user_id": 3, "age": 30})
    assert (older.written, older.newer) == (1, 1)
    newer = write({"user_id": 1, "age": 12, "at_ms": 2_000})
    assert newer.written == 1
    corrected = write({"user_id": 2, "age": 21})
    assert corrected.written == 1
    rows, status = stored(view, store, [1, 2, 3, 4])
    assert status == [Status.PRESENT] * 3 + [Status.NOT_FOUND]
    assert rows.values["age"].tolist() == [12, 21, 30, 0]
    assert rows.offset.tolist()[:3] == [2_000, 1_000, 1_000]


def test_of_one_entitys_rows_the_newest_is_written(
    store: RowStore, request: pytest.FixtureRequest
) -> None:
    view = view_named(request)
    source = [
        {"user_id": 1, "age": 2, "at_ms": 2_000},
        {"user_id": 1, "age": 3, "at_ms": 3_000},
        {"user_id": 1, "age": 4, "at_ms": 3_000},
        {"user_id": 1, "age": 1, "at_ms": 1_000},
    ]
    done = write_rows(view, rows_of(view, table(source)), store)
    assert (done.read, done.entities, done.written) == (4, 1, 1)
    assert stored(view, store, [1])[0].values["age"].tolist() == [4]


def test_a_corrupt_row_is_replaced(store: RowStore, request: pytest.FixtureRequest) -> None:
    view = view_named(request)
    rows = rows_of(view, table([{"user_id": 1, "age": 10, "at_ms": 5_000}]))
    (good,) = encode_rows(layout_of(view), rows)
    broken = bytearray(good)
    broken[12] ^= 0xFF
    (key,) = row_keys(view.name, view.generation, [1])
    assert store.compare_and_set([Write(key, None, bytes(broken))]) == [True]
    older = rows_of(view, table([{"user_id": 1, "age": 9, "at_ms": 1_000}]))
    assert write_rows(view, older, store).written == 1
    assert stored(view, store, [1])[1] == [Status.PRESENT]


def test_a_write_that_loses_the_race_reads_again() -> None:
    class Racing(MemoryRowStore):
        """Another writer puts a newer row in just before the first compare-and-set."""

        raced = False

        def compare_and_set(self, writes: Any) -> list[bool]:
            if not self.raced:
                self.raced = True
                rows = rows_of(VIEW, table([{"user_id": 1, "age": 99, "at_ms": 9_000}]))
                (key,) = row_keys(VIEW.name, VIEW.generation, [1])
                (value,) = encode_rows(layout_of(VIEW), rows)
                super().compare_and_set([Write(key, None, value)])
            return super().compare_and_set(writes)

    store = Racing()
    rows = rows_of(VIEW, table([{"user_id": 1, "age": 1}, {"user_id": 2, "age": 2}]))
    done = write_rows(VIEW, rows, store)
    assert (done.written, done.newer) == (1, 1)
    assert stored(VIEW, store, [1, 2])[0].values["age"].tolist() == [99, 2]


def test_rows_that_never_stay_as_read_end_in_an_error() -> None:
    class Lost(MemoryRowStore):
        def compare_and_set(self, writes: Any) -> list[bool]:
            return [False] * len(writes)

    with pytest.raises(StoreError, match="got 1 rows that other writers kept changing"):
        write_rows(VIEW, rows_of(VIEW, table([{"user_id": 1}])), Lost())


def test_a_source_file_is_written_in_batches(tmp_path: Path) -> None:
    store = MemoryRowStore()
    source = [{"user_id": n, "age": n % 90, "tag": [n % 9]} for n in range(10_000)]
    (tmp_path / "sources").mkdir()
    pq.write_table(table(source), tmp_path / VIEW.source)
    seen: list[tuple[int, int]] = []
    done = materialize(VIEW, tmp_path, store, progress=lambda *at: seen.append(at))
    assert (done.read, done.written, done.equal) == (10_000, 10_000, 0)
    assert seen == [(4_096, 10_000), (8_192, 10_000), (10_000, 10_000)]
    assert materialize(VIEW, tmp_path, store).equal == 10_000


def test_a_source_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"people.source: .*got no such file; prepare the sources"):
        materialize(VIEW, tmp_path, MemoryRowStore())
    (tmp_path / "sources").mkdir()
    (tmp_path / VIEW.source).write_bytes(b"no parquet")
    with pytest.raises(PlanError, match=r"needs a Parquet file"):
        materialize(VIEW, tmp_path, MemoryRowStore())


def test_materializing_loads_no_feast() -> None:
    code = "import sys, catalog.materialize, catalog.publish; sys.exit('feast' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
