"""What a model saw and said, rebuilt from the log alone.

The log keeps the finalised values of each request. From them `ServiceProgram.tensors`, the very
function that served, gives the tensors again, bit for bit; and a model package gives the scores
again. Where either differs from what was served, serving and training disagree, and the report says
where.

A candidate's score depends in its last bits on the batch it was scored in. The fine stage is
rebuilt in its own batch and order; the coarse stage also scored candidates whose values are not
logged, so its batch cannot be had again. Both are held to `SCORE_TOLERANCE`.

Symbols: N candidates of a request's fine stage, T tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.program import ServiceProgram
from aggregation.tensors import Tensors
from audit.blocks import block_of
from audit.join import JoinedLog
from predictor.cascade import inputs_of, sigmoid
from predictor.networks import SCORE_TOLERANCE
from predictor.package import Model
from schemas.ranklog import TASKS, Degraded

Array = NDArray[Any]
#: Why the fine model of a request's generation did not score it; without FINE_SKIPPED, neither.
_NO_FINE: Final = Degraded.FINE_SKIPPED | Degraded.DEADLINE | Degraded.MODEL_ERROR
_NO_SCORES: Final = Degraded.DEADLINE | Degraded.MODEL_ERROR
_SCORES: Final = ("coarse_score", *(f"fine_{task}" for task in TASKS), "score")


@dataclass(frozen=True)
class Mismatch:
    """A part of one request that does not come out as it was served.

    part: a tensor's name (`user_slots`, `sequences.last_videos`, …) or a score's column. count:
    elements that differ. worst: the largest difference; infinite where the shapes differ.
    """

    request_id: str
    part: str
    count: int
    worst: float


@dataclass(frozen=True)
class RebuildReport:
    """requests: rebuilt. values: ids and scores compared. mismatches: one a request and part."""

    requests: int
    values: int
    mismatches: tuple[Mismatch, ...]


def rebuilt_tensors(log: JoinedLog, program: ServiceProgram) -> Iterator[tuple[str, Tensors]]:
    """(request id, tensors) of each logged request, fine candidates in the order of scoring.

    Raises RecordError where the log was not written under the program's plan.
    """
    users = block_of(log.requests, program.user_dtype)  # (R,)
    items = block_of(log.candidates, program.item_dtype)  # (C,)
    row = log.candidates.column("request_row").to_numpy()  # (C,)
    first = np.searchsorted(row, np.arange(len(users) + 1))  # (R + 1,)
    for place, request_id in enumerate(log.requests.column("request_id").to_pylist()):
        own = slice(first[place], first[place + 1])
        yield str(request_id), program.tensors(users[place : place + 1], items[own])


def rebuild(
    log: JoinedLog,
    program: ServiceProgram,
    models: Sequence[Model] = (),
    served: Mapping[str, Tensors] | None = None,
) -> RebuildReport:
    """Rebuild every request of the log and compare.

    models: packages; a request's scores are compared where the package of the version it logged is
    among them and scored it: `degraded` says where one had no time, or failed. served: the tensors
    that were scored, by request id, where someone kept them; those must be equal bit for bit.
    Raises RecordError where the log was not written under the program's plan.
    """
    by_version = {model.version: model for model in models}
    kept = served or {}
    mismatches: list[Mismatch] = []
    requests = values = 0
    logged = _logged_scores(log)
    versions = [
        log.requests.column(name).to_pylist() for name in ("coarse_version", "fine_version")
    ]
    flags = log.requests.column("degraded").to_pylist()
    start = 0
    for place, (request_id, tensors) in enumerate(rebuilt_tensors(log, program)):
        requests += 1
        own = slice(start, start + len(tensors.item_slots))
        start = own.stop
        pairs = _tensor_pairs(tensors, kept[request_id]) if request_id in kept else {}
        coarse, fine = (by_version.get(column[place]) for column in versions)
        lacking = flags[place]
        scores = _scores(
            tensors, None if lacking & _NO_SCORES else coarse, None if lacking & _NO_FINE else fine
        )
        pairs |= {name: (again, logged[name][own]) for name, again in scores.items()}
        for part, (again, before) in pairs.items():
            values += before.size
            found = _compare(request_id, part, again, before)
            mismatches += [found] if found else []
    return RebuildReport(requests, values, tuple(mismatches))


def _logged_scores(log: JoinedLog) -> dict[str, NDArray[np.float32]]:
    """(C,) f32 of each score column, NaN where nothing was scored."""
    return {
        name: log.candidates.column(name).to_numpy().astype(np.float32, copy=False)
        for name in _SCORES
    }


def _scores(tensors: Tensors, coarse: Model | None, fine: Model | None) -> dict[str, Array]:
    """The scores that the packages at hand give, by column, (N,) each."""
    scores: dict[str, Array] = {}
    if coarse is not None:
        scores["coarse_score"] = coarse.logits(inputs_of(tensors, coarse.network.spec.inputs))
    if fine is not None:
        tasks = sigmoid(fine.logits(inputs_of(tensors, fine.network.spec.inputs)))  # (N, T)
        scores |= {f"fine_{task}": tasks[:, at] for at, task in enumerate(TASKS)}
        scores["score"] = tasks @ fine.weights  # (N,)
    return scores


def _tensor_pairs(again: Tensors, before: Tensors) -> dict[str, tuple[Array, Array]]:
    return {
        "user_slots": (again.user_slots, before.user_slots),
        "item_slots": (again.item_slots, before.item_slots),
        **{
            f"sequences.{name}": (again.sequences[name], ids)
            for name, ids in before.sequences.items()
        },
        **{
            f"lengths.{name}": (again.lengths[name], length)
            for name, length in before.lengths.items()
        },
    }


def _compare(request_id: str, part: str, again: Array, before: Array) -> Mismatch | None:
    if again.shape != before.shape or again.dtype != before.dtype:
        return Mismatch(request_id, part, before.size, float("inf"))
    if before.dtype.kind == "f":
        apart = np.abs(again - before)  # (N,)
        wrong = ~(apart <= SCORE_TOLERANCE)  # (N,): also where one of the two is NaN
    else:
        apart = np.abs(again.astype(np.int64) - before.astype(np.int64))
        wrong = apart > 0
    if not wrong.any():
        return None
    worst = float(np.nan_to_num(apart[wrong], nan=np.inf).max())
    return Mismatch(request_id, part, int(np.count_nonzero(wrong)), worst)
