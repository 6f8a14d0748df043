"""The plan that stream processes run: the one the store holds, and what is staged beside it."""

from __future__ import annotations

from schemas.errors import PlanError
from schemas.names import PLAN_KEY, STAGED_KEY, root_topic
from schemas.plan import Plan, Side, ViewPlan, load_published
from schemas.staged import Staged, load_staged
from store.base import AsyncRowStore


async def published_plan(store: AsyncRowStore) -> Plan:
    """Raises PlanError where none is published, StoreError."""
    return load_published(await store.get_text(PLAN_KEY))


async def staged_plan(store: AsyncRowStore) -> Staged:
    """What is staged, of state `none` where nothing is. Raises PlanError, StoreError."""
    return load_staged(await store.get_text(STAGED_KEY), f"store, {STAGED_KEY}")


def fed_views(plan: Plan, entity: Side, source: str) -> tuple[ViewPlan, ...]:
    """The streamed views of users or of items that this topic feeds, or one before it did."""
    root = root_topic(source)
    return tuple(
        view
        for view in plan.views
        if view.kind == "streamed" and view.entity == entity and view.source == root
    )


async def folded_views(store: AsyncRowStore, entity: Side, source: str) -> tuple[ViewPlan, ...]:
    """The generations that workers fold now: published ones, then filled ones of what is staged;
    none of a plan that cannot be used. Raises StoreError."""
    try:
        plan, staged = await published_plan(store), await staged_plan(store)
    except PlanError:
        return ()
    views = {view.key: view for view in fed_views(plan, entity, source)}
    for view in () if staged.plan is None else fed_views(staged.plan, entity, source):
        if staged.state == "filled" and staged.views.get(view.name) == view.generation:
            views.setdefault(view.key, view)
    return tuple(views.values())
