"""Views that a service cannot do without, from its tag into its plan."""

from __future__ import annotations

from dataclasses import replace

from feast import FeatureService

from catalog import tags
from schemas.errors import DeclarationError
from schemas.plan import Plan, ServicePlan


def with_required(service: FeatureService, plan: ServicePlan, views: Plan) -> ServicePlan:
    """The service's plan with the views that its tag requires, in the order of their first use.

    views: a plan that holds the views. Raises DeclarationError for one that the service does not
    read, or names twice.
    """
    text = service.tags.get(tags.REQUIRED, "")
    if not text:
        return plan
    read = [view.name for view in (*plan.views(views, "user"), *plan.views(views, "item"))]
    named = text.split(",")
    for name in named:
        if name not in read or named.count(name) > 1:
            raise DeclarationError(
                f"{service.name}.required",
                required=f"views that the service reads, each once: {', '.join(read)}",
                got=repr(text),
            )
    return replace(plan, required=tuple(name for name in read if name in named))
