"""A backfill beside the chaos: every view in a new generation, filled while all goes on.

What `encore backfill` does, without the feature repo around it: stage, fill from the archive and
the log, have it caught up, switch. Killed anywhere it is run again and goes on; where it is told
to give up, since a log was lost meanwhile, it does, and begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace
from typing import Final

from schemas.errors import EncoreError, PlanError
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY, STAGED_KEY
from schemas.plan import Plan, ViewPlan, dump_plan
from schemas.staged import Staged, dump_staged
from store.base import AsyncRowStore
from store.redis_store import AsyncRedisRowStore
from store.wire import StoreConfig
from streams.backfill import BackfillConfig, fill_view, wait_caught_up
from streams.config import StreamConfig
from streams.plans import published_plan, staged_plan

TIMEOUT_MS: Final = 10_000
#: Nothing moves while servers are away, for longer than that only where nobody catches up.
WAIT_S: Final = 60.0

log = logging.getLogger("encore.streams")


def run_filling(config: StreamConfig) -> int:
    """One backfill of all views. Blocking. Returns the exit code: 0 once it is published."""
    try:
        asyncio.run(_fill_all(config))
    except EncoreError as error:
        log.error("backfill: %s", error)
        if "--cancel" in str(error):
            with suppress(EncoreError):  # it is told again
                asyncio.run(_give_up(config))
        return 1
    return 0


def _opened(config: StreamConfig) -> AsyncRedisRowStore:
    return AsyncRedisRowStore(StoreConfig(config.store_url, timeout_ms=TIMEOUT_MS))


async def _fill_all(config: StreamConfig) -> None:
    async with _opened(config) as store:
        began = await store.begin_history()
        staged, views = await _staged(store)
        if staged.state == "filling":
            for view in views:
                await fill_view(
                    BackfillConfig(config), view, store, _say_nothing, store_history=began
                )
            filled = replace(staged, state="filled")
            await _replace(store, staged, filled)
            staged = filled
        await store.confirm()
    async with _opened(config) as store:
        await wait_caught_up(config, views, store, _say_nothing, WAIT_S)
    async with _opened(config) as store:
        await store.begin_history()
        await _switch(store, staged)
        await store.confirm()


async def _staged(store: AsyncRowStore) -> tuple[Staged, list[ViewPlan]]:
    """What is staged, every view in its next generation where nothing was; and what to fill."""
    version = int(await store.get_text(PLAN_VERSION_KEY) or 0)
    held, now = await published_plan(store), await staged_plan(store)
    if not now.active:
        views = tuple(replace(v, generation=_next(v, now)) for v in held.views)
        chosen = {view.name: view.generation for view in views}
        plan = Plan(held.version + 1, held.version, views, ())
        now = Staged("filling", plan, chosen, now.used | chosen)
        await _set(store, STAGED_KEY, version, dump_staged(now))
    plan = now.plan or held
    return now, [view for view in plan.views if now.views.get(view.name) == view.generation]


def _next(view: ViewPlan, now: Staged) -> int:
    return 1 + max(view.generation, now.used.get(view.name, 0))


async def _replace(store: AsyncRowStore, staged: Staged, new: Staged) -> None:
    version = int(await store.get_text(PLAN_VERSION_KEY) or 0)
    if await staged_plan(store) != staged:
        raise PlanError("staged plan", required="the one that was begun", got="another")
    await _set(store, STAGED_KEY, version, dump_staged(new))


async def _switch(store: AsyncRowStore, staged: Staged) -> None:
    version = int(await store.get_text(PLAN_VERSION_KEY) or 0)
    if await staged_plan(store) != staged or staged.plan is None:
        raise PlanError("staged plan", required="the one that was filled", got="another")
    if await published_plan(store) != staged.plan:
        await _set(store, PLAN_KEY, version, dump_plan(staged.plan))
    await _replace(store, staged, Staged(used=staged.used))


async def _give_up(config: StreamConfig) -> None:
    async with _opened(config) as store:
        await store.begin_history()
        staged = await staged_plan(store)
        await _replace(store, staged, Staged(used=staged.used))
        await store.confirm()


async def _set(store: AsyncRowStore, key: str, version: int, text: str) -> None:
    if not await store.compare_and_set_text(key, PLAN_VERSION_KEY, version, text):
        raise PlanError(key, required="plans that nobody changes meanwhile", got="another")


def _say_nothing(*_: object) -> None:
    """Progress, which nobody reads here."""
