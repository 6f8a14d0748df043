"""What a network is built from: plain data, derived from a service plan, kept in `model.json`.

Training and serving build the same module from the same spec; a package whose inputs differ from
those of the served feature service is refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from schemas.errors import PackageError, PlanError
from schemas.plan import CrossPlan, ServicePlan, SlotPlan
from schemas.ranklog import TASKS

STRICT: Final = ConfigDict(extra="forbid")
Kind = Literal["two_tower", "fine"]
KINDS: Final[tuple[Kind, ...]] = ("two_tower", "fine")

Width = Annotated[int, Field(ge=1, le=4096)]
Rate = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class SequenceInput:
    """One sequence. query: index of the item slot that shares its table, -1 where there is none.
    group: sequences of one group are of the same actions, position by position; "" for one alone.
    """

    name: str
    table: int
    capacity: Annotated[int, Field(ge=1)]
    query: int = -1
    group: str = ""


@dataclass(frozen=True, config=STRICT)
class Attended:
    """Aligned sequences that a candidate attends as one.

    places: of the sequences among the inputs. queries: the item slots that ask.
    """

    places: tuple[int, ...]
    queries: tuple[int, ...]


@dataclass(frozen=True, config=STRICT)
class InputSpec:
    """The tensors of one feature service.

    tables: (name, size) of each embedding table. user_slots, item_slots: per slot, the index of
    its table, crosses last. pairs: how many of the last item slots cross the candidate with the
    user; the fine network takes them, an item's tower cannot.
    """

    tables: tuple[tuple[str, int], ...]
    user_slots: tuple[int, ...]
    item_slots: tuple[int, ...]
    sequences: tuple[SequenceInput, ...]
    pairs: Annotated[int, Field(ge=0)] = 0

    @property
    def tower_slots(self) -> tuple[int, ...]:
        """The item slots that depend on the candidate alone."""
        return self.item_slots[: len(self.item_slots) - self.pairs]

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The places of the sequences that are aligned; one that stands alone is a group."""
        groups: dict[str, list[int]] = {}
        for place, sequence in enumerate(self.sequences):
            groups.setdefault(sequence.group or f"alone {place}", []).append(place)
        return tuple(map(tuple, groups.values()))

    @property
    def attended(self) -> tuple[Attended, ...]:
        """Each group of sequences of which an item slot shares a table; the others are pooled
        only."""
        found = []
        for places in self.groups:
            queries = dict.fromkeys(self.sequences[place].query for place in places)
            asking = tuple(query for query in queries if query >= 0)
            if asking:
                found.append(Attended(places, asking))
        return tuple(found)


@dataclass(frozen=True, config=STRICT)
class TowerSpec:
    """A two-tower network: dot product of a user and an item vector of `dimension` elements."""

    inputs: InputSpec
    kind: Literal["two_tower"] = "two_tower"
    embedding: Width = 16
    hidden: tuple[Width, ...] = (64,)
    dimension: Annotated[int, Field(ge=2, le=1024)] = 32
    dropout: Rate = 0.0


@dataclass(frozen=True, config=STRICT)
class FineSpec:
    """A multi-task fine network: target attention, shared bottom, shared and own experts."""

    inputs: InputSpec
    kind: Literal["fine"] = "fine"
    embedding: Width = 16
    hidden: Width = 96
    attention: Width = 16
    shared_experts: Annotated[int, Field(ge=1, le=64)] = 2
    expert: Width = 32
    dropout: Rate = 0.0
    tasks: tuple[str, ...] = TASKS


NetworkSpec = TowerSpec | FineSpec
_ADAPTER: Final[TypeAdapter[NetworkSpec]] = TypeAdapter(
    Annotated[TowerSpec | FineSpec, Field(discriminator="kind")]
)


def input_spec(service: ServicePlan) -> InputSpec:
    """The inputs of a service. Raises PlanError where slots of one table differ in size."""
    sizes: dict[str, int] = {}
    user_slots, item_slots = service.slots("user"), service.slots("item")
    for slot in (*user_slots, *item_slots, *service.sequences):
        size = sizes.setdefault(slot.table, slot.transform.size)
        if size != slot.transform.size:
            raise PlanError(
                f"{service.name}.{slot.name}.table",
                required=f"{size} ids as the other slots of {slot.table!r}",
                got=str(slot.transform.size),
                do="declare one transform for slots that share a table",
            )
    index = {name: place for place, name in enumerate(sizes)}
    queries: dict[str, int] = {}
    for place, item_slot in enumerate(item_slots):
        queries.setdefault(item_slot.table, place)

    def tables_of(slots: tuple[SlotPlan | CrossPlan, ...]) -> tuple[int, ...]:
        return tuple(index[slot.table] for slot in slots)

    sequences = tuple(
        SequenceInput(
            each.name,
            index[each.table],
            each.capacity,
            queries.get(each.table, -1),
            f"{each.view}:{each.aligned}" if each.aligned else "",
        )
        for each in service.sequences
    )
    tables = tuple(sizes.items())
    pairs = len(service.crosses_of("pair"))
    return InputSpec(tables, tables_of(user_slots), tables_of(item_slots), sequences, pairs)


def dump_spec(spec: NetworkSpec) -> dict[str, Any]:
    """The spec as JSON data."""
    dumped: dict[str, Any] = _ADAPTER.dump_python(spec, mode="json")
    return dumped


def load_spec(data: Any, where: str) -> NetworkSpec:
    """The inverse of `dump_spec`. Raises PackageError."""
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in (where, *first["loc"]))
        raise PackageError(
            place, required="a network spec of this version", got=first["msg"], do="train again"
        ) from None
