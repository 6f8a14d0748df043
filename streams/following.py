"""The published plan, as a stream worker follows it, with what is staged beside it.

Whoever publishes or stages counts up one version; looking at it is one small read. A plan that
cannot be used (damaged, or without a view that the worker must have) is reported once, and what was
folded before goes on.

A staged generation joins once it is marked filled: from then on a worker folds it beside the
published one of its view, so that the switch finds it up to date (`streams.catching_up`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from schemas.errors import PlanError, StoreError
from schemas.names import PLAN_VERSION_KEY
from schemas.plan import Side, ViewPlan
from store.base import AsyncRowStore
from streams.plans import fed_views, published_plan, staged_plan

log = logging.getLogger("encore.streams")

LOOK_S: Final = 0.5

#: (view, generation) → the published generation of that view.
Speakers = Mapping[tuple[str, int], ViewPlan]


class PlanFollower:
    """The views that a worker folds, now and after the next publication or staging.

    entity, source: of the views. required: a plan without such a view is refused. views: those of
    the published plan, then filled ones of the staged plan. speakers: of each of the latter the
    published generation of its view, if there is one. Used by one task.
    """

    def __init__(
        self,
        store: AsyncRowStore,
        entity: Side,
        source: str,
        required: bool = True,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._entity, self._source = store, entity, source
        self._required, self._clock_s = required, clock_s
        self._version: str | None = None
        self._next_look_s = 0.0
        self.views: tuple[ViewPlan, ...] = ()
        self.speakers: Speakers = {}

    async def open(self) -> None:
        """The first look. Raises PlanError where there is no plan to work by, StoreError."""
        self._version = await self._store.get_text(PLAN_VERSION_KEY)  # before the plan: see look
        self.views, self.speakers = await self._views()

    async def look_now_and_then(self) -> bool:
        """`look`, unless the last one was just now; a store that is away is waited for."""
        now_s = self._clock_s()
        if now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + LOOK_S
        try:
            return await self.look()
        except StoreError as error:
            log.warning("the published plan could not be looked at: %s", error)
            return False

    async def look(self) -> bool:
        """Whether `views` or `speakers` are others now. Raises StoreError.

        A plan is read after its version, so one that is published in between is read twice at
        worst. One of another history is not taken over: raises HistoryError.
        """
        version = await self._store.get_text(PLAN_VERSION_KEY)
        if version == self._version:
            return False
        await self._store.check_history()
        found = before = self.views, self.speakers
        try:
            found = await self._views()
        except PlanError as error:
            log.error("the new plan is refused, what was folded before goes on: %s", error)
        self._version = version
        self.views, self.speakers = found
        return found != before

    async def _views(self) -> tuple[tuple[ViewPlan, ...], Speakers]:
        plan = await published_plan(self._store)
        views = fed_views(plan, self._entity, self._source)
        if self._required and not views:
            raise PlanError(
                "plan.views",
                required=f"a streamed {self._entity} view whose source is the topic {self._source}",
                got=", ".join(view.name for view in plan.views) or "no views",
                do="declare one, then run `encore apply`",
            )
        staged = await staged_plan(self._store)
        if staged.state != "filled" or staged.plan is None:
            return views, {}
        known = {view.key for view in views}
        filled = tuple(
            view
            for view in fed_views(staged.plan, self._entity, self._source)
            if view.key not in known and staged.views.get(view.name) == view.generation
        )
        published = {view.name: view for view in views}
        speakers = {v.key: published[v.name] for v in filled if v.name in published}
        return (*views, *filled), speakers
