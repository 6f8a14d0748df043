"""Field ids, groups and generations: what must fit the plan that came before.

The first six rules of `docs/evolution.md`, with the same numbers:

1. Within a generation field ids are append-only: a field keeps its id, a new one takes the next,
   and a field that is no longer declared stays where it is (it is stored as null), so that rows of
   every plan of the generation can be read by every other.
2. Fields added by a later plan form a new group, since structs are append-only.
3. A streamed view takes a new generation when its state changes: entity, topic, lateness, fields,
   rings or sequences. Windows, transforms and TTL are computed when a row is read and change in
   place.
4. A batch view takes a new generation when a stored value would change its meaning: another entity
   or composite key, or a field of another dtype, capacity or written transform.
5. A new generation keeps the ids of the fields that it takes over; its rows start compact, without
   fields that are no longer declared.
6. A view that is no longer declared leaves its last generation behind; a view that takes its name
   again begins at the next one, so that no row of the old view is read as one of the new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from catalog.drafts import FieldDraft, ViewDraft
from schemas.plan import FieldPlan, ViewPlan

FIRST_GENERATION: Final = 1


def number(draft: ViewDraft, parent: ViewPlan | None, used: int = 0, least: int = 0) -> ViewPlan:
    """The draft as a plan that follows `parent`, the view's plan so far (None where it is new).

    used: the last generation that a new one may not be, of an earlier view of that name or of a
    backfill that was given up. least: the lowest generation the view may have; above the parent's
    it takes a new one whether or not it changed.
    """
    generation, fields = _fields(draft, parent, used, least)
    return ViewPlan(
        name=draft.name,
        entity=draft.entity,
        kind="streamed" if draft.streamed else "batch",
        generation=generation,
        fields=fields,
        features=draft.features,
        source=draft.source,
        timestamp_field=draft.timestamp_field,
        join_key=draft.join_key,
        ttl_ms=draft.ttl_ms,
        skew_ms=draft.skew_ms,
        future_ms=draft.future_ms,
        accumulators=draft.accumulators,
        sequences=draft.sequences,
        written=draft.written,
        string_keys=draft.string_keys,
        push_source=draft.push_source,
    )


def _fields(
    draft: ViewDraft, parent: ViewPlan | None, used: int, least: int
) -> tuple[int, tuple[FieldPlan, ...]]:
    if parent is None:
        return max(FIRST_GENERATION, used + 1, least), _first(draft.fields)
    goes_on = _state_goes_on(draft, parent) if draft.streamed else _values_go_on(draft, parent)
    if goes_on and parent.generation >= least:
        return parent.generation, _appended(draft.fields, parent.fields)
    return max(parent.generation + 1, used + 1, least), _restarted(draft.fields, parent.fields)


def _state_goes_on(draft: ViewDraft, parent: ViewPlan) -> bool:
    return parent.kind == "streamed" and draft.same_state(parent)


def _values_go_on(draft: ViewDraft, parent: ViewPlan) -> bool:
    if parent.kind != "batch" or parent.entity != draft.entity:
        return False
    if parent.join_key != draft.join_key and (draft.composite or len(parent.join_keys) > 1):
        return False
    known = {field.name: field for field in parent.fields}
    for field in draft.fields:
        old = known.get(field.name)
        if old is None:
            continue
        if not _alike(field, old):
            return False
        if parent.written.get(field.name) != draft.written.get(field.name):
            return False
    return True


def _alike(field: FieldDraft, old: FieldPlan) -> bool:
    return (field.dtype, field.capacity) == (old.dtype, old.capacity)


def _plan(field: FieldDraft, number: int, group: int) -> FieldPlan:
    return FieldPlan(number, field.name, field.dtype, field.capacity, group)


def _first(fields: Sequence[FieldDraft]) -> tuple[FieldPlan, ...]:
    ordered = sorted(fields, key=lambda field: field.name)
    return tuple(_plan(field, index, 0) for index, field in enumerate(ordered))


def _next_id(parent: Sequence[FieldPlan]) -> int:
    return max((field.id for field in parent), default=-1) + 1


def _appended(fields: Sequence[FieldDraft], parent: tuple[FieldPlan, ...]) -> tuple[FieldPlan, ...]:
    known = {field.name for field in parent}
    new = sorted((field for field in fields if field.name not in known), key=lambda f: f.name)
    group = max((field.group for field in parent), default=-1) + 1
    first = _next_id(parent)
    return parent + tuple(_plan(field, first + index, group) for index, field in enumerate(new))


def _restarted(
    fields: Sequence[FieldDraft], parent: tuple[FieldPlan, ...]
) -> tuple[FieldPlan, ...]:
    known = {field.name: field for field in parent}
    kept = {
        field.name: replace(known[field.name], group=0)
        for field in fields
        if field.name in known and _alike(field, known[field.name])
    }
    new = sorted((field for field in fields if field.name not in kept), key=lambda f: f.name)
    first = _next_id(parent)
    fresh = [_plan(field, first + index, 0) for index, field in enumerate(new)]
    return tuple(sorted([*kept.values(), *fresh], key=lambda field: field.id))
