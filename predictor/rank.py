"""The request path: item cache → one MGET → tensors → coarse → fine → page → log.

The event loop does the I/O; assembling and scoring run on one inference thread, so requests never
compete for the interpreter lock with each other. Every request is answered by its deadline: who
would wait too long is refused at once (`predictor.admission`), a store that does not answer costs
the features (statuses TIMEOUT), time that does not suffice for a stage costs that stage: the fine
model first, then the coarse one (`predictor.budget`); `degraded` says which.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from aggregation.cache.reader import ItemSource
from aggregation.program import Assembled
from predictor.admission import Admission, AdmissionConfig
from predictor.breaker import Read, StoreReader
from predictor.budget import Budget, Stage, StageCosts
from predictor.cascade import Cascade, CascadeConfig, Ranking, callers_order
from predictor.freshness import Freshness
from predictor.generation import Generations, ServingGeneration
from predictor.items import Asked, ask
from predictor.record import LogEntry, Query
from predictor.required import check_required
from predictor.resting import Resting
from predictor.spool import SpoolWriter
from predictor.timeline import Laps, Served, current
from schemas.errors import RequestError
from schemas.ranklog import Degraded
from schemas.status import Status
from schemas.stored import RowKeys
from store.base import AsyncRowStore

log: Final = logging.getLogger(__name__)
F32 = NDArray[np.float32]
T = TypeVar("T")
Stages = tuple[tuple[Stage, int], ...]

_STALE, _CORRUPT = int(Status.STALE), int(Status.CORRUPT)
#: Part of what a request could wait that it is let wait: those before it may take longer.
_TRUST: Final = 0.5
#: Part of its time that a request may wait which cannot be served in full anyway.
_CHANCE: Final = 0.25
#: Part of its time that is kept for the reply at least: timers are late on a busy machine.
_MARGIN: Final = 0.03
#: Part of what is left that a request has for reading and scoring, however late replies were.
_LEAST: Final = 0.25


@dataclass(frozen=True, slots=True)
class RankConfig:
    """cascade: limits of the stages. in_flight: requests served at once. reply_ms: kept back for
    writing the reply, at least. least_store, most_store: parts of a request's time that the store
    read may take; between them, what scoring will probably leave."""

    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    in_flight: int = 256
    reply_ms: float = 2.0
    least_store: float = 0.3
    most_store: float = 0.7


@dataclass(frozen=True, slots=True)
class RankReply:
    """generation: what served. assembled: values and statuses. ranking: scores and page.

    page_ids (K,) i64, page_scores (K,) f32; scores of the page are NaN where nothing was scored.
    """

    generation: ServingGeneration
    assembled: Assembled
    ranking: Ranking
    page_ids: NDArray[np.int64]
    page_scores: F32

    @property
    def fine_scores(self) -> F32:
        """(N,) final scores in the caller's order, NaN for candidates of the coarse stage only."""
        scores = np.full(len(self.ranking.coarse), np.nan, np.float32)  # (N,)
        if self.ranking.tasks.shape[1]:
            scores[self.ranking.fine] = self.ranking.final
        return scores


@dataclass(frozen=True, slots=True)
class AggregateReply:
    """What `aggregate` answers: the assembled request and what was missing."""

    generation: ServingGeneration
    assembled: Assembled
    degraded: Degraded


