"""What an action costs as users become more: the same actions over stores of ever more rows.

Every user has a row before the clock runs. The rows are small (one ring), so that a million of them
fit beside everything else; users are drawn uniformly, which no cache likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.stream_log import Actions, batched, fill
from bench.stream_rates import Cluster, Rate
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import ViewPlan
from schemas.row import empty_rows, encode_rows
from store.base import Write
from store.redis_store import RedisRowStore

USERS: Final = (10_000, 100_000, 1_000_000)
TOPIC: Final = "users-{}"
AT_ONCE: Final = 20_000
FIRST_USER: Final = 1 << 44


def small_views(view: ViewPlan, ring_field: str) -> tuple[ViewPlan, ...]:
    """A view of that one ring for each size and its topic."""
    ring = next(ring for ring in view.accumulators if ring.field == ring_field)
    small = replace(
        view,
        fields=tuple(field for field in view.fields if field.name in (ring.field, ring.head)),
        features=(),
        accumulators=(ring,),
        sequences=(),
    )
    return tuple(
        replace(small, name=f"users_{users}", source=TOPIC.format(users)) for users in USERS
    )


def by_users(running: Cluster, views: Sequence[ViewPlan], actions: Actions) -> dict[int, Rate]:
    """Users → the rate of a worker that folds those actions over so many rows."""
    found: dict[int, Rate] = {}
    for users, view in zip(USERS, views, strict=True):
        ids = FIRST_USER + np.arange(users)
        _prefill(running.store, view, ids)
        drawn = actions.copy()
        drawn["user"] = np.random.default_rng(users).choice(ids, len(drawn))
        ends = asyncio.run(fill(running.broker.address, view.source, batched(drawn)))
        found[users] = running.rate(view.source, ends, len(drawn))
    return found


def _prefill(store: RedisRowStore, view: ViewPlan, ids: NDArray[np.int64]) -> None:
    """An empty row of epoch 0 for each user: any message lies beyond it."""
    layout = layout_of(view)
    for start in range(0, len(ids), AT_ONCE):
        part = ids[start : start + AT_ONCE]
        keys = row_keys(view.name, view.generation, part.tolist())
        values = encode_rows(layout, empty_rows(layout, part))
        store.compare_and_set([Write(k, None, v) for k, v in zip(keys, values, strict=True)])
