"""Rows → values in C: one call for one side of a request.

Damaged rows are found here or in C, and are CORRUPT among all others. Rows of another layout are
left to numpy, which can read them: they alone.

Symbols: n entities, V views of the side, k features of the block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from struct import pack
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.native.library import Kernels, address, plain
from aggregation.native.row_tables import NotCompiledError, tables
from schemas.layout import layout_of
from schemas.plan import ViewPlan
from schemas.row import FENCE, damaged_rows, run_is_whole
from schemas.stored import ABSENT, Run, StoredRows
from schemas.values import ValueFeature

Array = NDArray[Any]
#: values (n,), null (n, k) bool, status (n, V) u1, fences (n, V) of FENCE, newest event time.
SideValues = tuple[Array, NDArray[np.bool_], NDArray[np.uint8], Array, int]
#: Places of entities of which a row is of another layout: nothing of theirs is to be used.
Left = NDArray[np.intp]

# As in rows.h.
_DAMAGED: Final = -2
_LEFT: Final = 255
_UNUSUAL: Final = -(1 << 63)


class SideKernel:
    """One side of a service, compiled. Immutable; threads may share it."""

    def __init__(
        self,
        library: Kernels,
        views: Sequence[ViewPlan],
        features: Sequence[ValueFeature],
        dtype: np.dtype[np.void],
    ) -> None:
        """Raises NotCompiledError for what the kernel does not compute."""
        self._call = library.rows_to_values
        self._tables = tables(views, features, dtype)
        self._at = address(self._tables.side)
        self._layouts = {layout.size: layout for layout in map(layout_of, views)}
        self._views, self._width, self._dtype = len(views), len(features), dtype

    def __call__(
        self, raw: StoredRows, entity_ids: NDArray[np.int64], now_ms: int
    ) -> tuple[SideValues, Left | None] | None:
        """Stored rows → values at now_ms, and which were left; None where it cannot be done.

        raw: (V * n,) values, all of the first view, then of the next. entity_ids: (n,).
        """
        return self.of_whole(raw, entity_ids, now_ms, self._without_damaged(raw))

    def of_whole(
        self,
        raw: StoredRows,
        entity_ids: NDArray[np.int64],
        now_ms: int,
        runs: Sequence[Run] | None = None,
    ) -> tuple[SideValues, Left | None] | None:
        """The same of rows whose checksums are known to be right. runs: those of raw, or what is
        left of them."""
        n, views, width, dtype = len(entity_ids), self._views, self._width, self._dtype
        fences_at = n * dtype.itemsize
        null_at = fences_at + n * views * FENCE.itemsize
        status_at = null_at + n * width
        made = np.zeros(status_at + n * views, np.uint8)  # all that is written, in one piece
        start, ids = address(made), plain(entity_ids, np.int64)
        runs = raw.runs if runs is None else runs
        request = pack(
            f"<{10 + 5 * len(runs)}q",
            *(address(raw.buffer), raw.buffer.size, address(ids), n, now_ms),
            *(start, start + null_at, start + fences_at, start + status_at),
            *(len(runs), *chain.from_iterable(runs)),
        )
        newest_ms: int = self._call(self._at, request)
        if newest_ms == _UNUSUAL:
            return None
        status = np.ndarray((n, views), np.uint8, made, status_at)
        left = None
        if newest_ms < 0:
            left, newest_ms = np.flatnonzero((status == _LEFT).any(axis=1)), ~newest_ms
        values = (
            np.ndarray((n,), dtype, made),
            np.ndarray((n, width), np.bool_, made, null_at),
            status,
            np.ndarray((n, views), FENCE, made, fences_at),
            newest_ms,
        )
        return values, left

    def _without_damaged(self, raw: StoredRows) -> Sequence[Run]:
        """The runs of all values, those that are no whole rows cut out: almost always none."""
        for run in raw.runs:
            if run.size != ABSENT:
                layout = self._layouts.get(run.size)
                if layout is None or not run_is_whole(layout, raw, run):
                    return [part for each in raw.runs for part in self._parts(raw, each)]
        return raw.runs

    def _parts(self, raw: StoredRows, run: Run) -> Iterator[Run]:
        if run.size == ABSENT:
            yield run
            return
        at, stop = run.first, run.first + run.many
        for place in (*damaged_rows(self._layouts.get(run.size), raw, run), stop):
            if place > at:
                yield run._replace(
                    first=at, many=place - at, start=run.start + (at - run.first) * run.stride
                )
            if place < stop:
                yield Run(place, 1, 0, 0, _DAMAGED)
            at = place + 1


def side_kernel(
    library: Kernels | None,
    views: Sequence[ViewPlan],
    features: Sequence[ValueFeature],
    dtype: np.dtype[np.void],
) -> SideKernel | None:
    """The kernel of a side; None without a library, and for what it does not compute."""
    if library is None:
        return None
    try:
        return SideKernel(library, views, features, dtype)
    except NotCompiledError:
        return None
