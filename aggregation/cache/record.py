"""An item's cached form: what a request needs of its rows, in one record of whole cache lines.

    sequence   u8   even: the record is whole; odd: it is being written
    entity_id  i8
    from_ms    i8   its values and ids are those of any now in [from_ms, until_ms)
    until_ms   i8
    newest_ms  i8   newest event in any of its rows, 0 for none
    ids        i4[So]  the slots that no user has a part in
    values          a record of the item side's value block, `schemas.values`
    fences          FENCE of each view
    status     u1   of each view
    …               zero up to a multiple of 64 bytes

The stored rows lie elsewhere, end to end, each in the view's own layout: values at another time are
made of them. A row that is not there, or was corrupt, is all zero; the status tells which.

Symbols: n items, V item views, So own slots, W words of a record, R bytes of an item's rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

import aggregation
import schemas
from aggregation.block import SideBlock
from aggregation.cache.validity import NEVER, Spans, Times, Validity
from aggregation.program import ServiceProgram
from aggregation.tensors import Ids
from schemas.layout import TRAILER_BYTES, RowLayout, layout_of
from schemas.row import FENCE, Rows, decode_rows, encode_rows
from schemas.status import Status
from schemas.stored import ABSENT, Run, StoredRows
from schemas.values import value_features

FORMAT: Final = 1
LINE_BYTES: Final = 64
SEQUENCE: Final = 0  # words of a record
ENTITY: Final = 1
FROM: Final = 2
UNTIL: Final = 3
_PRESENT: Final = int(Status.PRESENT)
_CORRUPT: Final = int(Status.CORRUPT)

Raw = Sequence[bytes | None]
Array = NDArray[Any]
Records = NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Encoded:
    """n items, ready to be written. records: (n,) with sequence 0. rows: (n, R) u1.

    due_ms: (n,) when they are to be made again; NEVER also for what no cache can keep.
    """

    records: Records
    rows: NDArray[np.uint8]
    due_ms: Times


@dataclass(frozen=True, slots=True)
class _View:
    """start: of its rows among an item's."""

    layout: RowLayout
    validity: Validity
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.layout.size


class ItemCodec:
    """Rows → records → blocks, for the item side of one service. Immutable.

    dtype: of a record. row_bytes: R. identity: 16 hex digits, equal exactly where a record means
    the same: over the item side's plan and the code that computes it.
    """

    def __init__(self, program: ServiceProgram) -> None:
        self.program = program
        service, plan = program.service, program.plan
        features = value_features(plan, service, "item")
        self._views: list[_View] = []
        start = 0
        for view in program.item_views:
            names = {each.feature.name for each in features if each.view.name == view.name}
            self._views.append(_View(layout_of(view), Validity(view, names), start))
            start += layout_of(view).size
        self.row_bytes = start
        self.dtype = _record_dtype(program)
        self._nulls = len(features)
        of = (program.item_views, service.slots("item")[: program.own_slots], self.dtype.descr)
        said = repr((FORMAT, service.name, of, code_digest()))
        self.identity = hashlib.sha256(said.encode()).hexdigest()[:16]

    # --- rows → records ----------------------------------------------------------------------

    def encode(
        self,
        item_ids: NDArray[np.int64],
        raw: Raw,
        now_ms: int,
        rows: NDArray[np.uint8] | None = None,
    ) -> Encoded:
        """n items at now_ms. raw: (V * n,), what `program.item_keys` hold, fastest as `StoredRows`.
        rows: the same as `Encoded.rows`, where they are known.
        """
        n = len(item_ids)
        block = self.program.item_block(raw, item_ids, now_ms)
        records = np.zeros(n, self.dtype)  # (n,)
        known = rows is not None
        if rows is None:
            rows = np.zeros((n, self.row_bytes), np.uint8)  # (n, R)
        spans = Spans.unbounded(n)
        newest_ms = np.zeros(n, np.int64)  # (n,)
        for index, view in enumerate(self._views):
            part = raw[index * n : (index + 1) * n]
            decoded, status = decode_rows(view.layout, part, item_ids)
            spans.meet(view.validity(decoded, now_ms))
            np.maximum(newest_ms, decoded.newest_ms, out=newest_ms)
            if not known:
                own = rows[:, view.start : view.stop]
                _put_own_bytes(own, view.layout, part, decoded, status)
        records["entity_id"] = item_ids
        records["from_ms"], records["until_ms"] = spans.from_ms, spans.until_ms
        records["newest_ms"] = newest_ms
        records["ids"] = self.program.own_ids(block)
        records["values"], records["fences"] = block.values, block.fences
        records["status"] = block.status
        return Encoded(records, rows, np.where(spans.fleeting, NEVER, spans.until_ms))

    # --- records → what a request takes ------------------------------------------------------

    def block(self, records: Records, newest_ms: int | None = None) -> SideBlock:
        """Views of n records' memory as the item side's block. newest_ms: of all of them, where it
        is known."""
        if newest_ms is None:
            newest_ms = int(records["newest_ms"].max(initial=0))
        values, status, fences = records["values"], records["status"], records["fences"]
        return SideBlock(values, None, status, fences, newest_ms)

    def own_ids(self, records: Records) -> Ids:
        """(n, So) int32, a view."""
        ids: Ids = records["ids"]
        return ids

    def raw(self, rows: NDArray[np.uint8], status: NDArray[np.uint8]) -> StoredRows:
        """What the store held of n items, in the order of `program.item_keys`.

        rows: (n, R). status: (n, V). A corrupt row is b"", which is corrupt, too.
        """
        n, start = len(rows), 0
        runs, parts = [], []
        for index, view in enumerate(self._views):
            size = view.layout.size
            parts.append(rows[:, view.start : view.stop].reshape(-1))  # (n * size,)
            absent = np.where(status[:, index] == _CORRUPT, 0, ABSENT)  # (n,)
            sizes = np.where(self.there(rows, index), size, absent)  # (n,)
            firsts = np.flatnonzero(np.diff(sizes, prepend=-2)).tolist()
            for first, stop in zip(firsts, [*firsts[1:], n], strict=True):
                place = start + first * size
                held = int(sizes[first])
                runs.append(Run(index * n + first, stop - first, place, size, held))
            start += n * size
        return StoredRows(np.concatenate(parts), tuple(runs))

    def there(self, rows: NDArray[np.uint8], view: int) -> NDArray[np.bool_]:
        """Which items have a row of that view. rows: (n, R). Returns (n,)."""
        found: NDArray[np.bool_] = np.any(self.trailers(rows, view), axis=1)
        return found

    def trailers(self, rows: NDArray[np.uint8], view: int) -> NDArray[np.uint8]:
        """The trailers of one view's rows, zero where there is none. (n, TRAILER_BYTES), a view."""
        stop = self._views[view].stop
        return rows[:, stop - TRAILER_BYTES : stop]


