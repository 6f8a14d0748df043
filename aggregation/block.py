"""One side of a service: the rows of its entities → one value block.

Symbols: n entities, V views of the side, k features of the block, L capacity of a vector feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.finalise import Features, Finaliser
from aggregation.native.library import Kernels
from aggregation.native.rows import side_kernel
from schemas.layout import RowLayout, layout_of
from schemas.names import row_keys
from schemas.plan import Plan, ServicePlan, Side
from schemas.row import FENCE, NO_OFFSET, decode_rows
from schemas.status import FAILED, Status
from schemas.stored import RowKeys, StoredRows
from schemas.values import (
    LENGTH_SUFFIX,
    NULL_FIELD,
    Block,
    pack_nulls,
    value_dtype,
    value_features,
)

Array = NDArray[Any]
Mask = NDArray[np.bool_]

NO_FENCE: Final = np.array((0, NO_OFFSET), FENCE)
_FEW: Final = 0.5  # of all entities: if the kernel leaves more, numpy is as fast with all of them
# Plain integers: numpy takes microseconds to compare with an enum's member.
_PRESENT: Final = int(Status.PRESENT)
_FIRST_FAILED: Final = int(min(FAILED))  # PRESENT, NOT_FOUND and STALE lie below


@dataclass(frozen=True, slots=True)
class SideBlock:
    """A side's block of n entities.

    values: (n,). null: (n, k) bool, the block's null bitmap unpacked, None where it is not. status:
    (n, V) u1 Status. fences: (n, V) FENCE, (0, -1) where no row was read. newest_ms: newest event
    time in any row, 0 for none.
    """

    values: Block
    null: Mask | None
    status: NDArray[np.uint8]
    fences: Array
    newest_ms: int


@dataclass(frozen=True, slots=True)
class _ViewProgram:
    """One view of a side. columns: (index in the null bitmap, block field, feature) of each.

    vectors: (block field, feature) of those that have a length.
    """

    layout: RowLayout
    finaliser: Finaliser
    columns: tuple[tuple[int, str, str], ...]
    vectors: tuple[tuple[str, str], ...]


class SideProgram:
    """The compiled program of one side. Immutable; safe to share between threads.

    kernel: the same in C, None where numpy computes.

    library: the kernels to compute with; numpy does without. Raises PlanError for a side the plan
    cannot compute.
    """

    def __init__(
        self, plan: Plan, service: ServicePlan, side: Side, library: Kernels | None
    ) -> None:
        features = value_features(plan, service, side)
        self.dtype = value_dtype(plan, service, side)
        self.views = service.views(plan, side)
        self._width = len(features)
        programs = []
        for view in self.views:
            columns = tuple(
                (index, each.name, each.feature.name)
                for index, each in enumerate(features)
                if each.view.name == view.name
            )
            vectors = tuple(
                (name, feature) for _, name, feature in columns if self.dtype[name].shape
            )
            finaliser = Finaliser(view, {feature for _, _, feature in columns})
            programs.append(_ViewProgram(layout_of(view), finaliser, columns, vectors))
        self._programs = tuple(programs)
        self.kernel = side_kernel(library, self.views, features, self.dtype)

    def keys(self, entity_ids: list[int]) -> list[str]:
        """The store keys of n entities' rows: all of the first view, then of the next. (V * n,)."""
        keys: list[str] = []
        for view in self.views:
            keys += row_keys(view.name, view.generation, entity_ids)
        return keys

    def row_keys(self, entity_ids: NDArray[np.int64]) -> list[RowKeys]:
        """The same as arrays, one a view: what `read_rows` takes. entity_ids: (n,)."""
        return [RowKeys(view.name, view.generation, entity_ids) for view in self.views]

    def failed(self, n: int, status: Status) -> SideBlock:
        """The block when the rows could not be read: every feature null."""
        values = np.zeros(n, self.dtype)
        null = np.ones((n, self._width), bool)  # (n, k)
        values[NULL_FIELD] = pack_nulls(null)
        fences = np.full((n, len(self.views)), NO_FENCE)  # (n, V)
        return SideBlock(values, null, np.full(fences.shape, status, np.uint8), fences, 0)

    def block(
        self, raw: Sequence[bytes | None], entity_ids: NDArray[np.int64], now_ms: int
    ) -> SideBlock:
        """Stored rows → values at now_ms. raw: what `keys(entity_ids)` hold, in that order, fastest
        as `StoredRows`."""
        if self.kernel is not None:
            stored = raw if isinstance(raw, StoredRows) else StoredRows.of(raw)
            made = self.kernel(stored, entity_ids, now_ms)
            if made is not None:
                values, left = made
                if left is None:
                    return SideBlock(*values)
                if len(left) <= _FEW * len(entity_ids):
                    return self._with_left(SideBlock(*values), stored, entity_ids, now_ms, left)
        return self._looked_at(raw, entity_ids, now_ms)

    def _with_left(
        self,
        block: SideBlock,
        raw: StoredRows,
        entity_ids: NDArray[np.int64],
        now_ms: int,
        left: NDArray[np.intp],
    ) -> SideBlock:
        """A block of the kernel, and the entities at `left`, (m,), that it left. Writes to it."""
        n, places = len(entity_ids), left.tolist()
        rows = [raw[view * n + at] for view in range(len(self.views)) for at in places]
        others = self._looked_at(rows, entity_ids[left], now_ms)
        assert block.null is not None
        block.values[left], block.null[left] = others.values, others.null
        block.status[left], block.fences[left] = others.status, others.fences
        return replace(block, newest_ms=max(block.newest_ms, others.newest_ms))

    def _looked_at(
        self, raw: Sequence[bytes | None], entity_ids: NDArray[np.int64], now_ms: int
    ) -> SideBlock:
        """`block` without the kernel."""
        n = len(entity_ids)
        values = np.zeros(n, self.dtype)  # (n,)
        null = np.zeros((n, self._width), bool)  # (n, k)
        status = np.empty((n, len(self.views)), np.uint8)  # (n, V)
        fences = np.empty(status.shape, FENCE)  # (n, V)
        epochs, offsets = fences["epoch"], fences["offset"]
        newest_ms = 0
        for index, program in enumerate(self._programs):
            rows, found = decode_rows(program.layout, raw[index * n : (index + 1) * n], entity_ids)
            features = program.finaliser(rows, now_ms)
            if features.expired is not features.never:
                # A row beyond its TTL answers as one that is not there; its fence is logged as
                # read.
                found[features.expired & (found == _PRESENT)] = Status.NOT_FOUND
            _fill(program, features, values, null)
            if np.count_nonzero(found):
                _null_failed(program, found >= _FIRST_FAILED, null)
            status[:, index] = found
            epochs[:, index], offsets[:, index] = rows.epoch, rows.offset
            newest_ms = max(newest_ms, int(rows.newest_ms.max(initial=0)))
        values[NULL_FIELD] = pack_nulls(null)
        return SideBlock(values, null, status, fences, newest_ms)


def _fill(program: _ViewProgram, features: Features, values: Block, null: Mask) -> None:
    """Copy a view's features into its columns."""
    for at, name, feature in program.columns:
        values[name] = features.values[feature]  # (n,) or (n, L)
        missing = features.null[feature]
        if missing is not features.never:
            null[:, at] = missing
    for name, feature in program.vectors:
        values[name + LENGTH_SUFFIX] = features.lengths[feature]


def _null_failed(program: _ViewProgram, failed: Mask, null: Mask) -> None:
    """Of failed rows, (n,), all is null.

    They and absent rows were finalised as empty rows: zero throughout, and a batch view's features
    null, so that only the nulls of failed rows are left.
    """
    places = np.array([at for at, _, _ in program.columns], np.intp)
    null[np.ix_(np.flatnonzero(failed), places)] = True
