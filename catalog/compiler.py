"""Declarations → plan.

`compile_plan` takes Feast objects, as a repo declares them or as the registry holds them (both give
the same plan), and the plan that came before. It checks everything there is to check; whatever it
accepts can be stored, folded, finalised and turned into tensors.

A plan is a function of the declarations and the parent plan: features are ordered by name, slots as
their service declares them. A plan that changes nothing is the parent itself, version included.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from feast import Entity, FeatureService, FeatureView
from feast.stream_feature_view import StreamFeatureView

from catalog.batch import compile_batch
from catalog.crossed import crossed
from catalog.drafts import ViewDraft
from catalog.fields import check_unique
from catalog.numbering import number
from catalog.required import with_required
from catalog.services import check_sharing, compile_service
from catalog.streamed import compile_streamed
from schemas.errors import DeclarationError
from schemas.plan import Plan


@dataclass(frozen=True)
class Definitions:
    """What a repo declares, or a registry holds."""

    entities: tuple[Entity, ...]
    views: tuple[FeatureView, ...]
    services: tuple[FeatureService, ...]


def compile_plan(
    definitions: Definitions,
    parent: Plan | None = None,
    least: Mapping[str, int] | None = None,
    used: Mapping[str, int] | None = None,
) -> Plan:
    """The plan that follows `parent`; `parent` itself where nothing changed.

    least: {view: the lowest generation it may have, changed or not}. used: {view: the last
    generation whose number a new one may not take}. Views with online=False are Feast's alone and
    not in the plan. Raises DeclarationError.
    """
    _check_names(definitions)
    entities = {entity.name: entity for entity in definitions.entities}
    drafts: dict[str, ViewDraft] = {}
    for view in sorted(definitions.views, key=lambda view: view.name):
        if view.online:
            _refuse_pinned(view)
            drafts[view.name] = compile_view(view, entities)
    check_sharing(drafts)
    before = {view.name: view for view in parent.views} if parent is not None else {}
    retired = dict(parent.retired) if parent is not None else {}
    views = {
        name: number(
            draft,
            before.get(name),
            max(retired.pop(name, 0), (used or {}).get(name, 0)),
            (least or {}).get(name, 0),
        )
        for name, draft in drafts.items()
    }
    retired |= {name: view.generation for name, view in before.items() if name not in views}
    alone = Plan(0, 0, tuple(views.values()), ())
    services = tuple(
        with_required(
            service, crossed(service, compile_service(service, drafts, views), drafts, views), alone
        )
        for service in sorted(definitions.services, key=lambda service: service.name)
    )
    version = parent.version if parent is not None else 0
    plan = Plan(version + 1, version, tuple(views.values()), services, retired=retired)
    if parent is not None and replace(plan, version=version, parent=parent.parent) == parent:
        return parent
    return plan


def compile_view(view: FeatureView, entities: Mapping[str, Entity]) -> ViewDraft:
    """One view's draft. Raises DeclarationError."""
    if isinstance(view, StreamFeatureView):
        return compile_streamed(view, entities)
    return compile_batch(view, entities)


def _check_names(definitions: Definitions) -> None:
    groups: tuple[tuple[str, Iterable[Entity | FeatureView | FeatureService]], ...] = (
        ("entity", definitions.entities),
        ("view", definitions.views),
        ("service", definitions.services),
    )
    for what, found in groups:
        check_unique((each.name for each in found), "feature_repo", what)


def _refuse_pinned(view: FeatureView) -> None:
    if view.version not in ("", "latest"):
        raise DeclarationError(
            f"{view.name}.version",
            required="latest: rows are numbered by encore's generations",
            got=repr(view.version),
            do="drop version=",
        )
