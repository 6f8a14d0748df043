"""The archive's tables: nothing is lost on the way from records to columns."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.blocks import block_of
from schemas.actions import ACTION, ActionType
from schemas.errors import RecordError
from schemas.ranklog import TASKS
from streams.action_table import ACTION_SCHEMA, action_table
from streams.arrow import uuid_column
from streams.messages import ActionRun
from streams.rank_tables import ServiceColumns, candidate_table, request_table
from tests.streams.ranks import ITEM, PLAN, SERVICE, USER, random_record
from tests.streams.support import some_actions

COLUMNS = ServiceColumns.of(PLAN, SERVICE)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))))
def test_uuids_as_text(halves: list[tuple[int, int]]) -> None:
    pairs = np.array(halves, np.uint64).reshape(-1, 2)
    known = np.arange(len(pairs)) % 3 > 0
    expected = [str(uuid.UUID(int=high << 64 | low)) for high, low in halves]
    assert uuid_column(pairs[:, 0], pairs[:, 1]).to_pylist() == expected
    assert uuid_column(pairs[:, 0], pairs[:, 1], known).to_pylist() == [
        text if there else None for text, there in zip(expected, known, strict=True)
    ]


def test_actions_as_rows() -> None:
    actions = some_actions(200, 9)
    offsets = np.repeat(np.arange(100, 120), 10)
    index = np.tile(np.arange(10, dtype=np.int32), 20)
    run = ActionRun(actions, np.zeros(200, np.int32), offsets, index, np.full(200, 77))
    table = action_table(run)
    assert table.schema == ACTION_SCHEMA
    for row, action in zip(table.to_pylist(), actions, strict=True):
        known = int(action["known"])
        assert row["user"] == action["user"]
        assert row["time_ms"] == action["time_ms"]
        assert row["action"] == ActionType(action["type"]).name.lower()
        assert row["author"] == (int(action["author"]) if known & 1 else None)
        assert row["music"] == (int(action["music"]) if known & 2 else None)
        assert row["position"] == (int(action["position"]) if known & 8 else None)
        assert row["tags"] == action["tags"][: known >> 4].tolist()
        request = uuid.UUID(int=int(action["request_hi"]) << 64 | int(action["request_lo"]))
        assert row["request_id"] == (str(request) if known & 4 else None)
    assert table["offset"].to_pylist() == offsets.tolist()
    assert table["index"].to_pylist() == index.tolist()


def test_a_range_without_actions_has_the_same_columns() -> None:
    empty = np.zeros(0, np.int64)
    run = ActionRun(np.zeros(0, ACTION), empty.astype(np.int32), empty, empty.astype("i4"), empty)
    assert action_table(run).schema == ACTION_SCHEMA


@pytest.mark.parametrize("tasks", [0, len(TASKS)])
@pytest.mark.parametrize("coarse", [0, 3])
def test_values_come_back_bit_for_bit(tasks: int, coarse: int) -> None:
    records = [random_record(seed, fine=seed % 5, coarse=coarse, tasks=tasks) for seed in range(40)]
    records[7] = replace(records[7], caller_id="home-7")
    offsets = np.arange(1_000, 1_040)
    requests = request_table(COLUMNS, records, offsets)
    candidates = candidate_table(COLUMNS, records, offsets)
    assert block_of(requests, USER).tobytes() == b"".join(r.user_values for r in records)
    fine = candidates.filter(pa.compute.equal(candidates["stage"], "fine"))
    assert block_of(fine, ITEM).tobytes() == b"".join(r.item_values for r in records)
    assert fine["item_id"].to_pylist() == [i for r in records for i in r.fine_ids.tolist()]
    assert fine["place"].to_pylist() == [i for r in records for i in range(len(r.fine_ids))]
    assert candidates.num_rows - fine.num_rows == 40 * coarse
    assert requests["request_id"].to_pylist() == [str(r.request_id) for r in records]
    assert requests["caller_id"].to_pylist() == [None] * 7 + ["home-7"] + [None] * 32
    assert requests["coarse_version"].to_pylist() == [r.coarse_version for r in records]
    scores = np.concatenate([r.final_scores for r in records])
    assert fine["score"].null_count == np.isnan(scores).sum()
    click = fine["fine_click"]
    assert click.null_count == (0 if tasks else fine.num_rows)
    statuses = [row for r in records for row in r.item_status.tolist()]
    assert fine["item_status"].to_pylist() == statuses
    assert fine["item_fences"].to_pylist() == [
        [{"epoch": int(f["epoch"]), "offset": int(f["offset"])} for f in row]
        for r in records
        for row in r.item_fences
    ]


def test_candidates_of_a_request_lie_together() -> None:
    records = [random_record(seed) for seed in range(3)]
    table = candidate_table(COLUMNS, records, np.array([5, 6, 7]))
    assert table["offset"].to_pylist() == [5] * 9 + [6] * 9 + [7] * 9
    assert table["stage"].to_pylist() == (["fine"] * 6 + ["coarse"] * 3) * 3


def test_a_request_whose_rows_were_not_read_is_null_throughout() -> None:
    record = replace(random_record(1), user_values=b"", item_values=b"")
    requests = request_table(COLUMNS, [record], np.array([0]))
    candidates = candidate_table(COLUMNS, [record], np.array([0]))
    for table in (requests, candidates):
        names = [name for name in table.column_names if "__" in name]
        assert names
        assert all(table[name].null_count == table.num_rows for name in names)


def test_values_of_another_plan_are_refused() -> None:
    record = random_record(1)
    with pytest.raises(RecordError, match="user_values: needs"):
        COLUMNS.check(replace(record, user_values=record.user_values[:-1]), "rank/0/7")
    with pytest.raises(RecordError, match="item_values: needs"):
        COLUMNS.check(replace(record, item_values=record.item_values[:-6]), "rank/0/7")
