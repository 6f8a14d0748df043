"""What changes from one plan to the next, for people who are about to apply it.

A pure function of two plans: `encore plan` shows it beforehand, `encore apply` shows the same.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from catalog.durations import text
from catalog.wording import made_of
from schemas.fingerprint import feature_meaning, slot_meaning
from schemas.plan import FeaturePlan, Plan, ServicePlan, ViewPlan

What = Literal["added", "changed", "removed"]

_STARTS: Final = {
    "streamed": "starts empty and fills from the worker's position on"
    " (`encore backfill {name}` fills in its past)",
    "batch": "starts empty until `encore load`",
}


@dataclass(frozen=True)
class FeatureChange:
    """One feature, `view.feature`. details: what is different, empty for added and removed."""

    what: What
    name: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class ViewChange:
    """One view. generations: before and after, 0 where there is none; rows of a generation are
    kept apart by their keys. reasons: why a new one is needed, or what else changes in place."""

    what: What
    name: str
    kind: str
    before: int
    after: int
    reasons: tuple[str, ...] = ()

    @property
    def new_generation(self) -> bool:
        """Rows of the view start empty."""
        return self.what == "changed" and self.before != self.after


@dataclass(frozen=True)
class ServiceChange:
    """One service. Where its fingerprint changes, the models made for the old one are retired.

    before, after: fingerprints, "" where there is none. Slots are named as in the plan, crosses
    among them. crossed: of the changed ones the crosses that a feature changed under, by
    "view.feature"; the cross itself is as it was. in_place: what else serving obeys and is another.
    """

    what: What
    name: str
    before: str
    after: str
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    reordered: bool = False
    crossed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    in_place: tuple[str, ...] = ()

    @property
    def retires(self) -> bool:
        """Models made for what it was fit no more."""
        return self.before not in ("", self.after)


@dataclass(frozen=True)
class Difference:
    """What changes from one plan to the next.

    before, after: their versions; 0 where there was no plan, equal for equal plans.
    """

    before: int
    after: int
    features: tuple[FeatureChange, ...] = ()
    views: tuple[ViewChange, ...] = ()
    services: tuple[ServiceChange, ...] = ()

    @property
    def empty(self) -> bool:
        """Nothing was declared anew."""
        return self.before == self.after


def difference(before: Plan | None, after: Plan) -> Difference:
    """What `after` changes; `before` None is a first plan."""
    held = before if before is not None else Plan(0, 0, (), ())
    old, new = _by_name(held.views), _by_name(after.views)
    return Difference(
        held.version,
        after.version,
        tuple(change for name in _names(old, new) for change in _features(name, old, new)),
        tuple(change for name in _names(old, new) for change in _view(name, old, new, held)),
        tuple(_services(held, after)),
    )


def _by_name(things: Iterable[Any]) -> dict[str, Any]:
    return {thing.name: thing for thing in things}


def _names(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return sorted({*old, *new})


# --- features -------------------------------------------------------------------------------


def _features(
    name: str, old: Mapping[str, ViewPlan], new: Mapping[str, ViewPlan]
) -> list[FeatureChange]:
    before = _by_name(old[name].features) if name in old else {}
    after = _by_name(new[name].features) if name in new else {}
    changes = []
    for feature in _names(before, after):
        where = f"{name}.{feature}"
        if feature not in before:
            changes.append(FeatureChange("added", where))
        elif feature not in after:
            changes.append(FeatureChange("removed", where))
        else:
            details = _feature_details((old[name], before[feature]), (new[name], after[feature]))
            if details:
                changes.append(FeatureChange("changed", where, details))
    return changes


def _feature_details(
    before: tuple[ViewPlan, FeaturePlan], after: tuple[ViewPlan, FeaturePlan]
) -> tuple[str, ...]:
    (old_view, old), (new_view, new) = before, after
    found = []
    if old.window_ms != new.window_ms:
        found.append(f"window {text(old.window_ms)} → {text(new.window_ms)}")
    for name in ("dtype", "kind", "capacity"):
        if getattr(old, name) != getattr(new, name):
            found.append(f"{name} {getattr(old, name)} → {getattr(new, name)}")
    was, is_now = feature_meaning(old_view, old.name), feature_meaning(new_view, new.name)
    if was.pop("written", None) != is_now.pop("written", None):
        found.append("transform when written")
    hops = [meaning.get("window", {}).pop("hop_ms", 0) for meaning in (was, is_now)]
    if hops[0] != hops[1] and all(hops):
        found.append(f"hop {text(hops[0])} → {text(hops[1])}")
    for told in ("dtype", "kind", "capacity", "tiles"):
        was.pop(told, None)
        is_now.pop(told, None)
    if was != is_now:
        words = made_of(old_view, old), made_of(new_view, new)
        found.append(" → ".join(words) if words[0] != words[1] else "what it is computed from")
    return tuple(found)


# --- views ----------------------------------------------------------------------------------


def _view(
    name: str, old: Mapping[str, ViewPlan], new: Mapping[str, ViewPlan], held: Plan
) -> list[ViewChange]:
    if name not in old:
        after = new[name]
        used = held.retired.get(name, 0)
        reasons: tuple[str, ...] = (f"the name was used up to generation {used}",) if used else ()
        return [ViewChange("added", name, after.kind, 0, after.generation, reasons)]
    before = old[name]
    if name not in new:
        return [ViewChange("removed", name, before.kind, before.generation, 0)]
    after = new[name]
    if before == after:
        return []
    reasons = tuple(_state_reasons(before, after))
    if before.generation == after.generation and before.ttl_ms != after.ttl_ms:
        reasons = (*reasons, f"ttl {text(before.ttl_ms)} → {text(after.ttl_ms)}")
    return [ViewChange("changed", name, after.kind, before.generation, after.generation, reasons)]


def _state_reasons(before: ViewPlan, after: ViewPlan) -> Iterable[str]:
    """What of the stored state or values is another."""
    for name in ("kind", "entity", "source", "timestamp_field", "join_key", "push_source"):
        if getattr(before, name) != getattr(after, name):
            yield f"{name} {getattr(before, name) or 'none'} → {getattr(after, name) or 'none'}"
    if before.string_keys != after.string_keys:
        yield f"string keys {_listed(before.string_keys)} → {_listed(after.string_keys)}"
    for name in ("skew_ms", "future_ms"):
        if getattr(before, name) != getattr(after, name):
            yield f"{name} {text(getattr(before, name))} → {text(getattr(after, name))}"
    same = before.generation == after.generation
    stored = {"field": "stored field", "ring": "ring", "sequence": "sequence", "ids": "stored ids"}
    for part, label in stored.items():
        old, new = _parts(before, part), _parts(after, part)
        if same and part != "field":
            continue  # computed when a row is read
        for what, chosen in (
            ("new", [name for name in new if name not in old]),
            ("changed", [name for name in new if name in old and new[name] != old[name]]),
            ("dropped", [] if same else [name for name in old if name not in new]),
        ):
            if chosen:
                yield f"{what} {label} {', '.join(sorted(chosen))}"


def _parts(view: ViewPlan, part: str) -> dict[str, Any]:
    """What a row of the view holds, by name, in one respect."""
    in_rings = {name for a in view.accumulators for name in (a.field, a.head)}
    in_rings |= {name for s in view.sequences for name in (*s.fields, s.time_field)}
    match part:
        case "field":
            return {f.name: (f.dtype, f.capacity) for f in view.fields if f.name not in in_rings}
        case "ring":
            dtypes = {field.name: field.dtype for field in view.fields}
            return {a.field: (a, dtypes.get(a.field)) for a in view.accumulators}
        case "sequence":
            return {s.name: s for s in view.sequences}
        case _:
            return dict(view.written)


# --- services -------------------------------------------------------------------------------


def _services(held: Plan, after: Plan) -> Iterable[ServiceChange]:
    old, new = _by_name(held.services), _by_name(after.services)
    for name in _names(old, new):
        before = _slots(old[name], held) if name in old else {}
        later = _slots(new[name], after) if name in new else {}
        if name not in old:
            yield ServiceChange("added", name, "", new[name].fingerprint)
        elif name not in new:
            yield ServiceChange("removed", name, old[name].fingerprint, "", removed=tuple(before))
        elif old[name] != new[name]:
            kept = [slot for slot in before if slot in later]
            changed = [slot for slot in kept if before[slot] != later[slot]]
            yield ServiceChange(
                "changed",
                name,
                old[name].fingerprint,
                new[name].fingerprint,
                added=tuple(slot for slot in later if slot not in before),
                changed=tuple(changed),
                removed=tuple(slot for slot in before if slot not in later),
                reordered=kept != [slot for slot in later if slot in before],
                crossed=_crossed([(slot, before[slot], later[slot]) for slot in changed]),
                in_place=tuple(_obeyed(old[name], new[name])),
            )


def _obeyed(before: ServicePlan, after: ServicePlan) -> Iterable[str]:
    """What a service is told beside its slots, and is another."""
    if before.required != after.required:
        yield f"required views {_listed(before.required)} → {_listed(after.required)}"
    if before.fingerprint != after.fingerprint:
        return  # the slots tell what is read
    gone = [name for name in before.features if name not in after.features]
    come = [name for name in after.features if name not in before.features]
    for what, chosen in (("more", come), ("no more", gone)):
        if chosen:
            yield f"{what} read by the service's name: {', '.join(chosen)}"
    if not gone and not come and before.features != after.features:
        yield "features read by the service's name in another order"


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _crossed(changed: Iterable[tuple[str, Any, Any]]) -> dict[str, tuple[str, ...]]:
    """The crosses that are as they were, by the feature that is not. changed: slots, before and
    after."""
    found: dict[str, tuple[str, ...]] = {}
    for name, before, after in changed:
        if len(before["of"]) != 2 or before["slot"] != after["slot"]:
            continue
        for old, new in zip(before["of"], after["of"], strict=True):
            if old != new:
                operand = f"{new['view']}.{new['name']}"
                found[operand] = tuple(dict.fromkeys((*found.get(operand, ()), name)))
    return found


def _slots(service: ServicePlan, plan: Plan) -> dict[str, Any]:
    """Everything a service's tensors are made of, by name, in order, with what is behind it."""
    slots = (*service.slots("user"), *service.sequences, *service.slots("item"))
    views = _by_name(plan.views)
    return {slot.name: slot_meaning(views, slot) for slot in slots}


