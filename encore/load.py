"""Batch views from their Parquet sources into the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from catalog.materialize import Materialized, materialize
from encore.lookup import published_plan
from encore.settings import Settings
from store.base import RowStore

#: Called with a view's name, rows done, rows in all.
RowsNote = Callable[[str, int, int], None]


def load_views(
    settings: Settings, store: RowStore, *, view: str | None = None, note: RowsNote | None = None
) -> Iterator[Materialized]:
    """Load the published plan's batch views, or the one that is named; yields each as it is done.

    Sources lie below `settings.data_dir`. Raises PlanError for a view that is unknown or not batch,
    DeclarationError for a source that does not hold what is declared, StoreError.
    """
    plan = published_plan(store)
    for each in [plan.view(view)] if view else [v for v in plan.views if v.kind == "batch"]:
        yield materialize(each, settings.data_dir, store, progress=_named(each.name, note))


def _named(name: str, note: RowsNote | None) -> Callable[[int, int], None] | None:
    if note is None:
        return None
    return lambda done, total: note(name, done, total)
