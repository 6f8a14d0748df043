"""Feature services → the slots of their tensors, in the order in which they are declared.

A slot's table is named after the feature that owns it (`videos__video_id`); a feature that shares
takes over that feature's ids. The slot of an entity's own id comes first among its view's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from feast import FeatureService

from catalog.drafts import SlotDraft, ViewDraft
from catalog.fields import check_name
from catalog.transforms import same_ids, stored_transform
from schemas.errors import DeclarationError, nearest
from schemas.fingerprint import service_fingerprint
from schemas.plan import (
    SequenceSlotPlan,
    ServicePlan,
    SlotPlan,
    TransformPlan,
    ViewPlan,
)
from schemas.values import value_name

Drafts = Mapping[str, ViewDraft]


@dataclass(frozen=True)
class _Table:
    """Whose ids a slot uses. name: of the embedding table. ids: over values, not stored ids."""

    name: str
    ids: TransformPlan


def compile_service(
    service: FeatureService, drafts: Drafts, views: Mapping[str, ViewPlan]
) -> ServicePlan:
    """One service's plan, without crosses. Raises DeclarationError."""
    check_name(service.name, service.name)
    user: list[SlotPlan] = []
    item: list[SlotPlan] = []
    sequences: list[SequenceSlotPlan] = []
    for draft, slot in _chosen(service, drafts):
        name = value_name(draft.name, slot.feature)
        transform, table = resolve(draft, slot, drafts)
        if slot.length == 0:
            side = user if draft.entity == "user" else item
            side.append(SlotPlan(name, draft.name, slot.feature, transform, table))
            continue
        if draft.entity != "user":
            raise DeclarationError(
                f"{service.name}.{draft.name}.{slot.declared}",
                required="sequences of the user",
                got=f"one of the {draft.entity}",
                do="leave it out of the service",
            )
        sequences.append(
            SequenceSlotPlan(
                name, draft.name, slot.feature, slot.length, transform, table, slot.aligned
            )
        )
    slots = (tuple(user), tuple(item), tuple(sequences))
    if not any(slots):
        raise DeclarationError(service.name, required="at least one feature", got="none")
    fingerprint = service_fingerprint(dict(views), *slots)
    return ServicePlan(service.name, *slots, fingerprint, features=_references(service, drafts))


def _references(service: FeatureService, drafts: Drafts) -> tuple[str, ...]:
    """What the service chose, as "view:feature"."""
    chosen = _selections(service, drafts)
    return tuple(f"{view}:{name}" for view, names in chosen for name in names)


def check_sharing(drafts: Drafts) -> None:
    """Raises DeclarationError for any slot, used or not, whose shared ids do not fit."""
    for draft in drafts.values():
        for slot in all_slots(draft):
            resolve(draft, slot, drafts)


def all_slots(draft: ViewDraft) -> Iterator[SlotDraft]:
    """Every feature that can be a slot, the entity's own id first."""
    if draft.key is not None:
        yield draft.key
    for slots in draft.slots.values():
        yield from slots


def _chosen(service: FeatureService, drafts: Drafts) -> Iterator[tuple[ViewDraft, SlotDraft]]:
    """The slots a service asks for, each once."""
    seen: set[tuple[str, str]] = set()
    for view_name, names in _selections(service, drafts):
        draft = _draft(service, view_name, drafts)
        if draft.composite:
            raise DeclarationError(
                f"{service.name}.{view_name}",
                required="views of one entity",
                got=f"one keyed by {draft.join_key}",
                do='read it by "view:feature"; a request ranks one user and single items',
            )
        if draft.key is not None and (view_name, "") not in seen:
            yield draft, draft.key
        seen.add((view_name, ""))
        for name in names:
            where = f"{service.name}.{view_name}.{name}"
            if (view_name, name) in seen:
                raise DeclarationError(where, required="each feature once", got="it twice")
            seen.add((view_name, name))
            for slot in _slots_of(draft, name, where):
                yield draft, slot


