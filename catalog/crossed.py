"""A service's crosses: from its tag → the plan's. The operators' table is `aggregation.crosses`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from feast import FeatureService

from aggregation.crosses import OPERATORS, misfit
from catalog import tags
from catalog.crosses import Cross, declared_crosses
from catalog.drafts import SlotDraft, ViewDraft
from catalog.services import Drafts, all_slots, resolve
from catalog.transforms import STRING, compile_transform
from schemas.errors import DeclarationError
from schemas.fingerprint import service_fingerprint
from schemas.plan import (
    CrossPlan,
    FeaturePlan,
    OperandPlan,
    Scope,
    ServicePlan,
    ViewPlan,
)


def crossed(
    service: FeatureService, plan: ServicePlan, drafts: Drafts, views: Mapping[str, ViewPlan]
) -> ServicePlan:
    """The service's plan with the crosses that its tag declares. Raises DeclarationError."""
    tags.check_known(service.tags, tags.SERVICE_TAGS, service.name)
    where = f"{service.name}.crosses"
    declared = declared_crosses(service.tags, service.name)
    crosses = tuple(_compile(each, f"{where}.{each.name}", drafts, views) for each in declared)
    fingerprint = service_fingerprint(
        dict(views), plan.user_slots, plan.item_slots, plan.sequences, crosses
    )
    return replace(plan, crosses=crosses, fingerprint=fingerprint)


def _compile(
    declared: Cross, where: str, drafts: Drafts, views: Mapping[str, ViewPlan]
) -> CrossPlan:
    operation = declared.operation
    left, right = (
        _operand(reference, where, drafts, views) for reference in (operation.left, operation.right)
    )
    found = misfit(operation.operator, _feature(left, views), _feature(right, views))
    if found is not None:
        raise DeclarationError(
            f"{where}.{operation.operator}", required=found.required, got=found.got
        )
    sides = {views[operand.view].entity for operand in (left, right)}
    scope: Scope = "pair" if len(sides) == 2 else sides.pop()
    return CrossPlan(
        name=declared.name,
        scope=scope,
        operator=operation.operator,
        operands=(left, right),
        transform=compile_transform(
            declared.transform, OPERATORS[operation.operator].result, f"{where}.transform"
        ),
        table=declared.name,
        prior=operation.prior,
        weight=operation.weight,
    )


def _feature(operand: OperandPlan, views: Mapping[str, ViewPlan]) -> FeaturePlan:
    return views[operand.view].feature(operand.feature)


def _operand(
    reference: str, where: str, drafts: Drafts, views: Mapping[str, ViewPlan]
) -> OperandPlan:
    view, colon, name = reference.partition(":")
    if not (view and colon and name):
        raise DeclarationError(f"{where}.of", required='"view:feature"', got=repr(reference))
    if view not in views:
        raise DeclarationError(
            f"{where}.of", required=f"an online view: {', '.join(views)}", got=repr(view)
        )
    if drafts[view].composite:
        raise DeclarationError(
            f"{where}.of",
            required="features of views of one entity",
            got=f"{reference}, keyed by {drafts[view].join_key}",
        )
    known = [feature.name for feature in views[view].features]
    if name not in known:
        raise DeclarationError(
            f"{where}.of", required=f"a feature of {view}: {', '.join(known)}", got=repr(name)
        )
    slot = _slot(drafts[view], name)
    if slot is None:
        return OperandPlan(view, name)
    if slot.dtype == STRING:
        raise DeclarationError(
            f"{where}.of",
            required="numbers, or ids that are comparable",
            got=f"{reference}, a String that rests as the id of its transform",
            do="cross a column of numbers",
        )
    # Entries of a sequence have no sentinels: one that means nothing equals no scalar that counts.
    sentinels = () if slot.length else resolve(drafts[view], slot, drafts)[0].sentinels
    return OperandPlan(view, name, sentinels)


def _slot(draft: ViewDraft, name: str) -> SlotDraft | None:
    """The slot that the feature would be, None where it has no transform."""
    for slot in all_slots(draft):
        if slot.feature == name:
            return slot
    return None
