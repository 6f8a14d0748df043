"""What compiling one view gives, before field ids and generations are numbered.

A draft is all that a declaration says; `catalog.numbering` lays it beside the previous plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from schemas.plan import (
    AccumulatorPlan,
    Dtype,
    FeaturePlan,
    SequencePlan,
    Side,
    TransformPlan,
    ViewPlan,
)


@dataclass(frozen=True)
class FieldDraft:
    """A stored field without an id. capacity: 0 for a scalar."""

    name: str
    dtype: Dtype
    capacity: int = 0


@dataclass(frozen=True)
class SlotDraft:
    """A feature that can be a slot.

    declared: the name a service uses. feature: the plan's feature (`tag_1` of a declared `tag`).
    ids: how values become ids, None where only `shares` says so. stored: the row holds the id.
    shares: (view, feature) whose table this one uses. length: of a sequence's tensor, 0 for a
    scalar slot. dtype: of the values, "string" where the row holds the id of a string. sentinels:
    more values that mean missing than those of `ids` or of what it shares. aligned: as in the plan.
    """

    declared: str
    feature: str
    dtype: str
    ids: TransformPlan | None
    stored: bool = False
    shares: tuple[str, str] | None = None
    length: int = 0
    sentinels: tuple[float, ...] = ()
    aligned: str = ""


@dataclass(frozen=True)
class ViewDraft:
    """A view. slots: by declared name; `key` is the slot of the entity's own id.

    join_key, string_keys, push_source: as in the plan.
    """

    name: str
    entity: Side
    join_key: str
    source: str
    ttl_ms: int
    streamed: bool
    fields: tuple[FieldDraft, ...]
    features: tuple[FeaturePlan, ...]
    declared: tuple[str, ...]
    slots: dict[str, tuple[SlotDraft, ...]]
    key: SlotDraft | None = None
    timestamp_field: str = ""
    skew_ms: int = 0
    future_ms: int = 0
    accumulators: tuple[AccumulatorPlan, ...] = ()
    sequences: tuple[SequencePlan, ...] = ()
    written: dict[str, TransformPlan] = field(default_factory=dict)
    string_keys: tuple[str, ...] = ()
    push_source: str = ""

    @property
    def composite(self) -> bool:
        """Whether several entities key the rows."""
        return "," in self.join_key

    def same_state(self, other: ViewPlan) -> bool:
        """Whether a plan's rows hold the state this draft computes."""
        fields = tuple(FieldDraft(each.name, each.dtype, each.capacity) for each in other.fields)
        mine = (self.entity, self.source, self.skew_ms, self.future_ms)
        theirs = (other.entity, other.source, other.skew_ms, other.future_ms)
        return (
            mine == theirs
            and set(self.fields) == set(fields)
            and self.accumulators == other.accumulators
            and self.sequences == other.sequences
        )
