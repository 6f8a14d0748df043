"""Rows: batches of values ↔ bytes. `schemas/layout.py` documents the bytes.

Symbols: `n` rows, `C` capacity of a vector.

Rows of our own layout are encoded by filling a template and decoded as one strided numpy array.
Rows of another layout (an older plan, or written by `flatc`) go through `schemas/generic_row.py`. A
row whose checksum, length or entity id is wrong is CORRUPT and decodes as an empty row: never a
wrong value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np
from isal.isal_zlib import crc32  # 5 times as fast as zlib on rows of this size
from numpy.typing import NDArray

from schemas.errors import RowError
from schemas.generic_row import read_foreign
from schemas.layout import TRAILER, TRAILER_BYTES, RowLayout
from schemas.rows import NO_OFFSET as NO_OFFSET
from schemas.rows import TOMBSTONE_MS as TOMBSTONE_MS
from schemas.rows import Rows as Rows
from schemas.rows import empty_rows as empty_rows
from schemas.status import Status
from schemas.stored import ABSENT, Run, StoredRows

FENCE_START: Final = -24  # of the row's bytes: u32 epoch, i64 offset
FENCE_END: Final = -12
FENCE_SLICE: Final = slice(FENCE_START, FENCE_END)
FENCE: Final = np.dtype([("epoch", "<u4"), ("offset", "<i8")])

#: crc32 of any bytes followed by their own crc32, little endian: one call checks a whole row.
CRC_RESIDUE: Final = 0x2144DF1C
_LEAST_BYTES: Final = TRAILER_BYTES + 8  # of any row
_TOGETHER: Final = 64  # rows that are looked at together where some of a run are damaged
_PRESENT: Final = int(Status.PRESENT)  # numpy takes microseconds to compare with an enum's member


def encode_rows(layout: RowLayout, rows: Rows) -> list[bytes]:
    """One `bytes` a row, all of `layout.size`. Equal rows give equal bytes.

    What lies behind a vector's length or under a null is written as zero. Raises RowError for a
    length beyond its vector's capacity.
    """
    n = len(rows)
    if n == 0:
        return []
    out = np.empty(n, layout.record)
    out.view(np.uint8).reshape(n, layout.size)[:] = layout.template  # (n, size)
    out["entity_id"] = rows.entity_ids
    for group in layout.groups:
        bits = np.zeros((n, group.present_bytes * 8), bool)  # (n, bits)
        for name, bit in group.bits.items():
            bits[:, bit] = rows.present[name]
        out[f"present.{group.number}"] = np.packbits(bits, axis=1, bitorder="little")
    for plan in layout.scalars:
        out[plan.name] = np.where(rows.present[plan.name], rows.values[plan.name], 0)  # (n,)
    for plan in layout.vectors:
        lengths = np.where(rows.present[plan.name], rows.lengths[plan.name], 0)  # (n,)
        if lengths.max() > plan.capacity or lengths.min() < 0:
            raise RowError(
                f"{layout.view}.{plan.name}",
                required=f"a length of 0 to {plan.capacity}",
                got=f"{int(lengths.max())}",
            )
        out[f"{plan.name}.length"] = lengths
        inside = np.arange(plan.capacity) < lengths[:, None]  # (n, C) bool
        out[plan.name] = np.where(inside, rows.values[plan.name], 0)  # (n, C)
    trailer = out["trailer"]
    trailer["epoch"], trailer["offset"] = rows.epoch, rows.offset
    trailer["newest_ms"] = rows.newest_ms
    return _sealed(out, layout.size)


def _sealed(out: NDArray[np.void], size: int) -> list[bytes]:
    """Cut the buffer into rows, each with its checksum at the end. out: (n,), written to."""
    n = len(out)
    whole = out.view(np.uint8).reshape(n, size)  # (n, size)
    sums = np.fromiter(map(crc32, whole[:, :-4]), "<u4", n)  # (n,)
    whole[:, -4:] = sums.view(np.uint8).reshape(n, 4)
    rows: list[bytes] = out.view(f"V{size}").tolist()
    return rows


def seal(front: bytes, layout_id: int, fence: tuple[int, int], newest_ms: int) -> bytes:
    """A FlatBuffer of any origin (`flatc`, another language) → a row: adds the trailer.

    layout_id: 0 where the writer does not lay fields out as `RowLayout` does.
    """
    trailer = np.zeros(1, TRAILER)
    trailer["layout"], trailer["newest_ms"] = layout_id, newest_ms
    trailer["epoch"], trailer["offset"] = fence
    row = front + trailer.tobytes()[:-4]
    return row + crc32(row).to_bytes(4, "little")


def decode_rows(
    layout: RowLayout, raw: Sequence[bytes | None], entity_ids: NDArray[np.int64]
) -> tuple[Rows, NDArray[np.uint8]]:
    """Stored values → rows, and the Status of each: PRESENT, NOT_FOUND (None) or CORRUPT.

    raw: n stored values, fastest as `StoredRows`. entity_ids: (n,) i64, whose rows they should be.
    Rows that are not PRESENT are empty; a tombstone is NOT_FOUND and keeps its fence. The arrays
    are fresh and may be written to.
    """
    if isinstance(raw, StoredRows):
        out, status, foreign = _triage_runs(layout, raw)
    else:
        out, status, foreign = _triage(layout, raw)
    other = out["trailer"]["layout"] != layout.layout_id  # (n,)
    if np.count_nonzero(other):
        foreign = sorted([*foreign, *np.flatnonzero(other).tolist()])
    wrong = out["entity_id"] != entity_ids  # (n,)
    lengths = _lengths(layout, out)  # (n, V)
    beyond = lengths > layout.capacities  # (n, V)
    if np.count_nonzero(beyond):
        wrong |= beyond.any(axis=1)
    if foreign or np.count_nonzero(wrong):
        wrong &= status == _PRESENT
        wrong[foreign] = False
        _blank(layout, out, lengths, foreign)
        _blank(layout, out, lengths, wrong)
        status[wrong] = Status.CORRUPT
        out["entity_id"] = entity_ids
    rows = _columns(layout, out, lengths)
    if foreign:
        _merge_foreign(layout, raw, foreign, rows, status)
    dead = rows.newest_ms == TOMBSTONE_MS  # (n,)
    if np.count_nonzero(dead):
        status[dead & (rows.epoch > 0)] = Status.NOT_FOUND
    return rows, status


def _triage(
    layout: RowLayout, raw: Sequence[bytes | None]
) -> tuple[NDArray[np.void], NDArray[np.uint8], list[int]]:
    """n rows of our own size, the status of each, and which rows are of another size.

    Almost always all rows that are there are whole: that is asked of all of them in C first.
    """
    size, empty = layout.size, layout.empty
    parts = [empty if row is None else row for row in raw]
    status = np.zeros(len(raw), np.uint8)  # (n,) PRESENT
    if None in raw:
        status[[row is None for row in raw]] = Status.NOT_FOUND
    foreign: list[int] = []
    if not ({*map(len, parts)} <= {size} and {*map(crc32, parts)} <= {CRC_RESIDUE}):
        for index, row in enumerate(parts):
            if len(row) == size and crc32(row) == CRC_RESIDUE:
                continue
            parts[index] = empty
            if _is_foreign(row, size):
                foreign.append(index)
            else:
                status[index] = Status.CORRUPT
    out: NDArray[np.void] = np.frombuffer(bytearray().join(parts), layout.record, len(raw))
    return out, status, foreign


def _is_foreign(row: bytes, size: int) -> bool:
    """Whether a row of another size than ours is whole."""
    return len(row) != size and len(row) >= _LEAST_BYTES and crc32(row) == CRC_RESIDUE


def _triage_runs(
    layout: RowLayout, raw: StoredRows
) -> tuple[NDArray[np.void], NDArray[np.uint8], list[int]]:
    """As `_triage`, a run at a time."""
    n, size = len(raw), layout.size
    out = np.empty(n, layout.record)  # (n,)
    whole = out.view(np.uint8).reshape(n, size)  # (n, size)
    status = np.zeros(n, np.uint8)  # (n,) PRESENT
    foreign: list[int] = []
    for run in raw.runs:
        rows = slice(run.first, run.first + run.many)
        if run.size == size:
            whole[rows] = raw.matrix(run)
            if damaged := damaged_rows(layout, raw, run):
                status[damaged], whole[damaged] = Status.CORRUPT, layout.template
            continue
        whole[rows] = layout.template
        if run.size == ABSENT:
            status[rows] = Status.NOT_FOUND
            continue
        damaged = damaged_rows(None, raw, run)
        status[damaged] = Status.CORRUPT
        foreign += sorted({*range(rows.start, rows.stop)}.difference(damaged))
    return out, status, foreign


def run_is_whole(layout: RowLayout, raw: StoredRows, run: Run) -> bool:
    """Whether the checksums of a run of a layout's size are right: one call for all of them.

    A crc is linear, and a row followed by its own crc is a multiple of the polynomial up to a
    constant. So n whole rows have the crc that n empty rows have, whatever is in them; n rows of
    which some are damaged have it with a probability of 2^-32, as one damaged row has its own.
    Damage that is alike in several rows does not cancel either: the polynomial would have to divide
    a sum of powers of x.
    """
    end = run.start + run.stride * (run.many - 1) + run.size
    if run.many == 1:
        return crc32(raw.buffer[run.start : end]) == CRC_RESIDUE
    gap = raw.buffer[run.start + run.size : run.start + run.stride].tobytes()
    return crc32(raw.buffer[run.start : end]) == _crc_of_empty(layout.empty, gap, run.many)


def damaged_rows(layout: RowLayout | None, raw: StoredRows, run: Run) -> list[int]:
    """The places of a run's values that are no whole rows, ascending.

    layout: of the run's size, None where no layout is. Then each row is looked at; otherwise some
    together, so that a few damaged rows among many cost little.
    """
    if run.size < _LEAST_BYTES:
        return [*range(run.first, run.first + run.many)]
    if layout is not None and run_is_whole(layout, raw, run):
        return []
    rows, damaged = raw.matrix(run), []
    for at in range(0, run.many, _TOGETHER):
        many = min(_TOGETHER, run.many - at)
        some = Run(run.first + at, many, run.start + at * run.stride, run.stride, run.size)
        if layout is None or not run_is_whole(layout, raw, some):
            sums = map(crc32, rows[at : at + many])
            damaged += [each for each, of in enumerate(sums, some.first) if of != CRC_RESIDUE]
    return damaged


@lru_cache(maxsize=4096)
def _crc_of_empty(empty: bytes, gap: bytes, count: int) -> int:
    """The crc of `count` empty rows with a gap between each two."""
    return crc32((gap + empty) * (count - 1), crc32(empty))


def _lengths(layout: RowLayout, out: NDArray[np.void]) -> NDArray[np.uint32]:
    """The length of each vector as it is written. Returns (n, V)."""
    words = out.view("<u4").reshape(len(out), layout.size // 4)  # (n, words)
    return words.take(layout.length_words, axis=1)


def _blank(
    layout: RowLayout, out: NDArray[np.void], lengths: NDArray[np.uint32], which: Any
) -> None:
    """Overwrite those rows with the empty row."""
    out.view(np.uint8).reshape(len(out), layout.size)[which] = layout.template
    lengths[which] = 0


def _columns(layout: RowLayout, out: NDArray[np.void], lengths: NDArray[np.uint32]) -> Rows:
    """Strided views into `out`; presence bits and lengths, (n, V), as arrays of their own."""
    present: dict[str, NDArray[np.bool_]] = {}
    for group in layout.groups:
        bits = np.unpackbits(
            out[f"present.{group.number}"], axis=1, bitorder="little", count=len(group.bits)
        )  # (n, bits)
        present.update(zip(group.bits, bits.view(bool).T, strict=True))
    trailer = out["trailer"]
    signed = lengths.view(np.int32).T  # (V, n)
    return Rows(
        out["entity_id"],
        {name: out[name] for name in layout.names},
        dict(zip(layout.vector_names, signed, strict=True)),
        present,
        trailer["epoch"],
        trailer["offset"],
        trailer["newest_ms"],
    )


def _merge_foreign(
    layout: RowLayout,
    raw: Sequence[bytes | None],
    foreign: list[int],
    rows: Rows,
    status: NDArray[np.uint8],
) -> None:
    """Overwrite the foreign places of `rows` with what the generic reader finds there."""
    at = np.array(foreign)
    ids = rows.entity_ids[at]
    found = empty_rows(layout, ids)
    good = read_foreign(layout, [raw[index] or b"" for index in foreign], found)
    status[at] = np.where(good, Status.PRESENT, Status.CORRUPT)
    keep = at[good]
    for name, column in found.values.items():
        rows.values[name][keep] = column[good]
        rows.present[name][keep] = found.present[name][good]
    for name, lengths in found.lengths.items():
        rows.lengths[name][keep] = lengths[good]
    rows.epoch[keep], rows.offset[keep] = found.epoch[good], found.offset[good]
    rows.newest_ms[keep] = found.newest_ms[good]


def fence_bytes(epoch: int, offset: int) -> bytes:
    """The 12 bytes that compare-and-set compares."""
    return epoch.to_bytes(4, "little") + offset.to_bytes(8, "little", signed=True)


def fences_bytes(epoch: NDArray[np.uint32], offset: NDArray[np.int64]) -> list[bytes]:
    """`fence_bytes` of each row. epoch, offset: (n,)."""
    fences = np.empty(len(epoch), FENCE)
    fences["epoch"], fences["offset"] = epoch, offset
    made: list[bytes] = fences.view(f"V{FENCE.itemsize}").tolist()
    return made


def read_fence(raw: bytes | None) -> tuple[int, int] | None:
    """(epoch, offset) of a stored value, None where absent. Raises RowError when too short."""
    if raw is None:
        return None
    if len(raw) < TRAILER_BYTES:
        raise RowError("row", required=f"{TRAILER_BYTES} bytes or more", got=f"{len(raw)} bytes")
    fence = raw[FENCE_SLICE]
    return int.from_bytes(fence[:4], "little"), int.from_bytes(fence[4:], "little", signed=True)