# --- for people -----------------------------------------------------------------------------

_SIGNS: Final[dict[What, str]] = {"added": "+", "changed": "~", "removed": "-"}


def lines(found: Difference, filled: Collection[str] = ()) -> list[str]:
    """The difference as text, one change a line; a single line where there is none.

    filled: views whose new generation a backfill fills.
    """
    if found.empty:
        return [f"plan version {found.before}: nothing changes"]
    head = f"plan version {found.before or 'none'} → {found.after}"
    parts = [head, *map(_feature_line, found.features)]
    parts += [line for view in found.views for line in _view_lines(view, view.name in filled)]
    parts += [line for service in found.services for line in _service_lines(service)]
    return parts


def _feature_line(change: FeatureChange) -> str:
    details = f"  ({'; '.join(change.details)})" if change.details else ""
    return f"  {_SIGNS[change.what]} feature {change.name}{details}"


def _view_lines(change: ViewChange, filled: bool) -> list[str]:
    empty = _STARTS.get(change.kind, "").format(name=change.name)
    starts = "filled from history" if filled else empty
    sign, why = _SIGNS[change.what], f": {'; '.join(change.reasons)}" if change.reasons else ""
    if change.what == "removed":
        return [f"  {sign} view {change.name}@{change.before}: its rows are read no more"]
    if change.what == "added":
        return [f"  {sign} view {change.name}@{change.after}{why}; {starts}"]
    if change.new_generation:
        head = f"  {sign} view {change.name}@{change.before} → @{change.after}, a new generation"
        return [f"{head}{why}; {starts}"]
    return [f"  {sign} view {change.name}@{change.after}, in place{why}"]


def _service_lines(change: ServiceChange) -> list[str]:
    sign = _SIGNS[change.what]
    marks = " → ".join(dict.fromkeys(mark for mark in (change.before, change.after) if mark))
    kept = "" if change.before != change.after else ", models stay"
    found = [f"  {sign} service {change.name} ({marks}{kept})"]
    if change.what == "changed":
        for what in ("added", "changed", "removed"):
            slots = getattr(change, what)
            if slots:
                found.append(f"      slots {what}: {', '.join(slots)}")
        for operand, crosses in change.crossed.items():
            found.append(f"      crosses changed by {operand}: {', '.join(crosses)}")
        if change.reordered:
            found.append("      slots in another order")
        found += [f"      {told}" for told in change.in_place]
    return found
