"""The plan: everything the run time knows of the declared features, as plain data.

`encore apply` compiles the Feast registry into one `Plan`; workers, servers, audit and training
read nothing else. The JSON form of a plan is `feature_repo/plan.lock.json` and the value of the
store's plan key. Unknown keys are refused: a plan of a newer encore is an error, never half
understood.

Symbols: a *field* is stored in a row; a *feature* is what a reader gets (a stored field, or a value
finalised from state at `now_ms`); a *slot* is one int-ID column of a tensor.
"""

from __future__ import annotations

import json
from dataclasses import field
from functools import cached_property
from typing import Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from schemas.errors import PlanError
from schemas.names import PLAN_KEY

PLAN_FORMAT: Final = 1

Dtype = Literal["bool", "i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64", "f32", "f64"]
Side = Literal["user", "item"]
RingFunction = Literal["count", "sum", "squares", "min", "max", "distinct"]
FeatureKind = Literal[
    "field",
    "window",
    "mean",
    "std",
    "min",
    "max",
    "distinct",
    "decayed_sum",
    "ratio",
    "sequence",
    "age",
    "last",
]
Comparison = Literal["==", "!=", "<", "<=", ">", ">=", "in"]
CrossOperator = Literal["contains", "share", "position", "ratio", "difference", "equals", "dot"]
Scope = Literal["user", "item", "pair"]
STRICT: Final = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class FieldPlan:
    """One stored field. Ids are append-only and never reused.

    capacity: 0 for a scalar, else the most elements the vector holds.
    group: the struct that holds a scalar's value, and the presence bit of a scalar or a vector.
        Structs never change: fields added by a later apply get a new group.
    """

    id: int
    name: str
    dtype: Dtype
    capacity: int = 0
    group: int = 0


@dataclass(frozen=True, config=STRICT)
class ConditionPlan:
    """One column of an action compared with a constant; `in` with several, ascending.

    An action that does not know the column meets no condition on it, not even `!=`.
    """

    column: str
    op: Comparison
    values: tuple[int, ...]


@dataclass(frozen=True, config=STRICT)
class AccumulatorPlan:
    """A ring of tiles: what is kept of the actions that match, `width` numbers a tile.

    field: the stored vector field, `tiles * width` numbers; which numbers says `aggregation.tiles`.
    head: the stored i64 scalar field with the ring's newest tile (shared by all rings of one hop).
    function: `count` of the actions (u16 or u32, saturating), `sum` of a column (i64), `squares`
        of it (i64, two words), its `min` and `max` (u64), the smallest hashes of its `distinct`
        values (u64).
    action: the action types that match, joined by "|" in their order, or "*" for any.
    column: the ACTION column; "" for a count of all. Where it is named, actions that do not know
        it are left out.
    where: conditions that must all hold.
    """

    field: str
    head: str
    function: RingFunction
    action: str
    column: str
    hop_ms: int
    tiles: int
    where: tuple[ConditionPlan, ...] = ()
    width: int = 1


@dataclass(frozen=True, config=STRICT)
class SequencePlan:
    """The newest `capacity` matching actions, newest first; ties in time ordered by the columns.

    time_field: the stored i64 vector of event times, ms.
    action, where: which actions match, as of a ring.
    columns / fields: the kept ACTION columns and the stored vector field of each, in one order.
    gaps: every matching action is an entry, with UNKNOWN (`schemas.actions`) where its edge did not
        know a column; otherwise an action that does not know all columns is left out.
    """

    name: str
    action: str
    columns: tuple[str, ...]
    fields: tuple[str, ...]
    time_field: str
    capacity: int
    gaps: bool = False
    where: tuple[ConditionPlan, ...] = ()


@dataclass(frozen=True, config=STRICT)
class FeaturePlan:
    """What a reader gets; `aggregation.finalise` says how, and what where there is nothing.

    kind: `field`, a stored field as it is. Over the last `tiles` tiles of rings up to tile(now_ms):
        `window`, the total of a count or sum; `mean` of (sum, count); `std` of (squares, sum,
        count); `min`, `max`; `distinct`; `decayed_sum` of a count or sum. `ratio` of two features
        of the view. `sequence`, one column of a sequence without the entries after now_ms; `age`,
        of each of its entries the ms that have passed at now_ms; `last`, the newest of them.
    source: name of the field, the ring's field, the sequence's column or time field, or of a ratio
        the feature above. others: the further fields, or the feature below, in that order.
    window_ms: the declared window, for people; 0 where there is none.
    half_life_ms: of a decayed sum, after which a tile weighs half. within_ms: of `last`, how old
        the entry may be, 0 for any age. prior, weight: of a ratio,
        (a + prior * weight) / (b + weight).
    """

    name: str
    dtype: Dtype
    kind: FeatureKind
    source: str
    capacity: int = 0
    tiles: int = 0
    window_ms: int = 0
    others: tuple[str, ...] = ()
    half_life_ms: int = 0
    within_ms: int = 0
    prior: float = 0.0
    weight: float = 0.0

    @property
    def sources(self) -> tuple[str, ...]:
        """All that the feature is computed from: `source`, then `others`."""
        return (self.source, *self.others)


