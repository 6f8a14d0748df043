"""Batch rows: a Parquet source → the store.

A batch row's fence is (0, event time): the newer row wins, whoever writes last. A stored row that
is newer stays, an equal one is not written again, and one that cannot be read is replaced. Writes
are compare-and-set on what was read, so concurrent runs and `online_write_batch` agree on the
newest. Running it again after a crash finishes the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from catalog.columns import rows_of, source_columns
from schemas.errors import PlanError, StoreError
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import ViewPlan
from schemas.row import FENCE_SLICE, Rows, decode_rows, encode_rows
from schemas.status import Status
from store.base import RowStore, Write

BATCH_ROWS: Final = 4_096
ATTEMPTS: Final = 5


@dataclass(frozen=True)
class Materialized:
    """What one view's materialization did.

    read: rows of the source. entities: distinct ones (in each batch of the source). written,
    equal, newer: entities whose row was written, was there already, or was there with a later
    event time; they add up to `entities`. row_bytes: of one stored row.
    """

    view: str
    read: int = 0
    entities: int = 0
    written: int = 0
    equal: int = 0
    newer: int = 0
    row_bytes: int = 0

    def plus(self, other: Materialized) -> Materialized:
        """Both together."""
        return replace(
            self,
            read=self.read + other.read,
            entities=self.entities + other.entities,
            written=self.written + other.written,
            equal=self.equal + other.equal,
            newer=self.newer + other.newer,
        )


def materialize(
    view: ViewPlan,
    data_dir: Path,
    store: RowStore,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Materialized:
    """Writes the rows of a batch view's source, `data_dir / view.source`.

    progress: called with (rows done, rows in all) after each batch. Raises PlanError for a streamed
    view, DeclarationError for a source that does not hold what is declared, StoreError.
    """
    require_batch(view)
    path = data_dir / view.source
    done = Materialized(view.name, row_bytes=layout_of(view).size)
    for table, total in _batches(view, path):
        done = done.plus(write_rows(view, rows_of(view, table), store))
        if progress is not None:
            progress(done.read, total)
    return done


def require_batch(view: ViewPlan) -> None:
    """Raises PlanError for a view whose rows are state."""
    if view.kind != "batch":
        raise PlanError(
            view.name,
            required="a batch view",
            got="a windowed view, whose rows are folded from actions",
            do=f"send actions to the topic {view.source!r}",
        )


def write_rows(view: ViewPlan, rows: Rows, store: RowStore) -> Materialized:
    """Writes rows of a batch view: of an entity's rows the newest, of equal times the last.

    Raises StoreError, also where other writers kept winning.
    """
    chosen = _newest(rows.entity_ids, rows.offset)
    encoded = encode_rows(layout_of(view), rows)
    waiting = {int(rows.entity_ids[at]): (int(rows.offset[at]), encoded[at]) for at in chosen}
    done = Materialized(view.name, read=len(rows), entities=len(waiting))
    for _ in range(ATTEMPTS):
        writes, equal, newer = _plan_writes(view, waiting, store)
        landed = store.compare_and_set(list(writes.values())) if writes else []
        lost = {entity for entity, ok in zip(writes, landed, strict=True) if not ok}
        done = replace(
            done,
            written=done.written + len(writes) - len(lost),
            equal=done.equal + equal,
            newer=done.newer + newer,
        )
        if not lost:
            return done
        waiting = {entity: waiting[entity] for entity in lost}
    raise StoreError(
        view.name,
        required=f"rows that stay as read within {ATTEMPTS} attempts",
        got=f"{len(waiting)} rows that other writers kept changing",
        do="stop the other materialization and run this one again",
    )


def _plan_writes(
    view: ViewPlan, waiting: dict[int, tuple[int, bytes]], store: RowStore
) -> tuple[dict[int, Write], int, int]:
    """What to write, by entity; how many rows are stored already, how many newer ones are."""
    entities = list(waiting)
    keys = row_keys(view.name, view.generation, entities)
    stored = store.read(keys)
    held, status = decode_rows(layout_of(view), stored, np.array(entities, np.int64))
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
    return writes, equal, newer


def _newest(entity_ids: NDArray[np.int64], time_ms: NDArray[np.int64]) -> NDArray[np.intp]:
    """Index of each entity's newest row, the last of equal times. Both (n,)."""
    order = np.lexsort((time_ms, entity_ids))  # stable: the last row of equal times comes last
    ids = entity_ids[order]
    last = np.ones(len(ids), bool)
    last[:-1] = ids[1:] != ids[:-1]
    return np.sort(order[last])


def _batches(view: ViewPlan, path: Path) -> Iterator[tuple[pa.Table, int]]:
    try:
        source = pq.ParquetFile(path)
    except (FileNotFoundError, pa.ArrowInvalid, OSError) as error:
        raise PlanError(
            f"{view.name}.source",
            required=f"a Parquet file at {path}",
            got=str(error).splitlines()[0] if path.exists() else "no such file",
            do="prepare the sources first",
        ) from None
    with source:
        columns = source_columns(view, source.schema_arrow.names)
        total = source.metadata.num_rows
        for batch in source.iter_batches(BATCH_ROWS, columns=columns):
            yield pa.Table.from_batches([batch]), total
