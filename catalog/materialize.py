"""Batch rows: a Parquet source → the store.

Writes are compare-and-set on what was read, by the rule of `store/newest.py`, so concurrent runs,
`online_write_batch` and pushes agree on the newest. Running it again after a crash finishes the
work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from catalog.columns import rows_of, source_columns
from schemas.errors import PlanError
from schemas.layout import layout_of
from schemas.plan import ViewPlan
from schemas.row import Rows
from store.base import RowStore
from store.newest import (
    ATTEMPTS,
    plan_writes,
    require_batch,
    still_changing,
    waiting_keys,
    waiting_rows,
)

BATCH_ROWS: Final = 4_096


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


def write_rows(view: ViewPlan, rows: Rows, store: RowStore) -> Materialized:
    """Writes rows of a batch view: of an entity's rows the newest, of equal times the last.

    Raises StoreError, also where other writers kept winning.
    """
    waiting = waiting_rows(view, rows)
    done = Materialized(view.name, read=len(rows), entities=len(waiting))
    for _ in range(ATTEMPTS):
        planned = plan_writes(view, waiting, store.read(waiting_keys(view, waiting)))
        landed = store.compare_and_set(list(planned.writes.values())) if planned.writes else []
        lost = planned.lost(landed)
        done = replace(
            done,
            written=done.written + len(planned.writes) - len(lost),
            equal=done.equal + planned.equal,
            newer=done.newer + planned.newer,
        )
        if not lost:
            return done
        waiting = {entity: waiting[entity] for entity in lost}
    raise still_changing(view, len(waiting))


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