@dataclass(frozen=True, config=STRICT)
class TransformPlan:
    """How a value becomes an id in [0, size). 0 missing, 1 out of vocabulary or range, then 2….

    hash: 2 + xxh3_64(8 little-endian bytes of the int64, seed) mod buckets.
    vocab: 2 + position in `values` (int64, or strings of a batch source hashed when written).
    boundaries: 2 + number of boundaries <= value (log_buckets compiles to this).
    identity: 2 + value for 0 <= value < buckets, else 1.
    stored: the row already holds the id (a categorical string, transformed when written).
    sentinels: values that mean missing, besides null and NaN.
    """

    kind: Literal["hash", "vocab", "boundaries", "identity", "stored"]
    size: int
    buckets: int = 0
    seed: int = 0
    values: tuple[int, ...] | tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()
    sentinels: tuple[float, ...] = ()


@dataclass(frozen=True, config=STRICT)
class SlotPlan:
    """One int-ID column. `table` names the embedding table; slots with one table share its ids."""

    name: str
    view: str
    feature: str
    transform: TransformPlan
    table: str


@dataclass(frozen=True, config=STRICT)
class SequenceSlotPlan:
    """One (1, L) int-ID sequence of the user, newest first, 0-padded, with its length.

    aligned: slots of one view with one name here are of the same actions, position by position, and
    equally long; "" for a sequence that stands alone.
    """

    name: str
    view: str
    feature: str
    capacity: int
    transform: TransformPlan
    table: str
    aligned: str = ""


@dataclass(frozen=True, config=STRICT)
class OperandPlan:
    """A feature that a cross reads. sentinels: values of a scalar that mean missing."""

    view: str
    feature: str
    sentinels: tuple[float, ...] = ()


@dataclass(frozen=True, config=STRICT)
class CrossPlan:
    """One int-ID column computed from two features: `aggregation.crosses` says how.

    scope: `user` where both operands are the user's, `item` where both are the candidate's, `pair`
        where it takes both. prior, weight: of a ratio, (a + prior * weight) / (b + weight).
    """

    name: str
    scope: Scope
    operator: CrossOperator
    operands: tuple[OperandPlan, OperandPlan]
    transform: TransformPlan
    table: str
    prior: float = 0.0
    weight: float = 0.0


@dataclass(frozen=True, config=STRICT)
class ViewPlan:
    """One feature view.

    entity: whose id keys the rows. kind: `batch` rows hold values, `streamed` rows hold state.
    generation: part of the row key; any change of a streamed view's state takes a new one.
    written: for a batch view, transforms applied when a row is written {field: transform}.
    join_key: of a batch view keyed by several entities their join keys, sorted, commas between.
    string_keys: the join keys whose values are strings. push_source: the name that pushes to the
        view go by, besides its own; "" where none is declared.
    source: topic of a streamed view, path of a batch view's Parquet source.
    skew_ms / future_ms: an action older than sent_ms - skew_ms is late, newer than sent_ms +
        future_ms is from the future; both go to a side output.
    """

    name: str
    entity: Side
    kind: Literal["batch", "streamed"]
    generation: int
    fields: tuple[FieldPlan, ...]
    features: tuple[FeaturePlan, ...]
    source: str
    timestamp_field: str = ""
    join_key: str = ""
    ttl_ms: int = 0
    skew_ms: int = 0
    future_ms: int = 0
    accumulators: tuple[AccumulatorPlan, ...] = ()
    sequences: tuple[SequencePlan, ...] = ()
    written: dict[str, TransformPlan] = field(default_factory=dict)
    string_keys: tuple[str, ...] = ()
    push_source: str = ""

    @property
    def key(self) -> tuple[str, int]:
        """(name, generation): whose rows these are."""
        return self.name, self.generation

    @property
    def join_keys(self) -> tuple[str, ...]:
        """The columns that key the rows, sorted; one for all but composite batch views."""
        return tuple(self.join_key.split(","))

    def feature(self, name: str) -> FeaturePlan:
        """The feature of that name; KeyError names the view."""
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(f"{self.name}.{name}")


