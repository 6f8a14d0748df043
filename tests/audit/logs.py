"""The Parquet trees of the streams' sinks, for tests: rank records and actions in, files out."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from aggregation.program import ServiceProgram
from audit.join import LogPaths
from schemas.ranklog import FENCE, RankRecord
from schemas.values import Block
from streams.archive import partition_dir, write_file
from streams.rank_tables import ServiceColumns, candidate_table, request_table

TOPIC_ID = "3f0e0b52-7c1c-4b0e-9d55-0d4a4d2b9c11"
IMPRESSION, CLICK, LONG_VIEW, LIKE = "impression", "click", "long_view", "like"


@dataclass(frozen=True)
class Act:
    """One action of the archive."""

    request_id: uuid.UUID | None
    item: int
    action: str
    time_ms: int


def write_records(
    data_dir: Path,
    program: ServiceProgram,
    records: Sequence[RankRecord],
    first: int = 0,
    partition: int = 0,
) -> None:
    """One file of each rank-log table, at consecutive offsets, as the sink writes them."""
    columns = ServiceColumns.of(program.plan, program.service)
    offsets = first + np.arange(len(records))
    paths = LogPaths.under(data_dir)
    for root, make in ((paths.candidates, candidate_table), (paths.requests, request_table)):
        directory = partition_dir(root, TOPIC_ID, partition)
        write_file(directory, first, first + len(records) - 1, make(columns, records, offsets))


def write_actions(data_dir: Path, acts: Sequence[Act], first: int = 0) -> None:
    """The columns of the action archive that a join reads."""
    table = pa.table(
        {
            "offset": pa.array(range(first, first + len(acts)), pa.int64()),
            "item": pa.array([act.item for act in acts], pa.int64()),
            "time_ms": pa.array([act.time_ms for act in acts], pa.int64()),
            "action": pa.array([act.action for act in acts]).dictionary_encode(),
            "request_id": pa.array(
                [None if act.request_id is None else str(act.request_id) for act in acts],
                pa.string(),
            ),
        }
    )
    directory = partition_dir(LogPaths.under(data_dir).actions, TOPIC_ID, 0)
    write_file(directory, first, first + max(0, len(acts) - 1), table)


def record(
    program: ServiceProgram,
    items: Sequence[int],
    number: int = 1,
    now_ms: int = 1_000,
    user_id: int = 7,
    blocks: tuple[Block, Block] | None = None,
    coarse_only: Sequence[int] = (),
) -> RankRecord:
    """A record that no model scored. blocks: the values of user (1,) and items; zeros if None."""
    n, views = len(items), len(program.item_views)
    zeros = np.zeros(1, program.user_dtype), np.zeros(n, program.item_dtype)
    user, item = blocks if blocks is not None else zeros
    nan = np.full(n, np.nan, np.float32)
    return RankRecord(
        request_hi=0,
        request_lo=number,
        user_id=user_id,
        now_ms=now_ms,
        received_ms=now_ms,
        service_fingerprint=int(program.service.fingerprint, 16),
        plan_version=1,
        serving_generation=1,
        coarse_version=0,
        fine_version=0,
        degraded=1,
        user_values=user.tobytes(),
        user_status=np.zeros(len(program.user_views), np.uint8),
        user_fences=np.zeros(len(program.user_views), FENCE),
        fine_ids=np.array(items, np.int64),
        item_values=item.tobytes(),
        item_status=np.zeros((n, views), np.uint8),
        item_fences=np.zeros((n, views), FENCE),
        coarse_scores=nan,
        task_scores=np.zeros((n, 0), np.float32),
        final_scores=nan,
        positions=np.arange(n, dtype=np.int16),
        draw_probability=np.ones(n, np.float32),
        coarse_only_ids=np.array(coarse_only, np.int64),
        coarse_only_scores=np.zeros(len(coarse_only), np.float32),
    )


def request_id(number: int) -> uuid.UUID:
    """The id of `record(..., number)`."""
    return uuid.UUID(int=number)
