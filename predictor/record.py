"""A served request as its rank-log record. Runs on the spool's thread, after the reply."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregation.program import Assembled
from predictor.cascade import Ranking
from predictor.generation import ServingGeneration
from schemas.ranklog import FENCE, RankRecord, encode_record

_LOW = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Query:
    """What to rank or aggregate.

    candidate_ids: (N,) i64, no duplicates, N at least 1. now_ms: the clock of the features;
    received_ms: the server's. page_size: K. timeout_ms: from the start of serving to its reply.
    caller_id: the request's id as its caller sent it, empty where it sent none.
    """

    request_id: uuid.UUID
    user_id: int
    candidate_ids: NDArray[np.int64]
    now_ms: int
    received_ms: int
    page_size: int
    timeout_ms: float
    caller_id: str = ""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """Everything a record is made of; none of it changes after the reply."""

    query: Query
    generation: ServingGeneration
    assembled: Assembled
    ranking: Ranking


def record_of(entry: LogEntry) -> RankRecord:
    """The record of one request."""
    query, generation = entry.query, entry.generation
    assembled, ranking = entry.assembled, entry.ranking
    fine = ranking.fine  # (Nf,) places in the caller's order
    positions = np.full(len(fine), -1, np.int16)  # (Nf,)
    positions[ranking.page] = np.arange(len(ranking.page), dtype=np.int16)
    coarse_only = np.ones(len(query.candidate_ids), bool)  # (N,)
    coarse_only[fine] = False
    return RankRecord(
        request_hi=query.request_id.int >> 64,
        request_lo=query.request_id.int & _LOW,
        user_id=query.user_id,
        now_ms=query.now_ms,
        received_ms=query.received_ms,
        service_fingerprint=generation.fingerprint,
        plan_version=generation.plan.version,
        serving_generation=generation.number,
        coarse_version=generation.coarse.version if generation.coarse else 0,
        fine_version=generation.fine.version if generation.fine else 0,
        degraded=int(ranking.degraded),
        user_values=assembled.user_values.tobytes(),
        user_status=assembled.user_status,
        user_fences=_fences(assembled.user_fences),
        fine_ids=query.candidate_ids[fine],
        item_values=assembled.item_values[fine].tobytes(),
        item_status=assembled.item_status[fine],
        item_fences=_fences(assembled.item_fences[fine]),
        coarse_scores=ranking.coarse[fine],
        task_scores=ranking.tasks,
        final_scores=ranking.final,
        positions=positions,
        draw_probability=ranking.draw_probability,
        coarse_only_ids=query.candidate_ids[coarse_only],
        coarse_only_scores=ranking.coarse[coarse_only],
        caller_id=query.caller_id,
    )


def encode_entry(entry: LogEntry) -> bytes:
    """The record's bytes. Raises RecordError."""
    return encode_record(record_of(entry))


def _fences(fences: NDArray[Any]) -> NDArray[np.void]:
    """Row fences in the log's padded layout."""
    out = np.zeros(fences.shape, FENCE)
    out["epoch"], out["offset"] = fences["epoch"], fences["offset"]
    return out
