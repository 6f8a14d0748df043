"""Follows what is published: plans in the store, model packages in their directory.

One task of the event loop polls both. A new plan's program is made and warmed in a thread, waits
for its items to be cached as long as their number grows, and joins by one pointer swap. A new
package is checked in a child process, loaded and warmed in a thread, and joins likewise; one that
is refused is reported and looked at again later, and whatever served before goes on.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aggregation.cache.reader import ItemCache
from aggregation.program import ServiceProgram
from predictor.card import Expected
from predictor.generation import Generations, ServingGeneration, warm
from predictor.package import Model, current_version, load_package
from predictor.spec import KINDS, Kind
from predictor.verify import verify_in_process
from schemas.errors import EncoreError, PackageError, PlanError, StoreError
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY
from schemas.plan import Plan, load_published
from store.base import AsyncRowStore

log: Final = logging.getLogger(__name__)
_TELL_S: Final = 10.0  # between two lines about a plan that waits


@dataclass(frozen=True, slots=True)
class WatchConfig:
    """packages: the directory, None serves no models. poll_s: pause between looks.
    verify_timeout_s: bound of one package's check. retry_s: pause before a refused package is
    looked at again: it may have been repaired in place, or the machine was too busy; so is a plan
    that could not be compiled for another reason than what it says. items_wait_s:
    a plan waits for the item cache of its own, where the one before is being read, until nothing
    was added to it for so long."""

    packages: Path | None
    poll_s: float = 0.5
    verify_timeout_s: float = 300.0
    retry_s: float = 30.0
    items_wait_s: float = 30.0


@dataclass(slots=True)
class _Next:
    """A published plan that waits for its items. walked: what its cache's writer has looked at,
    moved_s: when that last grew, told_s: when it was told."""

    publication: str
    plan: Plan
    program: ServiceProgram
    walked: int = -1
    moved_s: float = 0.0
    told_s: float = -math.inf


class Watcher:
    """Keeps `generations` at what is published. Used by one event loop.

    refusals: kind or "plan" → why the newest is not served. waiting: for what the next plan waits,
    empty where none does.
    """

    def __init__(
        self,
        generations: Generations,
        store: AsyncRowStore,
        config: WatchConfig,
        items: ItemCache | None = None,
    ) -> None:
        self.generations = generations
        self._items = items
        self.refusals: dict[str, str] = {}
        self.waiting = ""
        self.refused = 0
        self.swaps = 0
        self._store = store
        self._config = config
        self._seen: dict[Kind, tuple[str, str]] = {}  # kind -> (fingerprint, version) looked at
        self._retry_at: dict[Kind, float] = {}  # on the loop's clock
        self._seen_plan: str | None = None  # the publication that was looked at last
        self._failed: tuple[str, float] | None = None  # one that failed, and when it is tried again
        self._next: _Next | None = None

    def news(self) -> dict[str, str]:
        """What is published and does not serve, and why: `refused_…` and `waiting`."""
        refused = {f"refused_{what}": reason for what, reason in self.refusals.items()}
        return refused | ({"waiting": self.waiting} if self.waiting else {})

    async def run(self) -> None:
        """Poll until cancelled. A fault of one look is logged and the next look comes."""
        while True:
            await asyncio.sleep(self._config.poll_s)
            try:
                await self.look()
            except EncoreError as error:
                log.warning("watcher: %s", error)
            except Exception:
                log.exception("watcher: this look failed")

    async def look(self, *, polite: bool = True) -> None:
        """One look at the plan, then at the packages, which need neither plan nor store. Raises
        StoreError, and what else went wrong with the plan, behind both.

        polite: check packages at a low priority, beside requests.
        """
        if self._items is not None:
            self._items.tidy()
        fault: Exception | None = None
        try:
            await self._look_at_plan()
        except Exception as error:
            fault = error
        if self._config.packages is not None:
            await self._look_at_packages(self._config.packages, polite)
        if fault is not None:
            raise fault

    async def _look_at_plan(self) -> None:
        """The number of publications is read first: a plan published in between comes twice."""
        publication = await self._store.get_text(PLAN_VERSION_KEY)
        if publication is None or publication == self._seen_plan:
            return
        now_s = asyncio.get_running_loop().time()
        if self._failed is not None and self._failed[0] == publication and now_s < self._failed[1]:
            return
        try:
            following = await self._following(publication)
            if following is not None and not await self._items_ready(following):
                return
            if following is None:
                self.refusals.pop("plan", None)  # what serves was published again
            else:
                generation = self.generations.use_plan(following.plan, following.program)
                log.info(
                    "plan %d serves as generation %d", following.plan.version, generation.number
                )
                self._accept("plan")
        except PlanError as error:
            self._refuse("plan", error)
        except StoreError:
            raise
        except Exception as error:
            self._failed = publication, now_s + self._config.retry_s
            self._note("plan", f"{type(error).__name__}: {error}")
            raise
        self._seen_plan, self._next, self.waiting = publication, None, ""

    async def _following(self, publication: str) -> _Next | None:
        """What is published, ready but for its items; None where it serves already. Raises
        PlanError, StoreError."""
        following = self._next
        if following is None or following.publication != publication:
            self._next, self.waiting = None, ""
            plan = await read_plan(self._store)
            if plan == self.generations.current.plan:
                return None
            program = await asyncio.to_thread(self.generations.program_of, plan)
            following = self._next = _Next(publication, plan, program)
        return following

    async def _items_ready(self, following: _Next) -> bool:
        """Whether a plan's items are in a cache, or waiting is no use: the one before it is not
        read either, or nobody fills its own."""
        items, now_s = self._items, asyncio.get_running_loop().time()
        if items is None or await asyncio.to_thread(items.prepare, following.program):
            return True
        version, walked = following.plan.version, items.preparing()
        if walked != following.walked:
            following.walked, following.moved_s = walked, now_s
        stands_s = now_s - following.moved_s
        if items.age_ms() is None or stands_s > self._config.items_wait_s:
            log.warning("plan %d serves before its items are cached", version)
            return True
        self.waiting = f"plan {version} waits for its items to be cached: {walked} rows looked at"
        if now_s - following.told_s >= _TELL_S:
            following.told_s = now_s
            log.info("%s", self.waiting)
        return False

    async def _look_at_packages(self, root: Path, polite: bool) -> None:
        """Check and load what is new of every kind at once, then swap all of it at once."""
        generation = self.generations.current
        news = [(kind, path) for kind in KINDS if (path := self._news(root, kind, generation))]
        outcomes = await asyncio.gather(
            *(self._load(path, generation.expected(kind), polite) for kind, path in news),
            return_exceptions=True,
        )
        fresh: dict[Kind, Model | None] = {}
        for (kind, _), outcome in zip(news, outcomes, strict=True):
            if isinstance(outcome, Exception):
                self._retry_at[kind] = asyncio.get_running_loop().time() + self._config.retry_s
            if isinstance(outcome, PackageError):
                self._refuse(kind, outcome)
            elif isinstance(outcome, Exception):  # of this machine, now: no file descriptors, say
                log.error("watcher: the %s model could not be loaded", kind, exc_info=outcome)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                fresh[kind] = outcome
                self._accept(kind)
        if fresh:
            swapped = self.generations.use_models(fresh)
            log.info("generation %d: %s", swapped.number, swapped.versions())

    def _news(self, root: Path, kind: Kind, generation: ServingGeneration) -> Path | None:
        """The package to load next; None where the pointer names what was looked at already."""
        try:
            version = current_version(root, kind)
        except PackageError as error:
            self._seen.pop(kind, None)
            self._refuse(kind, error)
            return None
        look = (generation.service.fingerprint, version or "")
        again = asyncio.get_running_loop().time() >= self._retry_at.get(kind, math.inf)
        if version is None or (self._seen.get(kind) == look and not again):
            return None
        self._seen[kind] = look
        self._retry_at.pop(kind, None)
        serving = generation.model(kind)
        if serving is not None and serving.name == version:
            self.refusals.pop(kind, None)  # the pointer came back to what serves
            return None
        return root / kind / version

    async def _load(self, path: Path, expected: Expected, polite: bool) -> Model:
        await verify_in_process(path, expected, self._config.verify_timeout_s, polite)
        model = await asyncio.to_thread(load_package, path, expected)
        await asyncio.to_thread(warm, model)
        return model

    def _refuse(self, what: str, error: EncoreError) -> None:
        """Report a refusal, once until there is another."""
        if self._note(what, str(error)):
            log.error("refused, and what served before goes on: %s", error)

    def _note(self, what: str, reason: str) -> bool:
        """Whether that is news."""
        news = self.refusals.get(what) != reason
        self.refused += news
        self.refusals[what] = reason
        return news

    def _accept(self, what: str) -> None:
        self.swaps += 1
        self.refusals.pop(what, None)


async def read_plan(store: AsyncRowStore) -> Plan:
    """The published plan. Raises PlanError when there is none, or for a damaged one; StoreError."""
    return load_published(await store.get_text(PLAN_KEY))
