"""The label join against cases a reader checks by eye, and against a loop in plain Python."""

from __future__ import annotations

import re
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aggregation.program import ServiceProgram
from audit.join import LABELS, JoinedLog, JoinQuery, LogPaths, join_log
from schemas.errors import RecordError
from tests.aggregation.plans import demo_plan
from tests.audit.logs import (
    CLICK,
    IMPRESSION,
    LIKE,
    LONG_VIEW,
    Act,
    record,
    request_id,
    write_actions,
    write_records,
)

PROGRAM = ServiceProgram(demo_plan(), "ranking")
QUERY = JoinQuery("ranking", PROGRAM.service.fingerprint)


def join(data_dir: Path, **changes: Any) -> JoinedLog:
    return join_log(LogPaths.under(data_dir), replace(QUERY, **changes))


def labels(log: JoinedLog) -> dict[tuple[int, int], set[str]]:
    """(request row, item) → the labels that are set."""
    return {
        (row["request_row"], row["item_id"]): {name for name in LABELS if row[name]}
        for row in log.candidates.to_pylist()
    }


def test_labels_by_request_and_item_at_or_after_the_request(tmp_path: Path) -> None:
    write_records(
        tmp_path,
        PROGRAM,
        [record(PROGRAM, [10, 11, 12], 1, 1_000), record(PROGRAM, [10, 13], 2, 2_000)],
    )
    one, two = request_id(1), request_id(2)
    acts = [
        Act(one, 10, IMPRESSION, 1_000),  # the request's own millisecond counts
        Act(one, 10, CLICK, 1_500),
        Act(one, 10, LONG_VIEW, 9_000),
        Act(one, 11, IMPRESSION, 999),  # before it was asked for: cannot be its outcome
        Act(one, 11, LIKE, 1_000),
        Act(one, 99, IMPRESSION, 1_100),  # never a candidate
        Act(two, 10, IMPRESSION, 2_000),  # the same item on another page
        Act(two, 13, "share", 2_100),  # no label
        Act(None, 13, IMPRESSION, 2_100),  # of no request
        Act(request_id(3), 13, IMPRESSION, 2_100),  # of a request nobody logged
    ]
    write_actions(tmp_path, acts)
    log = join(tmp_path)
    assert labels(log) == {
        (0, 10): {"exposed", "click", "long_view"},
        (0, 11): {"like"},
        (0, 12): set(),
        (1, 10): {"exposed"},
        (1, 13): set(),
    }
    counts = log.counts
    assert (counts.requests, counts.duplicates, counts.candidates) == (2, 0, 5)
    assert (counts.exposed, counts.unmatched_impressions) == (2, 4)


def test_labels_as_they_were_known_then(tmp_path: Path) -> None:
    """Who joins later, of what was known at 2,000, gets what was joined at 2,000."""
    write_records(tmp_path, PROGRAM, [record(PROGRAM, [10, 11], 1, 1_000)])
    before = [Act(request_id(1), 10, IMPRESSION, 1_000), Act(request_id(1), 11, IMPRESSION, 1_999)]
    write_actions(tmp_path, before)
    then = join(tmp_path)
    since = [Act(request_id(1), 11, CLICK, 2_000), Act(request_id(1), 10, IMPRESSION, 3_000)]
    write_actions(tmp_path, [*since, Act(None, 10, IMPRESSION, 2_000)], first=2)
    again = join(tmp_path, known_ms=2_000)
    assert (labels(again), again.counts) == (labels(then), then.counts)
    assert labels(join(tmp_path))[0, 11] == {"exposed", "click"}


def test_a_record_shipped_twice_counts_once(tmp_path: Path) -> None:
    first = record(PROGRAM, [10, 11], 1, 1_000, coarse_only=[50, 51])
    write_records(tmp_path, PROGRAM, [first, record(PROGRAM, [12], 2, 1_000)])
    write_records(tmp_path, PROGRAM, [first], first=2)
    write_records(tmp_path, PROGRAM, [first], first=0, partition=1)
    write_actions(tmp_path, [Act(request_id(1), 10, IMPRESSION, 1_000)] * 2)
    log = join(tmp_path)
    assert log.counts.requests == 2
    assert log.counts.duplicates == 2
    assert log.candidates.column("item_id").to_pylist() == [10, 11, 12]
    assert log.counts.exposed == 1
    assert log.counts.unmatched_impressions == 0


def test_order_columns_and_what_the_coarse_stage_alone_saw(tmp_path: Path) -> None:
    late = record(PROGRAM, [31, 30], 1, 5_000, coarse_only=[40])
    early = record(PROGRAM, [22, 20, 21], 2, 4_000)
    write_records(tmp_path, PROGRAM, [late, early])
    write_actions(tmp_path, [Act(request_id(1), 40, IMPRESSION, 5_000)])
    log = join(tmp_path)
    assert log.requests.column("now_ms").to_pylist() == [4_000, 5_000]
    assert log.candidates.column("item_id").to_pylist() == [22, 20, 21, 31, 30]
    assert log.candidates.column("request_row").to_pylist() == [0, 0, 0, 1, 1]
    assert log.counts.unmatched_impressions == 1
    left_out = {"topic_id", "partition", "offset", "item_fences", "user_status"}
    assert not left_out & {*log.candidates.column_names, *log.requests.column_names}
    evidence = join(tmp_path, evidence=True)
    assert {"item_status", "item_fences"} <= set(evidence.candidates.column_names)
    assert {"user_status", "user_fences"} <= set(evidence.requests.column_names)


