"""The rank log's two tables: one row a request, one row a candidate.

Value columns are typed as the plan declares them and named `view__feature`. Statuses and fences are
lists, one element a view in `ServicePlan.views` order.

Symbols: R records, C candidates of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from schemas.errors import RecordError
from schemas.plan import Plan, ServicePlan
from schemas.ranklog import TASKS, RankRecord
from schemas.values import NULL_FIELD, value_dtype
from streams.arrow import flat_list_column, score_column, uuid_column, value_columns

Array = NDArray[Any]


@dataclass(frozen=True)
class ServiceColumns:
    """What the values of one service's records are."""

    service: ServicePlan
    user_dtype: np.dtype[np.void]
    item_dtype: np.dtype[np.void]

    @classmethod
    def of(cls, plan: Plan, service: ServicePlan) -> ServiceColumns:
        """Raises PlanError."""
        dtypes = value_dtype(plan, service, "user"), value_dtype(plan, service, "item")
        return cls(service, *dtypes)

    @cached_property
    def null_user(self) -> bytes:
        """The record of a user of whom nothing is known."""
        return _null_record(self.user_dtype)

    @cached_property
    def null_item(self) -> bytes:
        """The record of an item of which nothing is known."""
        return _null_record(self.item_dtype)

    def check(self, record: RankRecord, where: str) -> None:
        """Raises RecordError where the record's values are not of these types."""
        fine = len(record.fine_ids)
        sizes = {
            "user_values": (len(record.user_values), self.user_dtype.itemsize),
            "item_values": (len(record.item_values), fine * self.item_dtype.itemsize),
        }
        for name, (size, required) in sizes.items():
            if size not in (0, required):
                raise RecordError(
                    f"{where}.{name}",
                    required=f"{required} bytes, as {self.service.fingerprint} has them, or none",
                    got=f"{size} bytes",
                )


def _null_record(dtype: np.dtype[np.void]) -> bytes:
    record = np.zeros(1, dtype)
    record[NULL_FIELD] = 0xFF
    return record.tobytes()


def request_table(
    columns: ServiceColumns, records: Sequence[RankRecord], offsets: Array
) -> pa.Table:
    """One row a record. offsets: (R,) i64."""
    values = b"".join(record.user_values or columns.null_user for record in records)
    users = _blocks(values, columns.user_dtype, len(records))  # (R,)
    halves = np.array([(r.request_hi, r.request_lo) for r in records], np.uint64)  # (R, 2)
    fingerprints = [f"{record.service_fingerprint:016x}" for record in records]
    return pa.table(
        {
            "offset": pa.array(offsets),
            "request_id": uuid_column(halves[:, 0], halves[:, 1]),
            "caller_id": pa.array([record.caller_id or None for record in records], pa.string()),
            **{
                name: pa.array([getattr(record, name) for record in records], dtype)
                for name, dtype in _REQUEST_SCALARS.items()
            },
            "service": pa.array([columns.service.name] * len(records), pa.string()),
            "fingerprint": pa.array(fingerprints, pa.string()),
            "user_status": _lists([record.user_status[None] for record in records]),
            "user_fences": _fence_lists([record.user_fences[None] for record in records]),
            **value_columns(users),
        }
    )


def _blocks(values: bytes, dtype: np.dtype[np.void], n: int) -> Array:
    """Bytes → (n,) records. A side that has no feature has records of no bytes."""
    return np.frombuffer(values, dtype) if dtype.itemsize else np.zeros(n, dtype)


_REQUEST_SCALARS = {
    "user_id": pa.int64(),
    "now_ms": pa.int64(),
    "received_ms": pa.int64(),
    "plan_version": pa.uint32(),
    "serving_generation": pa.uint32(),
    "coarse_version": pa.uint64(),
    "fine_version": pa.uint64(),
    "degraded": pa.uint32(),
}