def _record_dtype(program: ServiceProgram) -> np.dtype[np.void]:
    views = len(program.item_views)
    fields: list[Any] = [
        (name, "<i8") for name in ("sequence", "entity_id", "from_ms", "until_ms", "newest_ms")
    ]
    fields += [("ids", "<i4", (program.own_slots,)), ("values", program.item_dtype)]
    fields += [("fences", FENCE, (views,)), ("status", "u1", (views,))]
    size = np.dtype(fields).itemsize
    fields.append(("rest", "V", -(-size // LINE_BYTES) * LINE_BYTES - size))
    return np.dtype([field for field in fields if field != ("rest", "V", 0)])


def _put_own_bytes(
    out: NDArray[np.uint8], layout: RowLayout, raw: Raw, rows: Rows, status: NDArray[np.uint8]
) -> None:
    """Rows in the layout of the plan, zero where absent or corrupt. out: (n, layout.size)."""
    stored = raw if isinstance(raw, StoredRows) else StoredRows.of(raw)
    there = np.zeros(len(stored), bool)  # (n,)
    for run in stored.runs:
        some = slice(run.first, run.first + run.many)
        there[some] = run.size != ABSENT
        if run.size == layout.size:
            out[some] = stored.matrix(run)
    there &= status != _CORRUPT
    out[~there] = 0
    front = np.frombuffer(layout.layout_id.to_bytes(4, "little"), np.uint8)
    trailer = out.shape[1] - TRAILER_BYTES
    own = (out[:, trailer : trailer + len(front)] == front).all(axis=1)  # (n,)
    for at in np.flatnonzero(there & ~own).tolist():
        out[at] = np.frombuffer(encode_rows(layout, _one(rows, at))[0], np.uint8)


def _one(rows: Rows, at: int) -> Rows:
    some = slice(at, at + 1)
    return Rows(
        rows.entity_ids[some],
        {name: values[some] for name, values in rows.values.items()},
        {name: lengths[some] for name, lengths in rows.lengths.items()},
        {name: present[some] for name, present in rows.present.items()},
        rows.epoch[some],
        rows.offset[some],
        rows.newest_ms[some],
    )


@cache
def code_digest() -> str:
    """A digest of the modules that turn rows into values and ids: in another release rows may
    mean other ones."""
    digest = hashlib.sha256()
    for package in (aggregation, schemas):
        for place in sorted(package.__path__):
            for path in sorted(Path(place).rglob("*.*")):
                if path.suffix in (".py", ".c", ".h"):
                    digest.update(path.read_bytes())
    return digest.hexdigest()