def test_only_the_service_fingerprint_and_period_asked_for(tmp_path: Path) -> None:
    records = [record(PROGRAM, [10], number, 1_000 * number) for number in (1, 2, 3)]
    other = replace(record(PROGRAM, [10], 4, 2_000), service_fingerprint=1)
    write_records(tmp_path, PROGRAM, [*records, other])
    write_actions(tmp_path, [])
    assert join(tmp_path).counts.requests == 3
    within = join(tmp_path, start_ms=2_000, end_ms=3_000)
    assert within.requests.column("now_ms").to_pylist() == [2_000]
    assert join(tmp_path, fingerprint=f"{1:016x}").counts.requests == 1
    assert join(tmp_path, service="other").counts.requests == 0
    assert join(tmp_path, service="other").candidates.num_rows == 0


@pytest.mark.parametrize("seed", range(5))
def test_equals_a_loop_over_everything(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    records = [
        record(
            PROGRAM,
            rng.choice(8, rng.integers(1, 6), replace=False).tolist(),
            number,
            int(rng.integers(100, 110)),
        )
        for number in range(1, 13)
    ]
    shipped = [*records, *(records[at] for at in rng.integers(0, 12, 4))]
    for first, each in enumerate(shipped):
        write_records(tmp_path, PROGRAM, [each], first)
    kinds = [IMPRESSION, CLICK, LONG_VIEW, LIKE, "play"]
    acts = [
        Act(
            [None, *map(request_id, range(1, 16))][rng.integers(0, 16)],
            int(rng.integers(0, 8)),
            kinds[rng.integers(0, 5)],
            int(rng.integers(98, 115)),
        )
        for _ in range(300)
    ]
    write_actions(tmp_path, acts)
    log = join(tmp_path)
    expected: dict[tuple[uuid.UUID, int], set[str]] = {}
    matched = 0
    for each in records:
        for item in each.fine_ids.tolist():
            expected[each.request_id, item] = {
                name
                for name, action in LABELS.items()
                for act in acts
                if (act.request_id, act.item, act.action) == (each.request_id, item, action)
                and act.time_ms >= each.now_ms
            }
            matched += sum(
                (act.request_id, act.item, act.action) == (each.request_id, item, IMPRESSION)
                and act.time_ms >= each.now_ms
                for act in acts
            )
    ids = [uuid.UUID(text) for text in log.requests.column("request_id").to_pylist()]
    assert {(ids[row], item): found for (row, item), found in labels(log).items()} == expected
    assert log.counts.exposed == sum("exposed" in found for found in expected.values())
    impressions = sum(act.action == IMPRESSION for act in acts)
    assert log.counts.unmatched_impressions == impressions - matched
    assert log.counts.duplicates == 4


def test_nothing_there_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"needs Parquet files, got none; rank requests"):
        join(tmp_path)


def test_foreign_files_are_an_error_of_ours(tmp_path: Path) -> None:
    write_records(tmp_path, PROGRAM, [record(PROGRAM, [10])])
    actions = LogPaths.under(tmp_path).actions
    actions.mkdir(parents=True)
    pq.write_table(pa.table({"x": [1]}), actions / "x.parquet")
    with pytest.raises(RecordError, match="needs the Parquet files of the sinks"):
        join(tmp_path)
    (actions / "x.parquet").write_bytes(b"PAR1 no more than this")
    with pytest.raises(RecordError, match="needs the Parquet files of the sinks"):
        join(tmp_path)


def test_a_range_without_records_is_no_obstacle(tmp_path: Path) -> None:
    write_records(tmp_path, PROGRAM, [record(PROGRAM, [10])])
    for root in (LogPaths.under(tmp_path).requests, LogPaths.under(tmp_path).candidates):
        (directory,) = root.glob("topic_id=*/partition=0")
        empty = pa.table({"offset": pa.array([], pa.int64())})
        pq.write_table(empty, directory / f"{1:020d}-{1:020d}.parquet")
    write_actions(tmp_path, [Act(request_id(1), 10, IMPRESSION, 1_000)])
    assert join(tmp_path).counts.exposed == 1


def test_the_questions_of_the_audit_page_can_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/audit.md, over files of two plans: one has no column of user_activity."""
    service = PROGRAM.service
    fewer = replace(
        service,
        user_slots=service.user_slots[:3],
        crosses=(),
        sequences=(),
        fingerprint=f"{1:016x}",
    )
    other = ServiceProgram(replace(PROGRAM.plan, services=(fewer,)), "ranking")
    write_records(tmp_path, other, [record(other, [12], 3, 3_000)])
    named = replace(record(PROGRAM, [10, 11], 1, 1_000, 1334), caller_id="home-7")
    write_records(tmp_path, PROGRAM, [named], first=1)
    acts = [(10, IMPRESSION), (10, CLICK), (11, IMPRESSION), (12, CLICK)]
    write_actions(
        tmp_path, [Act(request_id(3 if i == 12 else 1), i, kind, 3_000) for i, kind in acts]
    )
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text("utf-8")
    block = re.search(r"```sql\n(.*?)```", text, re.S)
    assert block
    monkeypatch.chdir(tmp_path)
    with duckdb.connect() as connection:
        answers = [
            connection.execute(question.replace("__clicks_1d", "__click_1h")).fetchall()
            for question in block[1].split(";")
            if question.strip()
        ]
    shown, by_caller, by_place, degraded = answers[3:]
    assert [row[::2] for row in by_caller] == [(str(request_id(1)), 1334)]
    assert [row[:1] + row[2:4] for row in shown] == [(1_000, 10, 0), (1_000, 11, 1)]
    assert by_place == [(0, 1, 1.0), (1, 1, 0.0)]
    assert [row[1:] for row in degraded] == [(1, 2)]
