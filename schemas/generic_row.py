"""Reading rows of another layout through their vtables, a batch at a time.

An older plan had fewer fields, a newer one has more, and `flatc` places the same fields elsewhere:
all are FlatBuffers of one append-only table, so each field is found by its slot. The work is done
for all rows at once on one (n, width) byte matrix; every offset and length is checked against the
row's own end before it is used, and a row that fails any check is reported as not good.

Symbols: `n` rows, `W` bytes of the longest row, `C` capacity of a vector.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.layout import ENTITY_SLOT, NUMPY, TRAILER, TRAILER_BYTES, RowLayout
from schemas.rows import Rows

Bytes2D = NDArray[np.uint8]
Places = NDArray[np.int64]
Mask = NDArray[np.bool_]


class _Reader:
    """Gathers little-endian numbers at a place of its own in each row; out of bounds is not
    good.
    """

    def __init__(self, raw: list[bytes]) -> None:
        self.ends = np.array([len(row) - TRAILER_BYTES for row in raw], np.int64)  # (n,)
        width = int(max(len(row) for row in raw)) + 8
        self.data: Bytes2D = np.frombuffer(
            b"".join(row.ljust(width, b"\0") for row in raw), np.uint8
        ).reshape(len(raw), width)  # (n, W)
        self.good: Mask = self.ends >= 8  # (n,)
        self.lines = np.arange(len(raw))[:, None]  # (n, 1)

    def bytes_at(self, places: Places, count: int, wanted: Mask) -> Bytes2D:
        """(n, count) bytes from each row's place; rows that are wanted and out of bounds go bad."""
        inside = (places >= 0) & (places + count <= self.ends)
        self.good &= inside | ~wanted
        safe = np.where(inside & wanted, places, 0)
        columns = np.minimum(safe[:, None] + np.arange(count), self.data.shape[1] - 1)
        return np.ascontiguousarray(self.data[self.lines, columns])  # (n, count) u8

    def numbers_at(self, places: Places, dtype: np.dtype[Any], wanted: Mask) -> NDArray[Any]:
        """(n,) numbers of `dtype`."""
        return self.bytes_at(places, dtype.itemsize, wanted).view(dtype)[:, 0]


def read_foreign(layout: RowLayout, raw: list[bytes], rows: Rows) -> Mask:
    """Fill `rows` (empty rows, in the order of `raw`) from rows of another layout.

    raw: n stored values with trailers, checksums already verified. Returns (n,) bool, True where a
    row could be read whole and belongs to the entity that `rows.entity_ids` names.
    """
    reader = _Reader(raw)
    everywhere: Mask = np.ones(len(raw), bool)
    start = reader.numbers_at(np.zeros(len(raw), np.int64), np.dtype("<u4"), everywhere)
    start = start.astype(np.int64)
    distance = reader.numbers_at(start, np.dtype("<i4"), everywhere)
    vtable = start - distance
    vtable_bytes = reader.numbers_at(vtable, np.dtype("<u2"), everywhere).astype(np.int64)

    def slot_place(slot: int) -> tuple[Places, Mask]:
        """Where the slot's inline bytes begin, and which rows have the slot at all."""
        entry = 4 + 2 * slot
        has = vtable_bytes >= entry + 2
        offset = reader.numbers_at(vtable + entry, np.dtype("<u2"), has).astype(np.int64)
        return start + offset, has & (offset > 0)

    place, has = slot_place(ENTITY_SLOT)
    entity = reader.numbers_at(place, np.dtype("<i8"), has)
    reader.good &= np.where(has, entity, 0) == rows.entity_ids
    _read_groups(layout, reader, slot_place, rows)
    _read_vectors(layout, reader, slot_place, rows)
    trailer = np.frombuffer(b"".join(row[-TRAILER_BYTES:] for row in raw), TRAILER)
    rows.epoch[:], rows.offset[:] = trailer["epoch"], trailer["offset"]
    rows.newest_ms[:] = trailer["newest_ms"]
    return reader.good


def _read_groups(layout: RowLayout, reader: _Reader, slot_place: Any, rows: Rows) -> None:
    dtypes = {plan.name: NUMPY[plan.dtype] for plan in layout.fields}
    for group in layout.groups:
        place, has = slot_place(group.slot)
        for name, offset in group.offsets.items():
            column = reader.numbers_at(place + offset, dtypes[name], has)
            rows.values[name][has] = column[has]
        packed = reader.bytes_at(place + group.present_at, group.present_bytes, has)
        bits = np.unpackbits(packed, axis=1, bitorder="little").view(bool)  # (n, bits)
        for name, bit in group.bits.items():
            rows.present[name][:] = bits[:, bit] & has


def _read_vectors(layout: RowLayout, reader: _Reader, slot_place: Any, rows: Rows) -> None:
    for plan in layout.vectors:
        dtype = NUMPY[plan.dtype]
        place, has = slot_place(layout.slots[plan.name])
        distance = reader.numbers_at(place, np.dtype("<u4"), has).astype(np.int64)
        begin = place + distance
        lengths = reader.numbers_at(begin, np.dtype("<u4"), has).astype(np.int64)
        lengths = np.where(has, lengths, 0)
        reader.good &= (lengths <= plan.capacity) & (
            begin + 4 + lengths * dtype.itemsize <= np.where(has, reader.ends, begin + 4)
        )
        lengths = np.where(reader.good, lengths, 0)
        filled = lengths > 0
        # Read the whole capacity, then blank what lies behind the length: the row may end there.
        room = min(plan.capacity * dtype.itemsize, reader.data.shape[1])
        columns = begin[:, None] + 4 + np.arange(room)
        columns = np.clip(np.where(filled[:, None], columns, 0), 0, reader.data.shape[1] - 1)
        raw = np.ascontiguousarray(reader.data[reader.lines, columns])  # (n, room) u8
        whole = raw[:, : room // dtype.itemsize * dtype.itemsize].view(dtype)
        inside = np.arange(whole.shape[1]) < lengths[:, None]  # (n, <=C) bool
        rows.values[plan.name][:, : whole.shape[1]] = np.where(inside, whole, 0)
        rows.lengths[plan.name][:] = lengths
        rows.present[plan.name] &= has
