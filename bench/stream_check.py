"""Whether rows hold what the actions say, entity by entity and hour by hour."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.stream_log import Actions
from bench.stream_peers import hourly_cells
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import ViewPlan
from schemas.row import decode_rows
from schemas.status import Status
from store.base import RowStore

#: The field that counts all actions by hour, which the peers do, too.
RING: Final = "all_by_hour"
AT_ONCE: Final = 5_000


def unequal_counts(store: RowStore, view: ViewPlan, actions: Actions) -> int:
    """How many of the rows' hourly counts are not those of the actions, and how many of those are
    in no row: of each entity the newest hours, as many as the ring holds."""
    entities = np.unique(actions[view.entity]).astype(np.int64)
    ring = next(ring for ring in view.accumulators if ring.field == RING)
    cells = [np.zeros((3, 0), np.int64)]  # (3, k): entity, hour, count
    for part in np.array_split(entities, max(1, len(entities) // AT_ONCE)):
        raw = store.read(row_keys(view.name, view.generation, part.tolist()))
        rows, status = decode_rows(layout_of(view), raw, part)
        tiles = np.where((status == Status.PRESENT)[:, None], rows.values[RING], 0)  # (n, T)
        heads = rows.values[ring.head].astype(np.int64)[:, None]
        hours = heads - (heads - np.arange(ring.tiles)) % ring.tiles  # (n, T)
        row, slot = np.nonzero(tiles)
        cells.append(np.stack((part[row], hours[row, slot], tiles[row, slot].astype(np.int64))))
    found = np.concatenate(cells, axis=1)
    found = found[:, np.lexsort((found[1], found[0]))]
    wanted = _newest(hourly_cells(actions, view.entity), ring.tiles)
    if np.array_equal(found, wanted):
        return 0
    return len({*zip(*found.tolist(), strict=True)} ^ {*zip(*wanted.tolist(), strict=True)})


def _newest(cells: NDArray[np.int64], tiles: int) -> NDArray[np.int64]:
    """Of (3, n) cells by entity and hour those of an entity's newest hours."""
    entities, hours, _ = cells
    _, first, sizes = np.unique(entities, return_index=True, return_counts=True)
    newest = np.repeat(hours[first + sizes - 1], sizes)  # (n,)
    return cells[:, hours > newest - tiles]
