"""The demo's service with the log's rows in a store: what request benchmarks run against.

Batch rows are materialized by `catalog`, streamed rows are folded from the log's own actions up to
its end, and requests are real: users drawn by how often they appear, candidates by how often they
were shown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from aggregation.fold import fold
from aggregation.program import ServiceProgram
from bench.samples import KUAIRAND, demo_plan, read_table
from catalog.materialize import materialize
from encore.kuairand import load_timeline, write_sources
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import ViewPlan
from schemas.row import empty_rows, encode_rows
from store.base import RowStore, Write

SERVICE: Final = "ranking"

Request = tuple[int, NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Workload:
    """users, items: (n,) ids that may be asked for. now_ms: the log's end."""

    program: ServiceProgram
    users: NDArray[np.int64]
    items: NDArray[np.int64]
    now_ms: int
    users_file: Path
    _user_weights: NDArray[np.float64]
    _item_weights: NDArray[np.float64]

    def requests(self, count: int, candidates: int, seed: int) -> list[Request]:
        """Requests of one user and distinct candidates, drawn by their shares of the log."""
        draw = np.random.default_rng(seed)
        users = draw.choice(self.users, count, p=self._user_weights)  # (count,)
        return [
            (
                int(user),
                draw.choice(self.items, candidates, replace=False, p=self._item_weights),
            )
            for user in users
        ]


@contextmanager
def load_workload(
    store: RowStore, users: int, items: int, ends_ms: int | None = None
) -> Iterator[Workload]:
    """Fills the store. users, items: how many of the most seen ones take part. ends_ms: the log is
    moved so that it ends then; None leaves it when it was.

    Raises LocalError without the data, StoreError.
    """
    plan = demo_plan()
    program = ServiceProgram(plan, SERVICE)
    seen = read_table("interactions", ["user_id", "video_id", "time_ms"])
    user_ids, user_weights = _most_seen(seen["user_id"], users)
    item_ids, item_weights = _most_seen(seen["video_id"], items)
    logged_ms = int(seen["time_ms"].max())
    now_ms = logged_ms if ends_ms is None else ends_ms
    with tempfile.TemporaryDirectory(prefix="bench") as directory:
        sources = Path(directory) / "sources"
        write_sources(KUAIRAND, sources)
        for view in (*program.user_views, *program.item_views):
            if view.kind == "batch":
                materialize(view, Path(directory), store)
            else:
                ids = user_ids if view.entity == "user" else item_ids
                _fold_log(view, store, ids, now_ms - logged_ms)
        yield Workload(
            program,
            user_ids,
            item_ids,
            now_ms,
            sources / "users.parquet",
            user_weights,
            item_weights,
        )


def _most_seen(
    column: NDArray[np.int64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The ids that occur most, and their shares: (n,) each."""
    ids, counts = np.unique(column, return_counts=True)
    top = np.argsort(-counts, kind="stable")[:most]
    return ids[top].astype(np.int64), counts[top] / counts[top].sum()


def _fold_log(
    view: ViewPlan, store: RowStore, entity_ids: NDArray[np.int64], later_ms: int
) -> None:
    """Rows of those entities as the log's actions leave them, each so much later."""
    actions = load_timeline(KUAIRAND, 0.0, 0.0).actions
    actions["time_ms"] += later_ms
    order = np.argsort(entity_ids)
    entities = actions[view.entity]  # (a,)
    place = np.searchsorted(entity_ids, entities, sorter=order).clip(max=len(order) - 1)
    row_index = order[place]  # (a,)
    ours = entity_ids[row_index] == entities
    layout = layout_of(view)
    rows = empty_rows(layout, entity_ids)
    fold(view, rows, row_index[ours], actions[ours], actions["time_ms"][ours])
    rows.epoch[:], rows.offset[:] = 1, len(actions)
    keys = row_keys(view.name, view.generation, entity_ids.tolist())
    values = encode_rows(layout, rows)
    store.compare_and_set(
        [Write(key, None, value) for key, value in zip(keys, values, strict=True)]
    )
