"""A backfill from declarations to the switch: stage, fill, catch up, publish.

Each step may be run again; a run that was interrupted goes on where it was.
"""

from __future__ import annotations

from dataclasses import dataclass

from catalog.apply import Review
from catalog.difference import Difference
from catalog.staging import Staging, end, mark_filled, require_history, stage, switch
from encore import loops
from encore.alone import alone_in
from encore.settings import Settings
from encore.wiring import disks
from schemas.errors import StreamError
from schemas.plan import Plan
from schemas.staged import Staged
from store.redis_store import AsyncRedisRowStore, RedisRowStore
from store.wire import StoreConfig
from streams.backfill import BackfillConfig, FillReport, Note, fill_view, wait_caught_up
from streams.foreign import check_foreign, named_history
from streams.pools import check_cluster

#: Nothing here is in a hurry, and a busy store answers in its time.
STORE_TIMEOUT_MS = 10_000


@dataclass(frozen=True, slots=True)
class Options:
    """views: to fill. unchanged: refuse declarations that are not published yet. wait_s: how long
    generations may stand still while they catch up. without_history: leave out what views were
    filled with from before the log."""

    views: tuple[str, ...]
    unchanged: bool = False
    wait_s: float = 60.0
    without_history: bool = False


@dataclass(frozen=True, slots=True)
class BackfillResult:
    """What was done. fills: none where an earlier run had filled everything."""

    plan: Plan
    difference: Difference
    resumed: bool
    fills: tuple[FillReport, ...]


def run_backfill(
    settings: Settings,
    config: BackfillConfig,
    options: Options,
    note: Note,
    review: Review | None = None,
) -> BackfillResult:
    """Stage, fill, catch up, switch. Blocking. One run at a time on this machine: what they read
    aside lies in one place.

    What is staged is filled in one history of the store: begin again where it was wiped meanwhile.
    Raises DeclarationError, PlanError, SettingsError, StoreError, StreamError, HistoryError,
    ActionError, and what `review` raises.
    """
    directory = settings.data_dir / "backfill"
    with alone_in(directory) as alone:
        if not alone:
            raise StreamError(
                str(directory),
                required="one backfill at a time",
                got="another that is under way",
                do="let it end, or interrupt it; run again, this one goes on where it was",
            )
        return _run(settings, config, options, note, review)


def _run(
    settings: Settings,
    config: BackfillConfig,
    options: Options,
    note: Note,
    review: Review | None,
) -> BackfillResult:
    history = named_history(config.foreign, config.before_ms)
    check_foreign(config.foreign)
    if config.dask:
        check_cluster(config.dask)  # before anything is staged
    with _rows(settings) as store:
        store_history = store.begin_history()
        if not options.without_history:
            require_history(store, options.views, history)
        staging = stage(settings.repo, store, options.views, review, options.unchanged, history)
        now = staging.staged
        fills: tuple[FillReport, ...] = ()
        if now.state == "filling":
            fills = loops.run(_fill, config, staging, note, store_history)
            now = mark_filled(store, now)
        if config.stream.fsynced:
            store.confirm()  # were it taken back, workers would never catch up what is waited for
    loops.run(_catch_up, config, staging, note, options.wait_s)
    with _rows(settings) as store:  # one that restarted since has what was confirmed
        result = switch(settings.repo, store, now)
    return BackfillResult(result.plan, staging.difference, staging.resumed, fills)


def give_up(settings: Settings) -> Staged:
    """End what is staged; its rows stay and are read by nobody. Returns what was staged."""
    with _rows(settings) as store:
        return end(store)


async def _fill(
    config: BackfillConfig, staging: Staging, note: Note, store_history: str
) -> tuple[FillReport, ...]:
    async with _store(config) as store:
        return tuple(
            [
                await fill_view(config, view, store, note, store_history=store_history)
                for view in staging.views
            ]
        )


async def _catch_up(config: BackfillConfig, staging: Staging, note: Note, wait_s: float) -> None:
    async with _store(config) as store:
        await wait_caught_up(config.stream, staging.views, store, note, wait_s)


def _rows(settings: Settings) -> RedisRowStore:
    config = StoreConfig(settings.store_url, STORE_TIMEOUT_MS, disks=disks(settings))
    return RedisRowStore(config)


def _store(config: BackfillConfig) -> AsyncRedisRowStore:
    stream = config.stream
    return AsyncRedisRowStore(StoreConfig(stream.store_url, STORE_TIMEOUT_MS, disks=stream.disks))
