"""Batch rows: of an entity's rows the newest rests, whoever writes last.

A batch row's fence is (0, event time). A stored row that is newer stays, an equal one is not
written again, and one that cannot be read is replaced. Nothing here does I/O: read the keys, plan,
compare-and-set, and plan again what other writers changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.errors import PlanError, StoreError
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import ViewPlan
from schemas.row import FENCE_SLICE, Rows, decode_rows, encode_rows
from schemas.status import Status
from store.base import Write

ATTEMPTS: Final = 5

Waiting = dict[int, tuple[int, bytes]]
"""Entity id → event time in ms and the encoded row."""


@dataclass(frozen=True, slots=True)
class Planned:
    """What to write, by entity; how many entities' rows rest already, and how many newer ones."""

    writes: dict[int, Write]
    equal: int
    newer: int

    def lost(self, landed: Sequence[bool]) -> set[int]:
        """The entities whose write did not land."""
        return {entity for entity, ok in zip(self.writes, landed, strict=True) if not ok}


def require_batch(view: ViewPlan) -> None:
    """Raises PlanError for a view whose rows are state."""
    if view.kind != "batch":
        raise PlanError(
            view.name,
            required="a batch view",
            got="a windowed view, whose rows are folded from actions",
            do=f"send actions to the topic {view.source!r}",
        )


def waiting_rows(view: ViewPlan, rows: Rows) -> Waiting:
    """The newest of each entity's rows, of equal times the last: {entity: (time, row)}."""
    encoded = encode_rows(layout_of(view), rows)
    chosen = _newest(rows.entity_ids, rows.offset)
    return {int(rows.entity_ids[at]): (int(rows.offset[at]), encoded[at]) for at in chosen}


def waiting_keys(view: ViewPlan, waiting: Waiting) -> list[str]:
    """The store keys of the rows, in the order that `plan_writes` takes."""
    return row_keys(view.name, view.generation, list(waiting))


def plan_writes(view: ViewPlan, waiting: Waiting, stored: Sequence[bytes | None]) -> Planned:
    """Against what `waiting_keys` hold."""
    keys = waiting_keys(view, waiting)
    held, status = decode_rows(layout_of(view), stored, np.array(list(waiting), np.int64))
    writes: dict[int, Write] = {}
    equal = newer = 0
    for index, (entity, (event_ms, value)) in enumerate(waiting.items()):
        old = stored[index]
        if old == value:
            equal += 1
        elif status[index] == Status.PRESENT and int(held.offset[index]) > event_ms:
            newer += 1
        else:
            fence = None if old is None else bytes(old[FENCE_SLICE])
            writes[entity] = Write(keys[index], fence, value)
    return Planned(writes, equal, newer)


def still_changing(view: ViewPlan, rows: int) -> StoreError:
    """The error after ATTEMPTS in which other writers kept winning."""
    return StoreError(
        view.name,
        required=f"rows that stay as read within {ATTEMPTS} attempts",
        got=f"{rows} rows that other writers kept changing",
        do="stop the other materialization and run this one again",
    )


def _newest(entity_ids: NDArray[np.int64], time_ms: NDArray[np.int64]) -> NDArray[np.intp]:
    """Index of each entity's newest row, the last of equal times. Both (n,)."""
    order = np.lexsort((time_ms, entity_ids))  # stable: the last row of equal times comes last
    ids = entity_ids[order]
    last = np.ones(len(ids), bool)
    last[:-1] = ids[1:] != ids[:-1]
    return np.sort(order[last])
