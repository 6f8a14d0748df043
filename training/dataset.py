"""Training sets: the joined log as int-ID tensors, by the code that made the served tensors.

Symbols: R requests, C candidates (of the fine stage), D distinct item rows, Su and Si slots, L
sequence capacity, T tasks.

A request's user part is held once. Candidates repeat across requests with equal values, so item
rows are held once too and candidates point at them: 20 times less memory where no slot crosses the
candidate with its user. An item's tower takes no such cross, so it runs once a `tower_row`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from aggregation.program import ServiceProgram
from aggregation.tensors import Ids, Tensors
from audit.blocks import block_of
from audit.join import JoinedLog
from schemas.errors import RecordError
from schemas.ids import hash64
from schemas.ranklog import TASKS


@dataclass(frozen=True, slots=True)
class Dataset:
    """R requests in order of now_ms, their C candidates grouped by request.

    user_ids, now_ms: (R,) i64. tensors: user_slots (R, Su), item_slots (D, Si), sequences (R, L),
    lengths (R,). first: (R + 1,) i64, request r owns candidates [first[r], first[r + 1]).
    request_row: (C,) i32 into R. item_row: (C,) i32 into D. tower_row: (D,) i32 into D, the first
    row that is equal but for the crosses with the user. item_ids: (C,) i64.
    exposed: (C,) bool, had an impression. labels: (C, T) bool in the order of TASKS, meaningful
    where exposed.
    """

    user_ids: NDArray[np.int64]
    now_ms: NDArray[np.int64]
    tensors: Tensors
    first: NDArray[np.int64]
    request_row: NDArray[np.int32]
    item_row: NDArray[np.int32]
    tower_row: NDArray[np.int32]
    item_ids: NDArray[np.int64]
    exposed: NDArray[np.bool_]
    labels: NDArray[np.bool_]

    def requests(self, start_ms: int, end_ms: int) -> NDArray[np.int64]:
        """Rows of the requests with now_ms in [start_ms, end_ms), ascending: (r,) i64."""
        return np.flatnonzero((self.now_ms >= start_ms) & (self.now_ms < end_ms))

    def candidates(self, requests: NDArray[np.int64]) -> NDArray[np.int64]:
        """All candidates (c,) i64 of the given requests (r,), in the order given."""
        begin, end = self.first[requests], self.first[requests + 1]  # (r,), (r,)
        counts = end - begin  # (r,) i64
        skipped = np.cumsum(counts) - counts  # (r,) i64: candidates of the requests before
        return np.repeat(begin - skipped, counts) + np.arange(counts.sum())  # (c,) i64

    def examples(self, requests: NDArray[np.int64]) -> NDArray[np.int64]:
        """The exposed candidates (e,) i64 of the given requests (r,): those with a label."""
        candidates = self.candidates(requests)
        return candidates[self.exposed[candidates]]

    def users_of(self, candidates: NDArray[np.int64]) -> NDArray[np.int64]:
        """(c,) user id of each candidate's request."""
        return self.user_ids[self.request_row[candidates]]


def dataset_of(log: JoinedLog, program: ServiceProgram) -> Dataset:
    """The joined log of one service as tensors.

    program: of the plan whose fingerprint the log carries. Raises RecordError where they disagree.
    """
    requests, candidates = log.requests, log.candidates
    _check_fingerprint(requests, program)
    request_row = candidates.column("request_row").to_numpy()  # (C,) i32
    tensors = program.tensors(
        block_of(requests, program.user_dtype),
        block_of(candidates, program.item_dtype),
        request_row,
    )
    distinct, item_row = distinct_rows(tensors.item_slots)  # (D, Si), (C,)
    pairs = len(program.service.crosses_of("pair"))
    counts = np.bincount(request_row, minlength=len(requests))  # (R,) i64
    return Dataset(
        user_ids=requests.column("user_id").to_numpy(),
        now_ms=requests.column("now_ms").to_numpy(),
        tensors=Tensors(tensors.user_slots, distinct, tensors.sequences, tensors.lengths),
        first=np.concatenate([[0], np.cumsum(counts)]),  # (R + 1,) i64
        request_row=request_row,
        item_row=item_row,
        tower_row=_tower_rows(distinct, pairs),
        item_ids=candidates.column("item_id").to_numpy(),
        exposed=candidates.column("exposed").to_numpy(),
        labels=np.stack([candidates.column(task).to_numpy() for task in TASKS], axis=1),  # (C, T)
    )


def distinct_rows(rows: Ids) -> tuple[Ids, NDArray[np.int32]]:
    """(C, S) rows → the distinct ones (D, S), and for each row its place among them (C,) int32.

    Rows are told apart by a 64-bit hash, which is then checked against the rows themselves.
    """
    mixed = np.zeros(len(rows), np.int64)  # (C,)
    for column in rows.T:
        mixed = hash64(mixed ^ column.astype(np.int64)).view(np.int64)  # (C,)
    _, first, place = np.unique(mixed, return_index=True, return_inverse=True)
    distinct = rows[first]  # (D, S)
    if not np.array_equal(distinct[place], rows):  # two rows with one hash: the slow, certain way
        distinct, place = np.unique(rows, axis=0, return_inverse=True)
    return distinct, place.astype(np.int32)


def _tower_rows(rows: Ids, pairs: int) -> NDArray[np.int32]:
    """(D, Si) rows, the last `pairs` slots crosses with the user → (D,) i32, see `Dataset`."""
    if pairs == 0:
        return np.arange(len(rows), dtype=np.int32)
    plain, place = distinct_rows(rows[:, : rows.shape[1] - pairs])  # (P, Si - pairs), (D,)
    first = np.full(len(plain), len(rows), np.int32)  # (P,)
    np.minimum.at(first, place, np.arange(len(rows), dtype=np.int32))
    return first[place]


def _check_fingerprint(requests: pa.Table, program: ServiceProgram) -> None:
    wanted = program.service.fingerprint
    for found in requests.column("fingerprint").unique().to_pylist():
        if found != wanted:
            raise RecordError(
                "rank log.fingerprint",
                required=f"{wanted}, that of {program.service.name} in the given plan",
                got=str(found),
                do="join the log of one fingerprint, with the plan that has it",
            )
