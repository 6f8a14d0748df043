"""The plan in the store: what running workers and servers take over without a restart."""

from __future__ import annotations

from schemas.errors import PlanError
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY
from schemas.plan import Plan, ViewPlan, dump_plan, load_plan
from store.base import RowStore


def published(store: RowStore) -> Plan | None:
    """The plan the store holds, None where there is none. Raises PlanError, StoreError."""
    text = store.get_text(PLAN_KEY)
    return None if text is None else load_plan(text, PLAN_KEY)


def publish(store: RowStore, plan: Plan) -> bool:
    """Makes `plan` the store's; False where it already is.

    Compare-and-set: of two plans made from one parent the second is refused. A store may lag
    several versions behind, or be new; what it holds must be an older plan that this one extends,
    so that every row it holds can still be read. Raises PlanError, StoreError.
    """
    counter = store.get_text(PLAN_VERSION_KEY)  # read before the plan: a change after it fails
    held = published(store)
    if held == plan:
        return False
    if held is not None:
        check_follows(held, plan)
    if not store.compare_and_set_text(
        PLAN_KEY, PLAN_VERSION_KEY, int(counter or 0), dump_plan(plan)
    ):
        raise PlanError(
            PLAN_KEY,
            required="the plan unchanged while it was replaced",
            got="another apply at the same time",
            do="run `encore apply` again",
        )
    return True


def check_follows(held: Plan, plan: Plan) -> None:
    """Raises PlanError unless `plan` may replace `held`: it is newer, and every row still reads."""
    if held.version >= plan.version:
        raise PlanError(
            PLAN_KEY,
            required=f"a plan older than version {plan.version}",
            got=f"version {held.version} from another apply",
            do="take over the lock file it was published from and run `encore apply` again",
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
