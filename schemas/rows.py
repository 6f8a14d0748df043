"""Rows by column: what the row codec decodes into and encodes from.

Symbols: `n` rows, `C` capacity of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.layout import NUMPY, RowLayout

#: The fence's offset of a row that is not stored yet.
NO_OFFSET: Final = -1
#: The newest event time of a tombstone: a streamed row that a deletion emptied, its fence kept.
TOMBSTONE_MS: Final = -1


@dataclass(slots=True)
class Rows:
    """n rows of one view, by column.

    entity_ids: (n,) i64. values: field -> (n,) or (n, C), zero behind a vector's length and where
    null. lengths: vector field -> (n,) i32. present: field -> (n,) bool, False meaning null.
    epoch (n,) u32, offset (n,) i64: the fence, (0, -1) for a row that is not stored yet.
    newest_ms: (n,) i64 newest event time folded in, 0 for none.
    """

    entity_ids: NDArray[np.int64]
    values: dict[str, NDArray[Any]]
    lengths: dict[str, NDArray[np.int32]]
    present: dict[str, NDArray[np.bool_]]
    epoch: NDArray[np.uint32]
    offset: NDArray[np.int64]
    newest_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.entity_ids)


def empty_rows(layout: RowLayout, entity_ids: NDArray[np.int64]) -> Rows:
    """Rows that hold nothing: all fields zero, empty and null; fence (0, -1)."""
    n = len(entity_ids)
    values: dict[str, NDArray[Any]] = {}
    for plan in layout.fields:
        shape = (n, plan.capacity) if plan.capacity else (n,)
        values[plan.name] = np.zeros(shape, NUMPY[plan.dtype])  # (n,) or (n, C)
    return Rows(
        entity_ids.astype(np.int64, copy=False),
        values,
        {plan.name: np.zeros(n, np.int32) for plan in layout.vectors},
        {plan.name: np.zeros(n, bool) for plan in layout.fields},
        np.zeros(n, np.uint32),
        np.full(n, NO_OFFSET, np.int64),
        np.zeros(n, np.int64),
    )
