"""Where each field of a view's rows lies: one fixed layout for all rows of one plan.

A row is a plain FlatBuffer followed by a trailer of 28 bytes. Front to back, little endian:

    u32            root offset
    table          i32 distance to the vtable; then, placed so that little padding is needed:
                     slot 0      entity_id i64
                     each group  one struct: its scalars, widest first, then presence bytes
                     each vector u32 offset
    vectors        u32 length, then room for `capacity` elements; unused room is zero
    vtable         u16 size, u16 table size, u16 offset of each table slot; it lies wherever it
                   saves most padding: before the table, before a vector, or after the last
    trailer        u32 layout id, u32 epoch, i64 offset, i64 newest event time in ms,
                   u32 crc32 of all bytes before it

All fields are always there, so each has one offset, and a batch of rows is one strided numpy array.
A vector's FlatBuffer length is its true length: any language reads just the elements that are
there. Table slots are numbered in the order in which field ids first need them (a vector its own, a
scalar its group's), and field ids are append-only; therefore slots are, too.

Presence bits are numbered by field id within the group, low bit first; a set bit means not null.
"""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError
from schemas.plan import Dtype, FieldPlan, ViewPlan

LAYOUT_FORMAT: Final = 1

NUMPY: Final[dict[Dtype, np.dtype[Any]]] = {
    "bool": np.dtype("?"),
    **{name: np.dtype(f"<{name[0]}{int(name[1:]) // 8}") for name in ("i16", "i32", "i64")},
    **{name: np.dtype(f"<{name[0]}{int(name[1:]) // 8}") for name in ("u16", "u32", "u64")},
    "i8": np.dtype("i1"),
    "u8": np.dtype("u1"),
    "f32": np.dtype("<f4"),
    "f64": np.dtype("<f8"),
}

_FBS_NAMES: Final[dict[Dtype, str]] = {
    "bool": "bool",
    "i8": "byte",
    "u8": "ubyte",
    "i16": "short",
    "u16": "ushort",
    "i32": "int",
    "u32": "uint",
    "i64": "long",
    "u64": "ulong",
    "f32": "float",
    "f64": "double",
}

TRAILER: Final = np.dtype(
    [("layout", "<u4"), ("epoch", "<u4"), ("offset", "<i8"), ("newest_ms", "<i8"), ("crc", "<u4")]
)
TRAILER_BYTES: Final = TRAILER.itemsize
ENTITY_SLOT: Final = 0


@dataclass(frozen=True, slots=True)
class Group:
    """One struct of the table: its scalars' offsets inside it, its presence bytes and bits."""

    number: int
    slot: int
    size: int
    align: int
    offsets: dict[str, int]
    present_at: int
    present_bytes: int
    bits: dict[str, int]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """A compiled layout.

    size: bytes of a whole row, trailer included. record: the row as one numpy structured dtype,
    with a field for each scalar, `<vector>` and `<vector>.length`, `present.<group>`, `entity_id`
    and `trailer`. scalars: the fields with one value a row; vectors: those with up to `capacity`.
    names, vector_names: of all fields, and of the vectors.
    template: (size,) uint8, a row with all fields zero or empty and null; empty: the
    same with its checksum. slots: table slot of each vector. length_words: (V,) where each vector's
    length lies, in u4 words from the front; capacities: (V,) u4. fbs: the schema that any language
    generates its reader from.
    """

    view: str
    layout_id: int
    size: int
    fields: tuple[FieldPlan, ...]
    scalars: tuple[FieldPlan, ...]
    vectors: tuple[FieldPlan, ...]
    names: tuple[str, ...]
    vector_names: tuple[str, ...]
    groups: tuple[Group, ...]
    slots: dict[str, int]
    record: np.dtype[Any]
    template: NDArray[np.uint8] = field(repr=False)
    empty: bytes = field(repr=False)
    length_words: NDArray[np.intp] = field(repr=False)
    capacities: NDArray[np.uint32] = field(repr=False)
    fbs: str = field(repr=False)


