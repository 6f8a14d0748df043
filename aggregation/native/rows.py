"""Rows → values in C: one call for one side of a request.

Where the call gives None, numpy computes the whole side: a row that is not of its view's own layout
and entity, or is damaged, is looked at there.

Symbols: n entities, V views of the side, k features of the block.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from struct import pack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aggregation.native.library import Kernels, address
from aggregation.native.row_tables import NotCompiledError, tables
from schemas.layout import layout_of
from schemas.plan import ViewPlan
from schemas.row import FENCE, run_is_whole
from schemas.stored import ABSENT, StoredRows
from schemas.values import ValueFeature

Array = NDArray[Any]
#: values (n,), null (n, k) bool, status (n, V) u1, fences (n, V) of FENCE, newest event time.
SideValues = tuple[Array, NDArray[np.bool_], NDArray[np.uint8], Array, int]


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
    ) -> SideValues | None:
        """Stored rows → values at now_ms. raw: (V * n,) values, all of the first view, then of the
        next. entity_ids: (n,)."""
        return self.of_whole(raw, entity_ids, now_ms) if self._whole(raw) else None

    def of_whole(
        self, raw: StoredRows, entity_ids: NDArray[np.int64], now_ms: int
    ) -> SideValues | None:
        """The same of rows whose checksums are known to be right."""
        n, views, width, dtype = len(entity_ids), self._views, self._width, self._dtype
        fences_at = n * dtype.itemsize
        null_at = fences_at + n * views * FENCE.itemsize
        status_at = null_at + n * width
        made = np.zeros(status_at + n * views, np.uint8)  # all that is written, in one piece
        start, ids, runs = address(made), np.ascontiguousarray(entity_ids), raw.runs
        request = pack(
            f"<{10 + 5 * len(runs)}q",
            *(address(raw.buffer), raw.buffer.size, address(ids), n, now_ms),
            *(start, start + null_at, start + fences_at, start + status_at),
            *(len(runs), *chain.from_iterable(runs)),
        )
        newest_ms: int = self._call(self._at, request)
        if newest_ms < 0:
            return None
        return (
            np.ndarray((n,), dtype, made),
            np.ndarray((n, width), np.bool_, made, null_at),
            np.ndarray((n, views), np.uint8, made, status_at),
            np.ndarray((n, views), FENCE, made, fences_at),
            newest_ms,
        )

    def _whole(self, raw: StoredRows) -> bool:
        """Whether all values that are there are of a view's size, with the right checksum."""
        for run in raw.runs:
            if run.size != ABSENT:
                layout = self._layouts.get(run.size)
                if layout is None or not run_is_whole(layout, raw, run):
                    return False
        return True


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
