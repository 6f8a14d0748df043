"""The Parquet trees of the streams' sinks, for tests: rank records and actions in, files out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from aggregation.program import ServiceProgram
from audit.join import LogPaths
from schemas.ranklog import TASKS, RankRecord
from schemas.values import Block, to_columns

TOPIC_ID = "3f0e0b52-7c1c-4b0e-9d55-0d4a4d2b9c11"


def value_arrays(block: Block) -> dict[str, pa.Array]:
    """A block's features as nullable Parquet columns, vectors as lists of their true length."""
    arrays: dict[str, pa.Array] = {}
    for name, column in to_columns(block).items():
        if column.lengths is None:
            arrays[name] = pa.array(np.ascontiguousarray(column.values), mask=column.null.copy())
            continue
        capacity = column.values.shape[1]
        filled = np.arange(capacity) < column.lengths[:, None]
        offsets = np.concatenate([[0], np.cumsum(column.lengths, dtype=np.int64)])
        arrays[name] = pa.ListArray.from_arrays(
            pa.array(offsets.astype(np.int32)),
            pa.array(column.values[filled]),
            mask=pa.array(column.null.copy()) if len(column.null) else None,
        )
    return arrays


def record_tables(
    records: Sequence[RankRecord], program: ServiceProgram, first_offset: int = 0
) -> tuple[pa.Table, pa.Table]:
    """Records → (requests, candidates), at consecutive offsets."""
    offsets = first_offset + np.arange(len(records))
    ids = [str(record.request_id) for record in records]
    users = np.frombuffer(b"".join(r.user_values for r in records), program.user_dtype)
    requests = {
        "offset": pa.array(offsets),
        "request_id": pa.array(ids),
        "user_id": pa.array([r.user_id for r in records], pa.int64()),
        "now_ms": pa.array([r.now_ms for r in records], pa.int64()),
        "service": pa.array([program.service.name] * len(records)),
        "fingerprint": pa.array([f"{r.service_fingerprint:016x}" for r in records]),
        "coarse_version": pa.array([r.coarse_version for r in records], pa.uint64()),
        "fine_version": pa.array([r.fine_version for r in records], pa.uint64()),
        "degraded": pa.array([r.degraded for r in records], pa.uint32()),
        "user_status": pa.array([r.user_status.tolist() for r in records], pa.list_(pa.uint8())),
        **value_arrays(users),
    }
    fine = pa.table(_fine(records, program, ids, offsets))
    coarse = pa.table(_coarse(records, ids, offsets))
    return pa.table(requests), pa.concat_tables([fine, coarse], promote_options="default")


def _fine(
    records: Sequence[RankRecord], program: ServiceProgram, ids: list[str], offsets: NDArray[Any]
) -> dict[str, pa.Array]:
    counts = [len(r.fine_ids) for r in records]
    items = np.frombuffer(b"".join(r.item_values for r in records), program.item_dtype)
    tasks = np.concatenate([_tasks(r) for r in records])
    return {
        "offset": pa.array(np.repeat(offsets, counts)),
        "request_id": pa.array(np.repeat(ids, counts)),
        "item_id": pa.array(np.concatenate([r.fine_ids for r in records])),
        "stage": pa.array(["fine"] * sum(counts)),
        "place": pa.array(np.concatenate([np.arange(n) for n in counts]).astype(np.int32)),
        "coarse_score": _scores(np.concatenate([r.coarse_scores for r in records])),
        **{f"fine_{task}": _scores(tasks[:, at]) for at, task in enumerate(TASKS)},
        "score": _scores(np.concatenate([r.final_scores for r in records])),
        "position": pa.array(np.concatenate([r.positions for r in records])),
        "draw_probability": pa.array(np.concatenate([r.draw_probability for r in records])),
        **value_arrays(items),
    }


def _coarse(
    records: Sequence[RankRecord], ids: list[str], offsets: NDArray[Any]
) -> dict[str, pa.Array]:
    counts = [len(r.coarse_only_ids) for r in records]
    return {
        "offset": pa.array(np.repeat(offsets, counts)),
        "request_id": pa.array(np.repeat(ids, counts), pa.string()),
        "item_id": pa.array(np.concatenate([r.coarse_only_ids for r in records])),
        "stage": pa.array(["coarse"] * sum(counts), pa.string()),
        "coarse_score": pa.array(np.concatenate([r.coarse_only_scores for r in records])),
    }


def _tasks(record: RankRecord) -> NDArray[np.float32]:
    scored = record.task_scores.shape[1] > 0
    empty = np.full((len(record.fine_ids), len(TASKS)), np.nan, np.float32)
    return record.task_scores if scored else empty


def _scores(values: NDArray[np.float32]) -> pa.Array:
    """NaN, which says unscored in a record, is null in the table."""
    return pa.array(np.ascontiguousarray(values), mask=np.isnan(values))


@dataclass(frozen=True)
class Act:
    """One action of the archive."""

    request_id: uuid.UUID | None
    item: int
    action: str
    time_ms: int
    user: int = 0


def action_table(acts: Sequence[Act]) -> pa.Table:
    """The columns of the action archive that a join reads."""
    return pa.table(
        {
            "offset": pa.array(range(len(acts)), pa.int64()),
            "user": pa.array([a.user for a in acts], pa.int64()),
            "item": pa.array([a.item for a in acts], pa.int64()),
            "time_ms": pa.array([a.time_ms for a in acts], pa.int64()),
            "action": pa.array([a.action for a in acts], pa.string()),
            "request_id": pa.array(
                [None if a.request_id is None else str(a.request_id) for a in acts], pa.string()
            ),
        }
    )


def write_logs(
    data_dir: Path, requests: pa.Table, candidates: pa.Table, actions: pa.Table, name: str = "0"
) -> LogPaths:
    """One file of each tree, below `data_dir`, as the sinks name them."""
    paths = LogPaths.under(data_dir)
    for root, table in (
        (paths.requests, requests),
        (paths.candidates, candidates),
        (paths.actions, actions),
    ):
        directory = root / f"topic_id={TOPIC_ID}" / "partition=0"
        directory.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, directory / f"{name}.parquet")
    return paths