@lru_cache(maxsize=256)
def _layout(name: str, fields: tuple[FieldPlan, ...]) -> RowLayout:
    _check(name, fields)
    groups, slots, slot_count = _assign_slots(fields)
    vtable_bytes = 4 + 2 * slot_count
    place = min(
        (_place(fields, groups, slots, vtable_bytes, at) for at in range(-1, len(slots) + 1)),
        key=lambda candidate: candidate.end,
    )
    places, vectors, table_start = place.inline, place.vectors, place.table
    size = _align(place.end, 4) + TRAILER_BYTES
    record = _record(fields, groups, places, vectors, size)
    layout_id = _layout_id(fields)
    template = _template(record, layout_id, slots, places, vectors)
    inline = [places[slot] - table_start for slot in range(slot_count)]
    vtable = struct.pack(
        f"<{2 + slot_count}H", vtable_bytes, place.table_end - table_start, *inline
    )
    for at, part in (
        (0, struct.pack("<I", table_start)),
        (table_start, struct.pack("<i", table_start - place.vtable)),
        (place.vtable, vtable),
    ):
        template[at : at + len(part)] = np.frombuffer(part, np.uint8)
    front = template[:-4].tobytes()
    wide = tuple(plan for plan in fields if plan.capacity > 0)
    return RowLayout(
        view=name,
        layout_id=layout_id,
        size=size,
        fields=fields,
        scalars=tuple(plan for plan in fields if plan.capacity == 0),
        vectors=wide,
        names=tuple(plan.name for plan in fields),
        vector_names=tuple(plan.name for plan in wide),
        groups=groups,
        slots=slots,
        record=record,
        template=template,
        empty=front + struct.pack("<I", zlib.crc32(front)),
        length_words=np.array([vectors[plan.name][0] // 4 for plan in wide], np.intp),  # (V,)
        capacities=np.array([plan.capacity for plan in wide], np.uint32),  # (V,)
        fbs=_fbs(name, fields, groups, slots),
    )


def layout_of(view: ViewPlan) -> RowLayout:
    """The layout of a view's rows; compiled once per set of fields. Raises PlanError."""
    return _layout(view.name, view.fields)


def _align(position: int, to: int) -> int:
    return -(-position // to) * to


def _check(name: str, fields: tuple[FieldPlan, ...]) -> None:
    ids = [plan.id for plan in fields]
    if ids != sorted(set(ids)):
        raise PlanError(f"{name}.fields", required="ids that ascend", got=str(ids))
    for plan in fields:
        if not plan.name.isidentifier():
            raise PlanError(f"{name}.fields", required="identifiers", got=repr(plan.name))
        if plan.capacity < 0:
            raise PlanError(f"{name}.{plan.name}", required="capacity >= 0", got=str(plan.capacity))


def _assign_slots(
    fields: tuple[FieldPlan, ...],
) -> tuple[tuple[Group, ...], dict[str, int], int]:
    """Table slots in order of first need. Returns (groups, {vector: slot}, number of slots)."""
    group_slots: dict[int, int] = {}
    slots: dict[str, int] = {}
    count = ENTITY_SLOT + 1
    for plan in fields:
        if plan.group not in group_slots:
            group_slots[plan.group] = count
            count += 1
        if plan.capacity > 0:
            slots[plan.name] = count
            count += 1
    groups = tuple(
        _group(number, slot, tuple(plan for plan in fields if plan.group == number))
        for number, slot in group_slots.items()
    )
    return groups, slots, count


def _group(number: int, slot: int, members: tuple[FieldPlan, ...]) -> Group:
    scalars = [plan for plan in members if plan.capacity == 0]
    scalars.sort(key=lambda plan: (-NUMPY[plan.dtype].itemsize, plan.id))
    offsets: dict[str, int] = {}
    position = 0
    for plan in scalars:
        offsets[plan.name] = position
        position += NUMPY[plan.dtype].itemsize
    align = max((NUMPY[plan.dtype].itemsize for plan in scalars), default=1)
    present_bytes = -(-len(members) // 8)
    bits = {plan.name: index for index, plan in enumerate(members)}
    size = _align(position + present_bytes, align)
    return Group(number, slot, size, align, offsets, position, present_bytes, bits)


def _place_inline(
    position: int, groups: tuple[Group, ...], slots: dict[str, int]
) -> tuple[dict[int, int], int]:
    """Absolute place of each slot's inline bytes: always the widest that fits without padding."""
    waiting = [(8, 8, ENTITY_SLOT)]
    waiting += [(group.align, group.size, group.slot) for group in groups]
    waiting += [(4, 4, slot) for slot in slots.values()]
    waiting.sort(key=lambda item: (-item[0], item[2]))
    places: dict[int, int] = {}
    while waiting:
        fitting = next((item for item in waiting if position % item[0] == 0), None)
        if fitting is None:
            position += 1
            continue
        waiting.remove(fitting)
        places[fitting[2]] = position
        position += fitting[1]
    return places, position


@dataclass(frozen=True, slots=True)
class _Places:
    """Absolute places: the table and its end, the vtable, each slot's inline bytes, each vector's
    (length, elements), and the end of all.
    """

    table: int
    table_end: int
    vtable: int
    inline: dict[int, int]
    vectors: dict[str, tuple[int, int]]
    end: int


def _place(
    fields: tuple[FieldPlan, ...],
    groups: tuple[Group, ...],
    slots: dict[str, int],
    vtable_bytes: int,
    vtable_at: int,
) -> _Places:
    """Where all lies. vtable_at: before which vector the vtable goes; -1 before the table.

    Vectors go widest elements first.
    """
    vtable_start = 4
    table = 4 if vtable_at >= 0 else _align(4 + vtable_bytes, 4)
    inline, table_end = _place_inline(table + 4, groups, slots)
    position = table_end
    vectors: dict[str, tuple[int, int]] = {}
    wide_first = sorted(
        (plan for plan in fields if plan.capacity > 0),
        key=lambda plan: (-NUMPY[plan.dtype].itemsize, plan.id),
    )
    for index, plan in enumerate(wide_first):
        if index == vtable_at:
            vtable_start = _align(position, 2)
            position = vtable_start + vtable_bytes
        width = NUMPY[plan.dtype].itemsize
        data = _align(_align(position, 4) + 4, max(width, 4))
        vectors[plan.name] = (data - 4, data)
        position = data + width * plan.capacity
    if vtable_at == len(wide_first):
        vtable_start = _align(position, 2)
        position = vtable_start + vtable_bytes
    return _Places(table, table_end, vtable_start, inline, vectors, position)


def _record(
    fields: tuple[FieldPlan, ...],
    groups: tuple[Group, ...],
    places: dict[int, int],
    vectors: dict[str, tuple[int, int]],
    size: int,
) -> np.dtype[Any]:
    dtypes = {plan.name: NUMPY[plan.dtype] for plan in fields}
    spec: dict[str, tuple[Any, int]] = {"entity_id": (np.dtype("<i8"), places[ENTITY_SLOT])}
    for group in groups:
        at = places[group.slot]
        for name, offset in group.offsets.items():
            spec[name] = (dtypes[name], at + offset)
        present = np.dtype(("u1", (group.present_bytes,)))
        spec[f"present.{group.number}"] = (present, at + group.present_at)
    for plan in fields:
        if plan.capacity > 0:
            length_at, data_at = vectors[plan.name]
            spec[f"{plan.name}.length"] = (np.dtype("<u4"), length_at)
            spec[plan.name] = (np.dtype((dtypes[plan.name], (plan.capacity,))), data_at)
    spec["trailer"] = (TRAILER, size - TRAILER_BYTES)
    return np.dtype(
        {
            "names": list(spec),
            "formats": [form for form, _ in spec.values()],
            "offsets": [offset for _, offset in spec.values()],
            "itemsize": size,
        }
    )


def _template(
    record: np.dtype[Any],
    layout_id: int,
    slots: dict[str, int],
    places: dict[int, int],
    vectors: dict[str, tuple[int, int]],
) -> NDArray[np.uint8]:
    """(size,) uint8 with vector offsets and the trailer's layout id set, all else zero."""
    template = np.zeros(record.itemsize, np.uint8)
    for name, slot in slots.items():
        at = places[slot]
        distance = struct.pack("<I", vectors[name][0] - at)
        template[at : at + 4] = np.frombuffer(distance, np.uint8)
    trailer = template[-TRAILER_BYTES:].view(TRAILER)
    trailer["layout"] = layout_id
    trailer["offset"] = -1
    return template


def _layout_id(fields: tuple[FieldPlan, ...]) -> int:
    """A number for the layout: equal exactly where every byte means the same. Never 0."""
    meaning = [[plan.id, plan.dtype, plan.capacity, plan.group] for plan in fields]
    return zlib.crc32(json.dumps([LAYOUT_FORMAT, meaning]).encode()) or 1


def _fbs(
    name: str, fields: tuple[FieldPlan, ...], groups: tuple[Group, ...], slots: dict[str, int]
) -> str:
    """The schema text. A row is this table, then a trailer of 28 bytes that readers may ignore."""
    title = "".join(part.capitalize() for part in name.split("_"))
    by_name = {plan.name: plan for plan in fields}
    lines = [f"// Rows of the view {name}; a trailer of {TRAILER_BYTES} bytes follows the buffer."]
    lines += ["namespace encore.rows;", ""]
    members: dict[int, str] = {ENTITY_SLOT: "entity_id: long"}
    for group in groups:
        lines.append(f"struct {title}G{group.number} {{")
        lines += [f"  {member}: {_FBS_NAMES[by_name[member].dtype]};" for member in group.offsets]
        lines += [_present_line(group, index) for index in range(group.present_bytes)]
        lines += ["}", ""]
        members[group.slot] = f"g{group.number}: {title}G{group.number}"
    room = {slots[plan.name]: f"  // at most {plan.capacity}" for plan in fields if plan.capacity}
    for vector, slot in slots.items():
        members[slot] = f"{vector}: [{_FBS_NAMES[by_name[vector].dtype]}]"
    lines.append(f"table {title} {{")
    lines += [f"  {members[slot]} (id: {slot});{room.get(slot, '')}" for slot in sorted(members)]
    lines += ["}", "", f"root_type {title};", ""]
    return "\n".join(lines)


def _present_line(group: Group, index: int) -> str:
    """A byte of presence bits, with what each bit stands for: readers take nulls from this."""
    bits = {bit: name for name, bit in group.bits.items()}
    here = range(8 * index, min(8 * index + 8, len(bits)))
    named = ", ".join(f"{1 << bit % 8} {bits[bit]}" for bit in here)
    return f"  present_{index}: ubyte;  // set where not null: {named}"
