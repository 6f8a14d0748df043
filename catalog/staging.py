"""A plan whose new generations are filled before readers see them.

    stage        compile; views take new generations; the plan lies beside the published one
    (fill)       rows of the new generations are written: nobody reads or folds them
    mark_filled  workers fold them from their floors on, beside the published ones
    switch       what `catalog.apply.apply` does: registry, lock file, and the published plan

The registry and the lock file change at the switch only, so a backfill that is given up leaves
nothing behind but rows that nobody reads, under numbers that no plan takes again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from catalog.apply import ApplyResult, Review, apply, lags, load_config
from catalog.compiler import compile_plan
from catalog.difference import Difference, difference
from catalog.lock import LOCK_NAME, read_lock
from catalog.publish import (
    check_follows,
    check_not_staged,
    named,
    published,
    set_staged,
    staged,
    version_of,
)
from catalog.repo import definitions_of, load_repo
from schemas.errors import PlanError
from schemas.plan import Plan, ViewPlan
from schemas.staged import Staged
from store.base import RowStore


@dataclass(frozen=True)
class Staging:
    """What is staged now. resumed: it was before. difference: to the published plan."""

    staged: Staged
    difference: Difference
    resumed: bool

    @property
    def views(self) -> tuple[ViewPlan, ...]:
        """The generations to be filled."""
        plan = self.staged.plan
        views = plan.views if plan is not None else ()
        return tuple(view for view in views if view.name in self.staged.views)


def stage(
    repo: Path,
    store: RowStore,
    names: Collection[str],
    review: Review | None = None,
    unchanged: bool = False,
    history: str = "",
) -> Staging:
    """Stage what the repo declares, each of the named views in a new generation, or go on with what
    is staged where it is just that.

    unchanged: refuse a repo that declares something else than the published plan. history: names
    what is filled from beside the log; rows of one generation come of one. Raises DeclarationError,
    PlanError, StoreError, and what `review` raises.
    """
    definitions = definitions_of(load_repo(repo, load_config(repo).project))
    parent = read_lock(repo / LOCK_NAME)
    version = version_of(store)
    held, now = _held(store), staged(store)
    if lags(parent, held, definitions):
        parent = held
    if unchanged and compile_plan(definitions, parent) != held:
        raise PlanError(
            "feature_repo",
            required="declarations as they are published",
            got="others",
            do="apply them first, or fill them with `encore backfill`",
        )
    least = dict(now.views) if now.active else _next(names, held, now)
    plan = compile_plan(definitions, parent, least)
    found = difference(held, plan)
    if now.active:
        if set(names) != set(now.views):
            check_not_staged(now, held)
        check_not_staged(now, plan)
        _check_history(now, history)
        return Staging(now, found, True)
    views = _checked(plan, held, names)
    check_follows(held, plan)
    if review is not None:
        review(found)
    new = Staged("filling", plan, views, now.used | views, history, now.foreign)
    set_staged(store, new, version)
    return Staging(new, found, False)


def mark_filled(store: RowStore, now: Staged) -> Staged:
    """Every row of the new generations is written, durably. Raises PlanError, StoreError."""
    version = version_of(store)
    if (found := staged(store)) != now:
        raise _changed(found)
    filled = replace(now, state="filled")
    if found.state != "filled":
        set_staged(store, filled, version)
    return filled


def switch(repo: Path, store: RowStore, now: Staged) -> ApplyResult:
    """Publish what is staged and filled, and end the staging. Raises as `apply` does."""
    if (found := staged(store)) != now or now.state != "filled":
        raise _changed(found)
    result = apply(repo, store, switching=True)
    end(store)
    return result


def end(store: RowStore) -> Staged:
    """Nothing is staged afterwards. Returns what was. Raises PlanError, StoreError."""
    version = version_of(store)
    now = staged(store)
    if now.active:
        foreign = now.foreign
        if now.history and published(store) == now.plan:
            foreign = foreign | {name: (at, now.history) for name, at in now.views.items()}
        set_staged(store, Staged(used=now.used, foreign=foreign), version)
    return now


def require_history(store: RowStore, names: Collection[str], history: str) -> None:
    """Raises PlanError where a view that is to be filled from the log alone has rows that were
    filled from files of before the log, too: what they hold of those would be gone. StoreError."""
    now, held = staged(store), published(store)
    if history or now.active or held is None:
        return
    for view in held.views:
        generation, files = now.foreign.get(view.name, (0, ""))
        if view.name in names and view.generation == generation:
            raise PlanError(
                f"{view.name}.history",
                required=f"--history, which {view.name}@{generation} was filled from, too: {files}",
                got="none",
                do="give those files again, or `--without-history` to leave out what they hold",
            )


def _check_history(now: Staged, history: str) -> None:
    """Raises PlanError where rows would come of the one history and of the other."""
    if history != now.history:
        raise PlanError(
            f"backfill of {named(now)}",
            required=f"the --history it was begun with: {now.history or 'none'}",
            got=history or "none",
            do="run it with the same files as they were, or give it up with"
            " `encore backfill --cancel` and begin again",
        )


def _held(store: RowStore) -> Plan:
    held = published(store)
    if held is None:
        raise PlanError(
            "store", required="a published plan", got="none", do="run `encore apply` first"
        )
    return held


def _next(names: Iterable[str], held: Plan, now: Staged) -> dict[str, int]:
    """The generation that each named view takes at least."""
    current = {view.name: view.generation for view in held.views}
    return {name: 1 + max(current.get(name, 0), now.used.get(name, 0)) for name in names}


def _checked(plan: Plan, held: Plan, names: Collection[str]) -> dict[str, int]:
    """{view: generation} to be filled. Raises PlanError for views that cannot be, or were left out
    though their state changes, too."""
    streamed = {view.name: view.generation for view in plan.views if view.kind == "streamed"}
    for name in names:
        if name not in streamed:
            raise PlanError(
                "backfill",
                required=f"a streamed view, one of {', '.join(sorted(streamed)) or 'none'}",
                got=repr(name),
                do="batch views are filled by `encore load`",
            )
    known = {view.key for view in held.views}
    left = sorted(name for name in streamed.items() if name not in known and name[0] not in names)
    if left:
        raise PlanError(
            "backfill",
            required="every view that takes a new generation",
            got=f"{', '.join(names)} without {', '.join(name for name, _ in left)}",
            do="name them, too",
        )
    return {name: streamed[name] for name in names}


def _changed(found: Staged) -> PlanError:
    return PlanError(
        "staged plan",
        required="the one that this backfill staged",
        got=f"{named(found) or 'none'}, {found.state}",
        do="begin again with `encore backfill`",
    )