@dataclass(frozen=True, config=STRICT)
class ServicePlan:
    """One feature service: the slots of its tensors, in order.

    `slots` has the columns of a side's tensor: the features, then the crosses (user_slots (1, Su),
    item_slots (N, Si)); sequences are (1, L) each. `fingerprint` is over all that changes a tensor
    (`schemas.fingerprint`), so a model trained for it can be checked, and an unrelated feature
    never retires the model. `features` is what was chosen, as "view:feature", for clients that
    read features by the service's name. `required` names the views without whose rows a request is
    refused.
    """

    name: str
    user_slots: tuple[SlotPlan, ...]
    item_slots: tuple[SlotPlan, ...]
    sequences: tuple[SequenceSlotPlan, ...]
    fingerprint: str  # 16 hex digits
    crosses: tuple[CrossPlan, ...] = ()
    features: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    def crosses_of(self, scope: Scope) -> tuple[CrossPlan, ...]:
        """The crosses of one scope, in the declared order."""
        return tuple(cross for cross in self.crosses if cross.scope == scope)

    def slots(self, side: Side) -> tuple[SlotPlan | CrossPlan, ...]:
        """The columns of a side's tensor, in order: crosses last, and of the candidate's those of
        the pair behind those that need no user."""
        if side == "user":
            return self.user_slots + self.crosses_of("user")
        return self.item_slots + self.crosses_of("item") + self.crosses_of("pair")

    def views(self, plan: Plan, side: Side) -> tuple[ViewPlan, ...]:
        """The views this service reads for one side, in order of first use."""
        slots = self.item_slots if side == "item" else self.user_slots + self.sequences
        found = [plan.view(slot.view) for slot in slots]
        for cross in self.crosses:
            operands = [plan.view(operand.view) for operand in cross.operands]
            found += [view for view in operands if view.entity == side]
        return tuple({view.name: view for view in found}.values())


@dataclass(frozen=True, config=STRICT)
class Plan:
    """All views and services. `version` counts publications; `parent` is the one it replaced.

    retired: the last generation of each view that is no longer declared; should its name come back,
    it begins at the next, so that no row of the old view is read as one of the new.
    """

    version: int
    parent: int
    views: tuple[ViewPlan, ...]
    services: tuple[ServicePlan, ...]
    format: int = PLAN_FORMAT
    retired: dict[str, int] = field(default_factory=dict)

    @cached_property
    def _views(self) -> dict[str, ViewPlan]:
        return {view.name: view for view in self.views}

    def view(self, name: str) -> ViewPlan:
        """The view of that name, else PlanError with the known names."""
        try:
            return self._views[name]
        except KeyError:
            known = ", ".join(self._views) or "no views"
            raise PlanError(
                "plan.views", required=f"one of {known}", got=repr(name), do="run `encore apply`"
            ) from None

    def service(self, name: str) -> ServicePlan:
        """The service of that name, else PlanError with the known names."""
        for service in self.services:
            if service.name == name:
                return service
        known = ", ".join(service.name for service in self.services) or "no services"
        raise PlanError(
            "plan.services", required=f"one of {known}", got=repr(name), do="run `encore apply`"
        )


_ADAPTER: Final[TypeAdapter[Plan]] = TypeAdapter(Plan)


def dump_plan(plan: Plan) -> str:
    """The lock file's text: sorted keys, two-space indent, trailing newline; stable to the byte.

    What is at its default is left out, so that a plan which does not use what a later encore adds
    reads the same. Defaults are part of the format: none ever changes.
    """
    data = _ADAPTER.dump_python(plan, mode="json", exclude_defaults=True)
    return json.dumps(data | {"format": plan.format}, indent=2, sort_keys=True) + "\n"


def load_plan(text: str | bytes, where: str = "plan.lock.json") -> Plan:
    """The inverse of `dump_plan`. Raises PlanError for anything that is not a plan of this
    format.
    """
    try:
        plan = _ADAPTER.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise PlanError(
            f"{where}{'.' + place if place else ''}",
            required=f"a plan of format {PLAN_FORMAT}",
            got=first["msg"],
            do="run `encore apply` with this version of encore",
        ) from None
    if plan.format != PLAN_FORMAT:
        raise PlanError(
            f"{where}.format",
            required=str(PLAN_FORMAT),
            got=str(plan.format),
            do="run `encore apply` with this version of encore",
        )
    return plan


def load_published(text: str | None) -> Plan:
    """The plan that a store holds. text: of its PLAN_KEY.

    Raises PlanError where none is published, and as `load_plan`.
    """
    where = f"store.{PLAN_KEY}"
    if text is None:
        raise PlanError(where, required="a published plan", got="none", do="run `encore apply`")
    return load_plan(text, where)
