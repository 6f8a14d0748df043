"""The plan that stream processes run: the one the store holds."""

from __future__ import annotations

from schemas.errors import PlanError
from schemas.names import PLAN_KEY
from schemas.plan import Plan, load_plan
from store.base import AsyncRowStore


async def published_plan(store: AsyncRowStore) -> Plan:
    """Raises PlanError where none is published, StoreError."""
    text = await store.get_text(PLAN_KEY)
    if text is None:
        raise PlanError(
            f"store, {PLAN_KEY}", required="a published plan", got="none", do="run `encore apply`"
        )
    return load_plan(text, f"store, {PLAN_KEY}")
