"""The request path: keys → one MGET → tensors → coarse → fine → page → log.

The event loop does the I/O; assembling and scoring run on one inference thread, so requests never
compete for the interpreter lock with each other. Every request is answered by its deadline: a
store that does not answer costs the features (statuses TIMEOUT), a queue that is too long costs
the scores (the caller's order); `degraded` says which.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from aggregation.program import Assembled
from predictor.cascade import Cascade, CascadeConfig, Ranking, callers_order
from predictor.generation import Generations, ServingGeneration
from predictor.record import LogEntry, Query
from predictor.spool import SpoolWriter
from predictor.timeline import Laps, Served, current
from schemas.errors import RequestError, StoreError, StoreTimeout
from schemas.ranklog import Degraded
from schemas.status import Status
from schemas.stored import RowKeys
from store.base import AsyncRowStore

log: Final = logging.getLogger(__name__)
F32 = NDArray[np.float32]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RankConfig:
    """cascade: limits of the stages. in_flight: requests served at once. store_share: part of a
    request's time that the store read may take. reply_ms: kept back for writing the reply."""

    cascade: CascadeConfig = field(default_factory=CascadeConfig)
    in_flight: int = 256
    store_share: float = 0.7
    reply_ms: float = 2.0


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
        store: AsyncRowStore,
        generations: Generations,
        spool: SpoolWriter[LogEntry] | None,
        config: RankConfig,
    ) -> None:
        self.generations = generations
        self.spool = spool
        self.config = config
        self.in_flight = 0
        self._store = store
        self._inference = ThreadPoolExecutor(1, thread_name_prefix="inference")

    async def rank(self, query: Query) -> RankReply:
        """Rank and log one request. Raises RequestError (503) when overloaded."""
        deadline = _deadline(query, self.config.reply_ms)
        generation = self.generations.current
        current().begin(query.request_id)
        with self._admitted():
            reserved = self._reserve()
            try:
                raw, failed = await self._read(_keys(generation, query), deadline)
                scored = await self._infer(
                    lambda laps: self._score(generation, query, raw, failed, laps), deadline
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
        """Tensors of one request; nothing is logged. Raises RequestError (503) when overloaded."""
        deadline = _deadline(query, self.config.reply_ms)
        generation = self.generations.current
        current().begin(query.request_id)
        with self._admitted():
            raw, failed = await self._read(_keys(generation, query), deadline)
            assembled = await self._infer(
                lambda laps: _assemble(generation, query, raw, failed, laps), deadline
            )
        degraded = Degraded.DEADLINE
        if assembled is None:
            assembled = _assemble(generation, query, [], Status.TIMEOUT, current())
        else:
            degraded = _row_flags(assembled, failed)
        _tell(generation, query, assembled, degraded)
        return AggregateReply(generation, assembled, degraded)

    async def look_up(
        self,
        keys: Sequence[RowKeys],
        work: Callable[[Sequence[bytes | None], Status | None], T],
        timeout_ms: float,
    ) -> T:
        """Read rows and work on them where requests do: for clients that read features.

        `work` takes the rows, or none and the status that all of them have; it raises nothing.
        Raises RequestError (503) when overloaded.
        """
        deadline = time.monotonic() + (timeout_ms - self.config.reply_ms) / 1000
        with self._admitted():
            raw, failed = await self._read(keys, deadline)
            done = await self._infer(lambda laps: (_lapped(work(raw, failed), laps),), deadline)
        return work([], Status.TIMEOUT) if done is None else done[0]

    def close(self) -> None:
        """Stop the inference thread; call it when no request is left."""
        self._inference.shutdown(wait=True, cancel_futures=True)

    # --- stages -----------------------------------------------------------------------------

    def _admitted(self) -> _InFlight:
        if self.in_flight >= self.config.in_flight:
            raise RequestError(
                "request",
                required=f"at most {self.config.in_flight} requests at once",
                got="one more",
                do="try again later, or add a server",
                status=503,
            )
        return _InFlight(self)

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

    async def _read(
        self, keys: Sequence[RowKeys], deadline: float
    ) -> tuple[Sequence[bytes | None], Status | None]:
        """The request's rows, or the status that all of them have."""
        budget = (deadline - time.monotonic()) * self.config.store_share
        try:
            async with asyncio.timeout(budget):
                return await self._store.read_rows(keys), None
        except (TimeoutError, StoreTimeout):
            return [], Status.TIMEOUT
        except StoreError as error:
            log.warning("rank: %s", error)
            return [], Status.STORE_ERROR
        finally:
            current().lap("store")

    async def _infer(self, work: Callable[[Laps], T], deadline: float) -> T | None:
        """Run on the inference thread; None where it did not end in time."""
        timeline, laps = current(), Laps()

        def unless_late() -> T | None:
            laps.lap("queue")
            return work(laps) if time.monotonic() < deadline else None

        context = contextvars.copy_context()  # log lines of the work name the request
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._inference, context.run, unless_late)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                done = await future  # cancelled on timeout: dropped if it still waits in the queue
        except TimeoutError:
            timeline.lap("abandoned")
            return None
        timeline.take_back(laps)
        return done

    def _score(
        self,
        generation: ServingGeneration,
        query: Query,
        raw: Sequence[bytes | None],
        failed: Status | None,
        laps: Laps,
    ) -> tuple[Assembled, Ranking]:
        assembled = _assemble(generation, query, raw, failed, laps)
        cascade = Cascade(generation.coarse, generation.fine, self.config.cascade)
        try:
            seed = query.request_id.int
            ranking = cascade.rank(assembled.tensors, query.page_size, seed, laps)
        except (RuntimeError, IndexError, ValueError):
            log.exception("rank: a model of generation %d failed", generation.number)
            ranking = self._in_callers_order(query, Degraded.MODEL_ERROR)
        return assembled, ranking.but(_row_flags(assembled, failed))

    def _unscored(self, generation: ServingGeneration, query: Query) -> tuple[Assembled, Ranking]:
        """The answer when the deadline came first."""
        assembled = _assemble(generation, query, [], Status.TIMEOUT, current())
        return assembled, self._in_callers_order(query, Degraded.DEADLINE)

    def _in_callers_order(self, query: Query, why: Degraded) -> Ranking:
        n, limit = len(query.candidate_ids), self.config.cascade.fine_limit
        return callers_order(n, query.page_size, limit, why)