def _slots_of(draft: ViewDraft, name: str, where: str) -> tuple[SlotDraft, ...]:
    if name not in draft.declared:
        raise DeclarationError(
            where,
            required=f"a feature of {draft.name}: {', '.join(draft.declared)}",
            got=repr(name),
        )
    if name not in draft.slots:
        raise DeclarationError(
            where,
            required="a feature with an ID transform",
            got="one without",
            do="declare its transform, or choose features without it: view[[…]]",
        )
    return draft.slots[name]


def _draft(service: FeatureService, view: str, drafts: Drafts) -> ViewDraft:
    if view not in drafts:
        known = ", ".join(drafts) or "no views"
        raise DeclarationError(
            f"{service.name}.{view}", required=f"an online view: {known}", got=repr(view)
        )
    return drafts[view]


def _selections(service: FeatureService, drafts: Drafts) -> list[tuple[str, Sequence[str]]]:
    """(view, features) in Feast's order: views first, then references not yet resolved."""
    found: list[tuple[str, Sequence[str]]] = []
    for projection in service.feature_view_projections:
        if projection.name_alias or projection.join_key_map or projection.version_tag is not None:
            raise DeclarationError(
                f"{service.name}.{projection.name}",
                required="a view under its own name, keys and latest version",
                got="one renamed, re-keyed or pinned",
            )
        found.append((projection.name, [field.name for field in projection.features]))
    for reference in service._pending_feature_refs:
        view, colon, name = reference.partition(":")
        every = _draft(service, view, drafts).declared
        found.append((view, [name] if colon else every))
    return found


# --- tables ---------------------------------------------------------------------------------


def resolve(draft: ViewDraft, slot: SlotDraft, drafts: Drafts) -> tuple[TransformPlan, str]:
    """The slot's transform and table name. Raises DeclarationError."""
    table = _table(draft, slot, drafts, ())
    ids = table.ids if slot.ids is None else slot.ids
    ids = replace(ids, sentinels=(*ids.sentinels, *slot.sentinels))
    return (stored_transform(ids) if slot.stored else ids), table.name


def _table(draft: ViewDraft, slot: SlotDraft, drafts: Drafts, seen: tuple[str, ...]) -> _Table:
    where = f"{draft.name}.{slot.declared}"
    if slot.shares is None:
        assert slot.ids is not None  # a slot has a transform, or says whose it shares
        return _Table(value_name(draft.name, slot.declared), slot.ids)
    if where in seen:
        raise DeclarationError(
            f"{where}.shares",
            required="a feature with a table of its own",
            got=" → ".join((*seen, where)),
            do="give one of them a transform and no shares",
        )
    owner, owner_slot = _owner(where, slot.shares, drafts)
    table = _table(owner, owner_slot, drafts, (*seen, where))
    reference = ":".join(slot.shares)
    if slot.ids is not None and not same_ids(slot.ids, table.ids):
        raise DeclarationError(
            f"{where}.transform",
            required=f"the {table.ids.size} ids of {reference}, whose table it shares",
            got=f"{slot.ids.kind} of {slot.ids.size} ids",
            do="drop the transform: it is taken over from the feature that is shared",
        )
    if (slot.dtype == "string") != (owner_slot.dtype == "string"):
        raise DeclarationError(
            f"{where}.shares",
            required=f"values like those of {reference}, {owner_slot.dtype}",
            got=slot.dtype,
        )
    return table


def _owner(where: str, reference: tuple[str, str], drafts: Drafts) -> tuple[ViewDraft, SlotDraft]:
    view, name = reference
    draft = drafts.get(view)
    if draft is not None:
        if draft.key is not None and draft.key.declared == name:
            return draft, draft.key
        if name in draft.slots:
            return draft, draft.slots[name][0]
    names = [] if draft is None else [slot.declared for slot in all_slots(draft)]
    others = dict.fromkeys(each for each in names if f"{view}.{each}" != where)
    if draft is None:
        do = nearest(view, drafts) or f"views are {', '.join(drafts)}"
    else:
        do = nearest(name, others) or f"{view} has {', '.join(others) or 'none'}"
    raise DeclarationError(
        f"{where}.shares",
        required="a feature with a transform",
        got=repr(f"{view}:{name}"),
        do=do,
    )
