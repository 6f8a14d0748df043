"""Value blocks → the sink's columns → Parquet → DuckDB → value blocks, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregation.program import ServiceProgram
from audit.blocks import block_of
from audit.join import JoinQuery, LogPaths, join_log
from schemas.errors import RecordError
from schemas.values import LENGTH_SUFFIX, NULL_FIELD, Block, null_mask, pack_nulls, value_names
from streams.arrow import value_columns
from tests.aggregation.plans import demo_plan
from tests.audit.logs import record, write_actions, write_records

PROGRAM = ServiceProgram(demo_plan(), "ranking")


def random_block(dtype: np.dtype[np.void], n: int, seed: int) -> Block:
    """Any bits in every value, NaNs with payloads and negative zeros among them; some null."""
    rng = np.random.default_rng(seed)
    block = np.frombuffer(rng.bytes(n * dtype.itemsize), dtype).copy()  # (n,)
    names = value_names(dtype)
    null = rng.random((n, len(names))) < 0.2  # (n, k)
    for index, name in enumerate(names):
        if dtype[name] == np.dtype("?"):
            block[name] = rng.random(n) < 0.5
        if dtype[name].shape:
            capacity = dtype[name].shape[0]
            lengths = np.where(null[:, index], 0, rng.integers(0, capacity + 1, n))
            block[name + LENGTH_SUFFIX] = lengths
            block[name][np.arange(capacity) >= lengths[:, None]] = 0
        block[name][null[:, index]] = 0
    block[NULL_FIELD] = pack_nulls(null)
    return block


def same(left: Block, right: Block) -> bool:
    return left.dtype == right.dtype and left.tobytes() == right.tobytes()


@given(st.integers(0, 20), st.integers(0, 2**32), st.sampled_from(["user", "item"]))
def test_columns_and_back(n: int, seed: int, side: str) -> None:
    dtype = PROGRAM.user_dtype if side == "user" else PROGRAM.item_dtype
    block = random_block(dtype, n, seed)
    assert same(block_of(pa.table(value_columns(block)), dtype), block)


@given(seed=st.integers(0, 2**32))
@settings(
    max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
def test_through_files_and_the_join(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    data_dir = tmp_path_factory.mktemp("log")
    users = random_block(PROGRAM.user_dtype, 4, seed)
    items = random_block(PROGRAM.item_dtype, 12, seed + 1)
    records = [
        record(PROGRAM, [1, 2, 3], n, n, blocks=(users[n : n + 1], items[3 * n : 3 * n + 3]))
        for n in range(4)
    ]
    write_records(data_dir, PROGRAM, records)
    write_actions(data_dir, [])
    log = join_log(LogPaths.under(data_dir), JoinQuery("ranking", PROGRAM.service.fingerprint))
    assert same(block_of(log.requests, PROGRAM.user_dtype), users)
    assert same(block_of(log.candidates, PROGRAM.item_dtype), items)
    assert not null_mask(users).all()


def column(name: str, values: pa.Array) -> pa.Table:
    table = pa.table(value_columns(np.zeros(2, PROGRAM.user_dtype)))
    return table.set_column(table.column_names.index(name), name, values)


def test_a_widened_column_is_narrowed_where_nothing_is_lost() -> None:
    """DuckDB gives the wider type where files of two plans disagree."""
    name = "users__active_degree"
    narrow = PROGRAM.user_dtype[name]
    block = block_of(column(name, pa.array([-5, None], pa.int64())), PROGRAM.user_dtype)
    assert block[name].dtype == narrow
    assert block[name].tolist() == [-5, 0]
    with pytest.raises(RecordError, match=rf"rank log\.{name}: needs int32, got int64"):
        block_of(column(name, pa.array([2**40, None], pa.int64())), PROGRAM.user_dtype)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([1, 2]), "needs a list, got int64"),
        (pa.array([[1] * 51, []]), "needs at most 50 elements, got 51"),
        (pa.array([[1, None], []]), "needs elements without null, got null"),
    ],
)
def test_lists_that_are_none(values: pa.Array, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        block_of(column("user_activity__videos_item", values), PROGRAM.user_dtype)


def test_a_column_that_is_not_there() -> None:
    table = pa.table(value_columns(np.zeros(1, PROGRAM.user_dtype)))
    short = table.drop_columns(["users__fans"])
    with pytest.raises(RecordError, match=r"rank log\.users__fans: needs a column of that name"):
        block_of(short, PROGRAM.user_dtype)


def test_records_of_another_plan_leave_the_join_alone(tmp_path: Path) -> None:
    """Files of two plans lie side by side; a join of one does not stumble over the other."""
    plan = demo_plan()
    service = plan.service("ranking")
    fewer = replace(service, user_slots=service.user_slots[:3], fingerprint="0" * 15 + "1")
    other = ServiceProgram(replace(plan, services=(fewer,)), "ranking")
    write_records(tmp_path, PROGRAM, [record(PROGRAM, [1], 1)])
    write_records(tmp_path, other, [record(other, [1], 2)], first=1)
    write_actions(tmp_path, [])
    for program in (PROGRAM, other):
        query = JoinQuery("ranking", program.service.fingerprint)
        log = join_log(LogPaths.under(tmp_path), query)
        assert log.counts.requests == 1
        assert len(block_of(log.requests, program.user_dtype)) == 1


def test_an_id_stays_itself_beside_files_of_a_plan_that_has_it_as_a_float(tmp_path: Path) -> None:
    """DuckDB would read both as doubles, which do not hold every int64."""
    items = np.zeros(2, PROGRAM.item_dtype)
    items["videos__video_id"] = 2**53 + 1, -(2**62) - 1
    write_records(
        tmp_path,
        PROGRAM,
        [record(PROGRAM, [1, 2], 1, blocks=(np.zeros(1, PROGRAM.user_dtype), items))],
    )
    write_actions(tmp_path, [])
    paths, fingerprint = LogPaths.under(tmp_path), f"{1:016x}"
    for root in (paths.requests, paths.candidates):
        (file,) = root.rglob("*.parquet")
        table = pq.read_table(file, partitioning=None)
        for name, values in (("fingerprint", [fingerprint]), ("videos__video_id", [0.5])):
            if name in table.column_names:
                at, column = table.column_names.index(name), values * table.num_rows
                table = table.set_column(at, name, pa.array(column))
        pq.write_table(table, file.parent / f"{1:020d}-{1:020d}.parquet")
    log = join_log(paths, JoinQuery("ranking", PROGRAM.service.fingerprint))
    assert same(block_of(log.candidates, PROGRAM.item_dtype), items)
    assert join_log(paths, JoinQuery("ranking", fingerprint)).candidates.num_rows == 2


@pytest.mark.parametrize("without", ["user_slots", "item_slots"])
def test_a_service_with_features_of_one_side_alone(tmp_path: Path, without: str) -> None:
    """The other side's records have no bytes; it is logged and read like any other."""
    plan, fingerprint = demo_plan(), f"{1:016x}"
    service = replace(plan.service("ranking"), crosses=(), fingerprint=fingerprint)
    if without == "user_slots":
        service = replace(service, user_slots=(), sequences=())
    else:
        service = replace(service, item_slots=())
    program = ServiceProgram(replace(plan, services=(service,)), "ranking")
    write_records(tmp_path, program, [record(program, [1, 2], 1)])
    write_actions(tmp_path, [])
    log = join_log(LogPaths.under(tmp_path), JoinQuery("ranking", fingerprint))
    users = block_of(log.requests, program.user_dtype)
    items = block_of(log.candidates, program.item_dtype)
    tensors = program.tensors(users, items)
    assert tensors.user_slots.shape == (1, len(service.user_slots))
    assert tensors.item_slots.shape == (2, len(service.item_slots))
