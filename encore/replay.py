"""Replay a log in event time through Kafka, the stream workers and the ranking service.

The engine is `streams.replay`; here it gets a producer, the workers' progress marks, and a client
of the ranking service. Nothing is skipped: a send that fails, a worker that does not keep up and a
request that is refused each end the replay; a service that is too busy is asked again for a while.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from encore import loops
from encore.kuairand import Page, Timeline
from encore.ranking import RankClient, RankReply, RankRequest, request_uuid
from encore.settings import Settings
from encore.wiring import newest_config
from schemas.errors import RequestError, StreamError
from store.redis_store import AsyncRedisRowStore
from streams.moving import check_open
from streams.producer import ActionProducer
from streams.replay import TICK_MS, Replay, ReplayCounts, Tick, find_mark, item_mark

CONCURRENCY: Final = 16
#: A replay is in no hurry: a page ranked without its features would be a gap in the log.
TIMEOUT_MS: Final = 10_000

#: The status of a service that is too busy, or away.
BUSY: Final = 503
FIRST_PAUSE_S: Final = 0.05
PATIENCE_S: Final = 60.0


class Ranks(Protocol):
    """What a replay asks: `encore.ranking.RankClient`."""

    async def rank(self, request: RankRequest) -> RankReply:
        """Raises RequestError."""
        ...


#: Called after each tick: actions done, actions in all, a few words.
TickNote = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What a replay did. degraded: how many replies said what, "" for whole ones.

    last: the last page that was ranked with its reply, for people to look at.
    """

    counts: ReplayCounts
    degraded: Counter[str] = field(default_factory=Counter)
    last: tuple[Page, RankReply] | None = None


def replay(
    settings: Settings, timeline: Timeline, url: str | None, note: TickNote | None = None
) -> ReplayReport:
    """Replay all actions of `timeline`; rank its pages at `url`, or none where that is None.

    settings: with the addresses of a running stack, whose service allows `now_ms`. Raises
    StreamError, StoreError, RequestError.
    """
    return loops.run(_Run(settings, timeline, note).run, url)


def first_ticks(timeline: Timeline, ticks: int) -> Timeline:
    """The part of a timeline within its first `ticks` ticks."""
    times = timeline.actions["time_ms"]
    begin_ms = int(times[0]) // TICK_MS * TICK_MS if len(times) else 0
    end_ms = begin_ms + ticks * TICK_MS
    pages = [page for page in timeline.pages if page.time_ms < end_ms]
    return replace(timeline, actions=timeline.actions[times < end_ms], pages=pages)


class _Run:
    """One replay."""

    def __init__(self, settings: Settings, timeline: Timeline, note: TickNote | None) -> None:
        self._settings = settings
        self._timeline = timeline
        self._note = note
        self._degraded: Counter[str] = Counter()
        self._last: tuple[Page, RankReply] | None = None

    async def run(self, url: str | None) -> ReplayReport:
        if url is None:
            return await self._replay([], None)
        async with RankClient(url, concurrency=CONCURRENCY) as client:
            return await self._replay(self._timeline.pages, client)

    async def _replay(self, pages: Sequence[Page], client: RankClient | None) -> ReplayReport:
        settings = self._settings
        config = await asyncio.to_thread(newest_config, settings)

        async def rank_all(requests: Sequence[Page], _: Tick) -> None:
            assert client is not None
            await self._rank(client, requests)

        with ActionProducer(config.bootstrap, config.topic, config.partitions) as producer:
            async with AsyncRedisRowStore(settings.store_url) as store:
                await check_open(store, config)
                mark = await find_mark(store, config.bootstrap, config.topic, config.group)
                items = item_mark(mark, config.item_group, config.partitions)
                engine = Replay(
                    actions=self._timeline.actions,
                    requests=pages,
                    producer=producer,
                    marks=[mark, items],
                    on_requests=rank_all,
                    on_tick=self._on_tick,
                )
                counts = await engine.run()
        return ReplayReport(counts, self._degraded, self._last)

    async def _rank(self, client: RankClient, pages: Sequence[Page]) -> None:
        """Rank the pages of one tick; the first failure ends it, with the others cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(ranked(client, page)) for page in pages]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        for page, task in zip(pages, tasks, strict=True):
            reply = task.result()
            check_clock(page, reply)
            self._degraded[reply.degraded] += 1
            self._last = page, reply

    def _on_tick(self, tick: Tick, counts: ReplayCounts) -> None:
        if self._note is not None:
            words = f"actions, {counts.requests:,} requests"
            self._note(counts.actions, len(self._timeline.actions), words)


async def ranked(client: Ranks, page: Page, patience_s: float = PATIENCE_S) -> RankReply:
    """The page's reply; a service that is too busy is asked again, since a replay has time.

    Raises RequestError for any other refusal, and for that one after `patience_s` of pauses.
    """
    waited_s, pause_s = 0.0, FIRST_PAUSE_S
    while True:
        try:
            return await client.rank(_request_of(page))
        except RequestError as error:
            if error.status != BUSY or waited_s >= patience_s:
                raise
        await asyncio.sleep(pause_s)
        waited_s, pause_s = waited_s + pause_s, min(2 * pause_s, 1.0)


def check_clock(page: Page, reply: RankReply) -> None:
    """Raises StreamError where a page was ranked with rows that know what came after it."""
    if reply.newest_ms > page.time_ms:
        raise StreamError(
            f"request {reply.request_id}",
            required=f"rows no newer than the request's clock, {page.time_ms}",
            got=f"an event at {reply.newest_ms}",
            do="replay into an empty store: one that was replayed into already knows the future",
        )


def _request_of(page: Page) -> RankRequest:
    return RankRequest(
        request_id=request_uuid(page.request_hi, page.request_lo),
        user_id=page.user_id,
        candidate_ids=tuple(page.candidates.tolist()),
        now_ms=page.time_ms,
        timeout_ms=TIMEOUT_MS,
    )
