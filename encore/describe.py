"""What the published plan says of its features, for people: a list of all, a page of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from catalog.durations import text
from catalog.wording import made_of
from schemas.errors import PlanError, nearest
from schemas.plan import (
    CrossPlan,
    FeaturePlan,
    Plan,
    SequenceSlotPlan,
    SlotPlan,
    TransformPlan,
    ViewPlan,
)


@dataclass(frozen=True, slots=True)
class Described:
    """One feature. of: what it is computed from. services: those with a slot or cross of it."""

    view: str
    generation: int
    feature: str
    entity: str
    type: str
    of: str
    services: tuple[str, ...]

    @property
    def name(self) -> str:
        """`view.feature`, as `describe` takes it."""
        return f"{self.view}.{self.feature}"


@dataclass(frozen=True, slots=True)
class SlotPage:
    """One slot of the feature. side: user, item or sequence."""

    service: str
    side: str
    slot: str
    ids: str
    table: str


@dataclass(frozen=True, slots=True)
class CrossPage:
    """One cross of a service. of: the operator and its operands. scope: whose slot it is, `pair`
    that of a candidate beside a user."""

    service: str
    cross: str
    scope: str
    of: str
    ids: str
    table: str

    @property
    def name(self) -> str:
        """`service.cross`, as `describe_cross` takes it."""
        return f"{self.service}.{self.cross}"


@dataclass(frozen=True, slots=True)
class Page:
    """All there is to say of a feature. stored: the row's fields behind it, with their ids.
    crosses: those that are computed from it.
    """

    summary: Described
    key: str
    source: str
    ttl: str
    stored: tuple[str, ...]
    slots: tuple[SlotPage, ...]
    crosses: tuple[CrossPage, ...]


def all_features(plan: Plan, view: str | None = None) -> list[Described]:
    """Every feature of the plan, or of one view. Raises PlanError for an unknown view."""
    views = [plan.view(view)] if view is not None else list(plan.views)
    return [_described(plan, each, feature) for each in views for feature in each.features]


def describe(plan: Plan, name: str) -> Page:
    """The page of `view.feature`, or of a feature whose name no other view has.

    Raises PlanError for an unknown name, or one that several views have.
    """
    known = all_features(plan)
    hits = [each for each in known if name in (each.name, each.feature)]
    if len(hits) != 1:
        raise _no_single(plan, name, known, hits)
    found = hits[0]
    view = plan.view(found.view)
    feature = view.feature(found.feature)
    fields = [
        f"{field.name} (id {field.id}, {_type(field.dtype, field.capacity)})"
        for field in view.fields
        if field.name in _stored(view, feature)
    ]
    return Page(
        found,
        key=f"{view.name}@{view.generation}:{{{view.join_key}}}",
        source=f"{'topic' if view.kind == 'streamed' else 'Parquet'} {view.source}",
        ttl=text(view.ttl_ms) if view.ttl_ms else "none",
        stored=tuple(fields),
        slots=tuple(_slots(plan, view, feature)),
        crosses=tuple(_crosses(plan, view, feature)),
    )


def _no_single(
    plan: Plan, name: str, known: Sequence[Described], hits: Sequence[Described]
) -> PlanError:
    """What is wrong with a name that not exactly one feature has; that of a `recent` is of none."""
    columns = [each for view in plan.views for each in _columns(view, name)]
    if hits:
        required = f"one of {', '.join(each.name for each in hits)}"
        do = "name it as view.feature"
    elif columns:
        required = f"one of its columns, {', '.join(columns)}"
        do = ""
    else:
        required = "a published feature"
        near = nearest(name, [spelt for each in known for spelt in (each.name, each.feature)])
        do = near or "see `encore features list`"
    return PlanError("features.show", required=required, got=repr(name), do=do)


def _columns(view: ViewPlan, name: str) -> list[str]:
    """The features that the columns of a `recent` are, by its name, with or without the view's."""
    return [
        f"{view.name}.{feature.name}"
        for held in view.sequences
        if name in (held.name, f"{view.name}.{held.name}")
        for feature in view.features
        if feature.kind in ("sequence", "age") and feature.source in (*held.fields, held.time_field)
    ]


def describe_cross(plan: Plan, name: str) -> CrossPage | None:
    """The page of `service.cross`, or of a cross; None where there is none of that name.

    A feature's name comes first. Raises PlanError for a cross that several services have.
    """
    if any(name in (each.name, each.feature) for each in all_features(plan)):
        return None
    known = [
        _cross_page(service.name, each) for service in plan.services for each in service.crosses
    ]
    hits = [each for each in known if name in (each.name, each.cross)]
    if len(hits) > 1:
        raise PlanError(
            "features.show",
            required=f"one of {', '.join(each.name for each in hits)}",
            got=repr(name),
            do="name it as service.cross",
        )
    return hits[0] if hits else None


def _described(plan: Plan, view: ViewPlan, feature: FeaturePlan) -> Described:
    services = dict.fromkeys(
        (
            *(slot.service for slot in _slots(plan, view, feature)),
            *(cross.service for cross in _crosses(plan, view, feature)),
        )
    )
    return Described(
        view.name,
        view.generation,
        feature.name,
        view.entity,
        _type(feature.dtype, feature.capacity),
        made_of(view, feature),
        tuple(services),
    )


def _type(dtype: str, capacity: int) -> str:
    return f"{dtype}[{capacity}]" if capacity else dtype


def _stored(view: ViewPlan, feature: FeaturePlan) -> set[str]:
    if feature.kind == "ratio":
        return set().union(*(_stored(view, view.feature(name)) for name in feature.sources))
    names = set(feature.sources)
    names |= {ring.head for ring in view.accumulators if ring.field in feature.sources}
    names |= {held.time_field for held in view.sequences if feature.source in held.fields}
    return names


def _slots(plan: Plan, view: ViewPlan, feature: FeaturePlan) -> list[SlotPage]:
    pages = []
    for service in plan.services:
        sides: dict[str, tuple[SlotPlan, ...] | tuple[SequenceSlotPlan, ...]] = {
            "user": service.user_slots,
            "item": service.item_slots,
            "sequence": service.sequences,
        }
        for side, slots in sides.items():
            pages += [
                SlotPage(service.name, side, slot.name, _ids(slot.transform), slot.table)
                for slot in slots
                if (slot.view, slot.feature) == (view.name, feature.name)
            ]
    return pages


def _crosses(plan: Plan, view: ViewPlan, feature: FeaturePlan) -> list[CrossPage]:
    return [
        _cross_page(service.name, cross)
        for service in plan.services
        for cross in service.crosses
        if any((each.view, each.feature) == (view.name, feature.name) for each in cross.operands)
    ]


def _cross_page(service: str, cross: CrossPlan) -> CrossPage:
    smoothing = f", prior={cross.prior:g}, weight={cross.weight:g}" if cross.weight else ""
    operands = ", ".join(f"{each.view}:{each.feature}" for each in cross.operands)
    return CrossPage(
        service,
        cross.name,
        cross.scope,
        f"{cross.operator}({operands}{smoothing})",
        _ids(cross.transform),
        cross.table,
    )


def _ids(transform: TransformPlan) -> str:
    return f"{transform.kind} of {transform.size} ids"