def candidate_table(
    columns: ServiceColumns, records: Sequence[RankRecord], offsets: Array
) -> pa.Table:
    """One row a candidate: of each record the fine stage in scoring order, then the coarse only.

    `place` is the order of scoring, `position` the place on the page (-1: not on it); both are
    null for a candidate that only the coarse stage saw. offsets: (R,) i64.
    """
    fine, coarse = _fine(columns, records, offsets), _coarse(records, offsets)
    table = pa.concat_tables([fine, coarse], promote_options="default")
    if coarse.num_rows == 0:
        return table
    return table.sort_by([("offset", "ascending"), ("place", "ascending")])


def _fine(columns: ServiceColumns, records: Sequence[RankRecord], offsets: Array) -> pa.Table:
    counts = np.array([len(record.fine_ids) for record in records], np.int64)  # (R,)
    values = b"".join(
        record.item_values or columns.null_item * len(record.fine_ids) for record in records
    )
    items = _blocks(values, columns.item_dtype, int(counts.sum()))  # (C,)
    tasks = np.concatenate([_tasks(record) for record in records])  # (C, T)
    place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # (C,)
    per_candidate = {
        "position": "positions",
        "draw_probability": "draw_probability",
    }
    return pa.table(
        {
            **_identity(records, offsets, counts, "fine", "fine_ids"),
            "place": pa.array(place.astype(np.int32)),
            "coarse_score": score_column(_joined(records, "coarse_scores")),
            **{f"fine_{task}": score_column(tasks[:, i]) for i, task in enumerate(TASKS)},
            "score": score_column(_joined(records, "final_scores")),
            **{name: pa.array(_joined(records, field)) for name, field in per_candidate.items()},
            "item_status": _lists([record.item_status for record in records]),
            "item_fences": _fence_lists([record.item_fences for record in records]),
            **value_columns(items),
        }
    )


def _coarse(records: Sequence[RankRecord], offsets: Array) -> pa.Table:
    counts = np.array([len(record.coarse_only_ids) for record in records], np.int64)  # (R,)
    return pa.table(
        {
            **_identity(records, offsets, counts, "coarse", "coarse_only_ids"),
            "coarse_score": score_column(_joined(records, "coarse_only_scores")),
        }
    )


def _identity(
    records: Sequence[RankRecord], offsets: Array, counts: Array, stage: str, ids: str
) -> dict[str, pa.Array]:
    halves = np.array([(r.request_hi, r.request_lo) for r in records], np.uint64)  # (R, 2)
    requests = uuid_column(halves[:, 0], halves[:, 1])
    which = np.repeat(np.arange(len(records)), counts)  # (C,)
    return {
        "offset": pa.array(offsets[which]),
        "request_id": requests.take(pa.array(which)),
        "item_id": pa.array(_joined(records, ids)),
        "stage": pa.array([stage]).take(pa.array(np.zeros(len(which), np.int64))),
    }


def _joined(records: Sequence[RankRecord], name: str) -> Array:
    return np.concatenate([getattr(record, name) for record in records])


def _tasks(record: RankRecord) -> NDArray[np.float32]:
    """(Nf, T) probabilities, NaN where there was no fine model."""
    if record.task_scores.shape[1] == len(TASKS):
        return record.task_scores
    return np.full((len(record.fine_ids), len(TASKS)), np.nan, np.float32)


def _lists(blocks: Sequence[NDArray[np.uint8]]) -> pa.Array:
    """One list a row of each block; at least one block."""
    elements = np.concatenate([block.reshape(-1) for block in blocks])
    return flat_list_column(elements, _row_lengths(blocks))


def _fence_lists(blocks: Sequence[NDArray[np.void]]) -> pa.Array:
    """As `_lists`, of {epoch, offset}."""
    names = ("epoch", "offset")
    elements = pa.StructArray.from_arrays(
        [pa.array(np.concatenate([b[name].reshape(-1) for b in blocks])) for name in names],
        names,
    )
    return flat_list_column(elements, _row_lengths(blocks))


def _row_lengths(blocks: Sequence[Array]) -> NDArray[np.int64]:
    widths = np.array([block.shape[1] for block in blocks], np.int64)
    return np.repeat(widths, [len(block) for block in blocks])
