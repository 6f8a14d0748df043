"""The plan in the store: what running workers and servers take over without a restart.

Beside it may lie a staged one, whose new generations are being filled (`catalog.staging`). Both are
set by compare-and-set on one version, so neither changes under whoever sets the other.
"""

from __future__ import annotations

from schemas.errors import PlanError
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY, STAGED_KEY
from schemas.plan import Plan, ViewPlan, dump_plan, load_plan
from schemas.staged import Staged, dump_staged, load_staged
from store.base import RowStore


def published(store: RowStore) -> Plan | None:
    """The plan the store holds, None where there is none. Raises PlanError, StoreError."""
    text = store.get_text(PLAN_KEY)
    return None if text is None else load_plan(text, PLAN_KEY)


def staged(store: RowStore) -> Staged:
    """What is staged, of state `none` where nothing is. Raises PlanError, StoreError."""
    return load_staged(store.get_text(STAGED_KEY), STAGED_KEY)


def set_staged(store: RowStore, new: Staged, version: int) -> None:
    """Replaces what is staged, while the version is the one that was read before. Raises PlanError
    where it is another by now, StoreError."""
    if not store.compare_and_set_text(STAGED_KEY, PLAN_VERSION_KEY, version, dump_staged(new)):
        raise PlanError(
            STAGED_KEY,
            required="plans that nobody changes meanwhile",
            got="another apply or backfill at the same time",
            do="run the command again",
        )


def version_of(store: RowStore) -> int:
    """How often something was published or staged. To be read before what it is the version of."""
    return int(store.get_text(PLAN_VERSION_KEY) or 0)


def publish(store: RowStore, plan: Plan, switching: bool = False) -> bool:
    """Makes `plan` the store's; False where it already is.

    Compare-and-set: of two plans made from one parent the second is refused. A store may lag
    several versions behind, or be new; what it holds must be an older plan that this one extends,
    so that every row it holds can still be read. switching: it is the end of a backfill.

    While a plan is staged no other is published: its generations would share their numbers, and so
    their rows. Nor is it itself until all rows are there: the stream would fold into generations
    that the backfill fills. Raises PlanError, StoreError.
    """
    version = version_of(store)
    held = published(store)
    if held == plan:
        return False
    check_may_publish(staged(store), plan, switching)
    if held is not None:
        check_follows(held, plan)
    if not store.compare_and_set_text(PLAN_KEY, PLAN_VERSION_KEY, version, dump_plan(plan)):
        raise PlanError(
            PLAN_KEY,
            required="the plan unchanged while it was replaced",
            got="another apply at the same time",
            do="run `encore apply` again",
        )
    return True


def check_may_publish(now: Staged, plan: Plan, switching: bool) -> None:
    """Raises PlanError while a plan is staged, but for its own switch once it is filled."""
    if now.active and not (switching and now.state == "filled" and now.plan == plan):
        raise _under_way(now)


def check_not_staged(now: Staged, plan: Plan) -> None:
    """Raises PlanError where another plan than `plan` is staged."""
    if now.active and now.plan != plan:
        raise _under_way(now)


def _under_way(now: Staged) -> PlanError:
    return PlanError(
        STAGED_KEY,
        required="no backfill under way",
        got=f"one of {named(now)}, {now.state}",
        do="let `encore backfill` end, run it again where it was interrupted, or give it up with"
        " `encore backfill --cancel`",
    )


def named(now: Staged) -> str:
    """The generations that are filled, for people."""
    return ", ".join(f"{name}@{generation}" for name, generation in sorted(now.views.items()))


def check_follows(held: Plan, plan: Plan) -> None:
    """Raises PlanError unless `plan` may replace `held`: it is newer, and every row still reads."""
    if held.version >= plan.version:
        raise PlanError(
            PLAN_KEY,
            required=f"a plan older than version {plan.version}",
            got=f"version {held.version} from another apply",
            do="take over the lock file it was published from, or look at `encore plan"
            " --take-over`, then apply",
        )
    for view in plan.views:
        old = next((each for each in held.views if each.name == view.name), None)
        if old is not None and not extends(view, old):
            raise PlanError(
                f"{PLAN_KEY}.{view.name}",
                required=f"a plan that extends version {held.version}",
                got=f"version {plan.version} of another line, with other field ids",
                do="take over the lock file that was published and run `encore apply` again",
            )


def extends(view: ViewPlan, old: ViewPlan) -> bool:
    """Whether rows written under `old` mean the same under `view`, or have other keys."""
    if view.generation != old.generation:
        return view.generation > old.generation
    return view.fields[: len(old.fields)] == old.fields