class _InFlight:
    """Counts a request while it is served."""

    def __init__(self, ranker: Ranker) -> None:
        self._ranker = ranker

    def __enter__(self) -> None:
        self._ranker.in_flight += 1

    def __exit__(self, *_: object) -> None:
        self._ranker.in_flight -= 1


def _keys(generation: ServingGeneration, query: Query) -> list[RowKeys]:
    return generation.program.row_keys(query.user_id, query.candidate_ids)


def _deadline(query: Query, reply_ms: float) -> float:
    """When scoring must be over, on the monotonic clock in seconds."""
    return time.monotonic() + (query.timeout_ms - reply_ms) / 1000


def _assemble(
    generation: ServingGeneration,
    query: Query,
    raw: Sequence[bytes | None],
    failed: Status | None,
    laps: Laps,
) -> Assembled:
    assembled = generation.program.assemble(
        raw, query.user_id, query.candidate_ids, query.now_ms, failed
    )
    return _lapped(assembled, laps)


def _tell(
    generation: ServingGeneration, query: Query, assembled: Assembled, degraded: Degraded
) -> None:
    """What the request is answered from, to whoever watches it."""
    current().served = Served(generation.program, assembled, degraded, query.now_ms)


def _lapped(done: T, laps: Laps) -> T:
    """The same, once the time of making it is known."""
    laps.lap("assemble")
    return done


def _row_flags(assembled: Assembled, failed: Status | None) -> Degraded:
    if failed is Status.TIMEOUT:
        return Degraded.STORE_TIMEOUT
    if failed is Status.STORE_ERROR:
        return Degraded.STORE_ERROR
    corrupt = (assembled.user_status == Status.CORRUPT).any()
    if corrupt or (assembled.item_status == Status.CORRUPT).any():
        return Degraded.CORRUPT_ROWS
    return Degraded(0)
