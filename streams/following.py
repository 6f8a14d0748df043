"""The published plan, as a stream worker follows it.

Whoever publishes counts up a version beside the plan; looking at it is one small read. A plan that
cannot be used (damaged, or without a view that this topic feeds) is reported once, and what was
folded before goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from schemas.errors import PlanError, StoreError
from schemas.names import PLAN_VERSION_KEY
from schemas.plan import Plan, ViewPlan
from store.base import AsyncRowStore
from streams.plans import published_plan

log = logging.getLogger("encore.streams")

LOOK_S: Final = 0.5


class PlanFollower:
    """The user views that a topic feeds, now and after the next publication.

    look_s: the least time between two looks. Used by one task.
    """

    def __init__(
        self,
        store: AsyncRowStore,
        topic: str,
        look_s: float = LOOK_S,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._topic, self._look_s, self._clock_s = store, topic, look_s, clock_s
        self._version: str | None = None
        self._next_look_s = 0.0
        self.views: tuple[ViewPlan, ...] = ()

    async def open(self) -> None:
        """The first look. Raises PlanError where there is no plan to work by, StoreError."""
        self._version = await self._store.get_text(PLAN_VERSION_KEY)  # before the plan: see look
        self.views = fed_views(await published_plan(self._store), self._topic)

    async def look_now_and_then(self) -> bool:
        """`look`, unless the last one was just now; a store that is away is waited for."""
        now_s = self._clock_s()
        if now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + self._look_s
        try:
            return await self.look()
        except StoreError as error:
            log.warning("the published plan could not be looked at: %s", error)
            return False

    async def look(self) -> bool:
        """Whether `views` are others now. Raises StoreError.

        A plan is read after its version, so one that is published in between is read twice at
        worst.
        """
        version = await self._store.get_text(PLAN_VERSION_KEY)
        if version == self._version:
            return False
        try:
            views = fed_views(await published_plan(self._store), self._topic)
        except PlanError as error:
            log.error("the new plan is refused, what was folded before goes on: %s", error)
            views = self.views
        self._version = version
        changed, self.views = views != self.views, views
        return changed


def fed_views(plan: Plan, topic: str) -> tuple[ViewPlan, ...]:
    """The user views that this topic feeds. Raises PlanError where there is none."""
    views = tuple(
        view
        for view in plan.views
        if view.kind == "streamed" and view.entity == "user" and view.source == topic
    )
    if not views:
        raise PlanError(
            "plan.views",
            required=f"a streamed user view whose source is the topic {topic}",
            got=", ".join(view.name for view in plan.views) or "no views",
            do="declare one, then run `encore apply`",
        )
    return views
