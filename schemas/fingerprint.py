"""What a model depends on, as 16 hex digits: the fingerprint of a feature service.

It is over everything that changes a tensor, and nothing else:

    each slot     its place, name, table, transform, and a sequence's length
    each cross    its place, name, table, transform, operator, prior and weight, its operands
    what is read  the feature's name, side, dtype, capacity; of a window its function, action,
                  column, conditions, hop and number of tiles; of a sequence its action, conditions
                  and column; of a batch column its name and the transform it is written with; of a
                  ratio the two features it is of

It is not over what is storage or operation: how many tiles a ring holds or a sequence keeps for
other features, field names and ids, groups, generations, topics and paths, TTL and lateness. So an
unrelated feature never retires a model, even where it makes a ring longer that both read.

Equal fingerprints also mean equal value blocks (`schemas.values`): what was logged under one can be
read by any plan that has it. An attribute at its default is left out, so that a plan format that
grows an attribute leaves the fingerprints of what does not use it as they are.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Final

from schemas.plan import (
    AccumulatorPlan,
    CrossPlan,
    FeatureKind,
    FeaturePlan,
    SequencePlan,
    SequenceSlotPlan,
    SlotPlan,
    ViewPlan,
)

#: Attributes that say where something rests, or that repeat others for people.
_STORAGE: Final[dict[type, frozenset[str]]] = {
    FeaturePlan: frozenset(("source", "others", "window_ms")),
    AccumulatorPlan: frozenset(("field", "head", "tiles")),
    SequencePlan: frozenset(("name", "columns", "fields", "time_field", "capacity")),
}


def service_fingerprint(
    views: Mapping[str, ViewPlan],
    user_slots: tuple[SlotPlan, ...],
    item_slots: tuple[SlotPlan, ...],
    sequences: tuple[SequenceSlotPlan, ...],
    crosses: tuple[CrossPlan, ...] = (),
) -> str:
    """The fingerprint of a service with these slots. views: by name, all that the slots read."""
    held: list[Any] = []
    for side, group in (("user", user_slots), ("item", item_slots), ("sequence", sequences)):
        held += [(side, slot_meaning(views, slot)) for slot in group]
    held += [("cross", slot_meaning(views, cross)) for cross in crosses]
    canonical = json.dumps(held, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def slot_meaning(
    views: Mapping[str, ViewPlan], slot: SlotPlan | SequenceSlotPlan | CrossPlan
) -> dict[str, Any]:
    """A slot and what it is computed from, as plain data: equal where its ids are."""
    reads = slot.operands if isinstance(slot, CrossPlan) else (slot,)
    return {
        "slot": _said(slot),
        "of": [feature_meaning(views[each.view], each.feature) for each in reads],
    }


def feature_meaning(view: ViewPlan, name: str) -> dict[str, Any]:
    """A feature and how it is computed, as plain data: equal where its values are.

    Raises KeyError for a name that the view does not have.
    """
    feature = view.feature(name)
    said = {"view": view.name, "entity": view.entity, **_said(feature)}
    if feature.kind == "ratio":
        return said | {"ratio": [feature_meaning(view, each) for each in feature.sources]}
    others = [_origin(view, feature.kind, source) for source in feature.others]
    said |= {"others": others} if others else {}
    return said | _origin(view, feature.kind, feature.source)


def _origin(view: ViewPlan, kind: FeatureKind, source: str) -> dict[str, Any]:
    """What rests in the field `source`."""
    if kind == "field":
        written = view.written.get(source)
        return {"column": source} | ({} if written is None else {"written": _said(written)})
    for ring in view.accumulators:
        if ring.field == source:
            return {"window": _said(ring)}
    for held in view.sequences:
        if source == held.time_field:
            return {"sequence": _said(held), "column": "time_ms"}
        if source in held.fields:
            return {"sequence": _said(held), "column": held.columns[held.fields.index(source)]}
    return {"source": source}


def _said(part: Any) -> Any:
    """What a plan's dataclasses say beyond their defaults, without storage; tuples as lists."""
    if isinstance(part, tuple):
        return [_said(each) for each in part]
    if not is_dataclass(part):
        return part
    hidden = _STORAGE.get(type(part), frozenset())
    return {
        each.name: _said(getattr(part, each.name))
        for each in fields(part)
        if each.name not in hidden
        and (each.default is MISSING or getattr(part, each.name) != each.default)
    }