class Ranker:
    """Serves one feature service. Create it inside the event loop that calls it."""

    def __init__(
        self,
        store: AsyncRowStore | StoreReader,
        generations: Generations,
        spool: SpoolWriter[LogEntry] | None,
        config: RankConfig,
        items: ItemSource | None = None,
        freshness: Freshness | None = None,
    ) -> None:
        self.generations = generations
        self.items = items
        self.freshness = freshness
        self.spool = spool
        self.config = config
        self.admission = Admission(AdmissionConfig(config.in_flight))
        self.resting = Resting(self.admission)
        self.costs = StageCosts()
        self.reader = store if isinstance(store, StoreReader) else StoreReader(store)
        self._inference = ThreadPoolExecutor(1, thread_name_prefix="inference")

    @property
    def in_flight(self) -> int:
        """Requests being served."""
        return self.admission.in_flight

    async def rank(self, query: Query) -> RankReply:
        """Rank and log one request. Raises RequestError (503) when overloaded, or without the rows
        of a view that the service requires."""
        generation, n = self.generations.current, len(query.candidate_ids)
        current().begin(query.request_id)
        budget = self._budget(query.timeout_ms)
        stages = (("assemble", n), *self._cascade(generation).stages(n))
        with self._admitted(budget, stages):
            reserved = self._reserve()
            try:
                asked = ask(generation.program, query, self.items)
                read = await self._read(asked.row_keys(), budget, stages)
                scored = await self._infer(
                    lambda: self._score(generation, asked, read, budget), budget, stages[0]
                )
                assembled, ranking = scored or self._unscored(generation, query)
            except BaseException:
                if reserved and self.spool:
                    self.spool.release()
                raise
            if reserved and self.spool:
                self.spool.put(LogEntry(query, generation, assembled, ranking))
        _tell(generation, query, assembled, ranking.degraded)
        page = ranking.fine[ranking.page]  # (K,) places in the caller's order
        return RankReply(
            generation, assembled, ranking, query.candidate_ids[page], ranking.final[ranking.page]
        )

    async def aggregate(self, query: Query) -> AggregateReply:
        """Tensors of one request; nothing is logged. Raises as `rank`."""
        generation = self.generations.current
        current().begin(query.request_id)
        budget = self._budget(query.timeout_ms)
        stages: Stages = (("assemble", len(query.candidate_ids)),)
        with self._admitted(budget, stages):
            asked = ask(generation.program, query, self.items)
            read = await self._read(asked.row_keys(), budget, stages)
            assembled = await self._infer(
                lambda: self._assemble(asked, read, budget), budget, stages[0]
            )
        degraded = Degraded.DEADLINE
        if assembled is None:
            assembled = _too_late(generation, query)
        else:
            degraded = _row_flags(assembled, read.failed)
        check_required(generation.program, assembled)
        _tell(generation, query, assembled, degraded)
        return AggregateReply(generation, assembled, degraded)

    async def look_up(
        self,
        keys: Sequence[RowKeys],
        work: Callable[[Sequence[bytes | None], Status | None], T],
        values: int,
        timeout_ms: float,
    ) -> T:
        """Read rows and work on them where requests do: for clients that read features.

        `work` takes the rows, or none and the status that all of them have; it makes so many values
        of them, and raises nothing.
        Raises RequestError (503) when overloaded.
        """
        budget = self._budget(timeout_ms)
        stages: Stages = (("look_up", values),)

        def timed() -> tuple[T]:
            done = work(read.rows, read.failed)
            budget.done(*stages[0])
            return (done,)

        with self._admitted(budget, stages):
            read = await self._read(keys, budget, stages)
            done = await self._infer(timed, budget, stages[0])
        return work([], Status.TIMEOUT) if done is None else done[0]

    def close(self) -> None:
        """Stop the inference thread; call it when no request is left."""
        self._inference.shutdown(wait=True, cancel_futures=True)

    # --- stages -----------------------------------------------------------------------------

    def _budget(self, timeout_ms: float) -> Budget:
        """A request's time, without what was waited for it to be seen and what its reply will need:
        the event loop keeps a reply waiting about as long as it is late.

        Raises RequestError (503) where the reply could not leave in time any more.
        """
        timeline, most_s, late_s = current(), timeout_ms / 1000, self.admission.lag()
        left_s = most_s - timeline.waited_s - timeline.total_s
        if left_s <= late_s:
            raise copy(self.admission.too_late())
        lag_s = max(self.costs.likely_s("reply", 0), late_s)
        reply_s = max(self.config.reply_ms / 1000, lag_s, most_s * _MARGIN)
        return Budget(self.costs, time.monotonic() + max(left_s - reply_s, left_s * _LEAST))

    def _admitted(self, budget: Budget, stages: Stages) -> AbstractContextManager[None]:
        """Counted while it is served. It may wait as long as it then still can be served in full;
        one that could not be, even alone, takes its chance."""
        left_s = budget.left_s()
        likely_s = sum(self.costs.likely_s(*stage) for stage in stages)
        patience_s = max((left_s - likely_s) * _TRUST, left_s * _CHANCE)
        waited_s = current().waited_s
        cost_s = self._expected_s(stages) + self.admission.loop_s
        return self.admission.admitted(cost_s, patience_s, waited_s)

    def _expected_s(self, stages: Stages) -> float:
        return sum(self.costs.expected_s(*stage) for stage in stages)

    def _reserve(self) -> bool:
        """Room in the log queue; False where the record will be missing."""
        if self.spool is None:
            return False
        if self.spool.reserve():
            return True
        if self.spool.config.refuse:
            raise RequestError(
                "rank log",
                required="room for the record of each request",
                got="a full queue",
                do="try again later; the spool's disk is too slow or full",
                status=503,
            )
        return False

    async def _read(self, keys: Sequence[RowKeys], budget: Budget, stages: Stages) -> Read:
        """The request's rows, or the status that all of them have."""
        timeline, left_s, config = current(), budget.left_s(), self.config
        limit_s = max(left_s - self._expected_s(stages), left_s * config.least_store)
        read = await self.reader.read(keys, min(limit_s, left_s * config.most_store))
        timeline.lap("store")
        return read

    async def _infer(
        self, work: Callable[[], T], budget: Budget, first: tuple[Stage, int]
    ) -> T | None:
        """Run on the inference thread; None where it did not end in time, or could not have.

        first: what `work` begins with. Laps of the budget are the thread's.
        """
        timeline, budget.laps = current(), Laps()

        def unless_late() -> T | None:
            budget.laps.lap("queue")
            return work() if budget.affords(*first) else None

        context = contextvars.copy_context()  # log lines of the work name the request
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._inference, context.run, unless_late)
        try:
            async with asyncio.timeout(budget.left_s()):
                done = await future  # cancelled on timeout: dropped if it still waits in the queue
        except TimeoutError:
            timeline.lap("abandoned")
            return None
        timeline.take_back(budget.laps)
        self.costs.observe("reply", 0, time.perf_counter() - budget.laps.last_s)
        return done

    def _cascade(self, generation: ServingGeneration) -> Cascade:
        return Cascade(generation.coarse, generation.fine, self.config.cascade)

    def _score(
        self, generation: ServingGeneration, asked: Asked, read: Read, budget: Budget
    ) -> tuple[Assembled, Ranking]:
        assembled, query = self._assemble(asked, read, budget), asked.query
        check_required(generation.program, assembled)
        try:
            seed = query.request_id.int
            ranking = self._cascade(generation).rank(
                assembled.tensors, query.page_size, seed, budget
            )
        except (RuntimeError, IndexError, ValueError):
            log.exception("rank: a model of generation %d failed", generation.number)
            ranking = self._in_callers_order(query, Degraded.MODEL_ERROR)
        return assembled, ranking.but(_row_flags(assembled, read.failed))

    def _assemble(self, asked: Asked, read: Read, budget: Budget) -> Assembled:
        assembled = asked.assemble(read.rows, read.failed)
        if self.freshness is not None:
            assembled = self.freshness.judged(assembled, asked.program, asked.query)
        budget.done("assemble", len(asked.query.candidate_ids))
        return assembled

    def _unscored(self, generation: ServingGeneration, query: Query) -> tuple[Assembled, Ranking]:
        """The answer when the deadline came first."""
        assembled = _too_late(generation, query)
        check_required(generation.program, assembled)
        return assembled, self._in_callers_order(query, Degraded.DEADLINE)

    def _in_callers_order(self, query: Query, why: Degraded) -> Ranking:
        n, limit = len(query.candidate_ids), self.config.cascade.fine_limit
        return callers_order(n, query.page_size, limit, why)


def _too_late(generation: ServingGeneration, query: Query) -> Assembled:
    """No row came into the reply in time."""
    assembled = generation.program.assemble(
        [], query.user_id, query.candidate_ids, query.now_ms, Status.TIMEOUT
    )
    current().lap("assemble")
    return assembled


def _tell(
    generation: ServingGeneration, query: Query, assembled: Assembled, degraded: Degraded
) -> None:
    """What the request is answered from, to whoever watches it."""
    current().served = Served(generation.program, assembled, degraded, query.now_ms)


def _row_flags(assembled: Assembled, failed: Status | None) -> Degraded:
    if failed is Status.TIMEOUT:
        return Degraded.STORE_TIMEOUT
    if failed is Status.STORE_ERROR:
        return Degraded.STORE_ERROR
    found = set(assembled.user_status.tolist())
    if assembled.item_status.max(initial=0) >= _STALE:
        found.update(assembled.item_status.ravel().tolist())
    flags = Degraded.STALE_ROWS if _STALE in found else Degraded(0)
    return flags | Degraded.CORRUPT_ROWS if _CORRUPT in found else flags
