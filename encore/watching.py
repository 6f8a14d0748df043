"""`encore features watch`: what changes of an entity's features, as it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from encore.lookup import Value, published_plan, read_features, views_of
from store.base import RowStore


@dataclass(frozen=True, slots=True)
class Changed:
    """One value that is another than at the look before; at the first look all are new.

    before: None also where the value was null, or the feature was not in the plan.
    """

    time_ms: int
    feature: str
    before: Value
    after: Value


def watch(
    store: RowStore,
    entities: Mapping[str, int],
    view: str | None,
    clock: Callable[[], int],
) -> Iterator[list[Changed]]:
    """One look a step, for ever; the plan is read anew each time, so a new feature appears.

    clock: ms since 1970, read once a look. Raises StoreError; PlanError as `views_of`.
    """
    last: dict[str, Value] = {}
    while True:
        now_ms = clock()
        views = views_of(published_plan(store), entities, view)
        values = {
            f"{reading.view}.{name}": value
            for reading in read_features(store, views, entities, now_ms)
            for name, value in reading.values.items()
        }
        yield [
            Changed(now_ms, name, last.get(name), value)
            for name, value in values.items()
            if name not in last or last[name] != value
        ]
        last = values
