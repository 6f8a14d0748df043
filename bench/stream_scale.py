"""What an action costs as users become more, over stores of ever more rows.

Asked twice: of a backlog, where large micro-batches merge the actions of few users into few rows,
and at the same load for all (`bench.stream_steady`), where nearly every action is a row of its own.

Every user has a row before the clock runs. The rows are small (one ring), so that a million of them
fit beside everything else; users are drawn uniformly, which no cache likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.report import Report
from bench.stream_log import Actions, batched, fill
from bench.stream_rates import Cluster, Rate
from bench.stream_steady import STEADY_PER_S, Steady, steady
from schemas.layout import layout_of
from schemas.names import row_keys
from schemas.plan import ViewPlan
from schemas.row import empty_rows, encode_rows
from store.base import Write
from store.redis_store import RedisRowStore

USERS: Final = (10_000, 100_000, 1_000_000)
NAMES: Final = ("10k", "100k", "1m")
TOPIC: Final = "users-{}"
AT_ONCE: Final = 20_000
FIRST_USER: Final = 1 << 44
#: Between the event times of two spells of load.
SPELL_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Scale:
    """Users with a row → what folding over them costs. backlog: once each. load: each round."""

    backlog: dict[int, Rate]
    load: dict[int, list[Steady]]

    def keys(self) -> dict[str, Any]:
        """For the line of figures; flat ratios are the largest ÷ the smallest, by rounds."""
        pairs = list(zip(self.load[USERS[-1]], self.load[USERS[0]], strict=True))
        each = {
            users: float(np.median([spell.ours_us for spell in spells]))
            for users, spells in self.load.items()
        }
        return {
            "by_users": {
                users: {
                    "per_s": rate.per_s,
                    "rows": rate.rows,
                    "cpu_us": rate.cpu_us,
                    "rss_growth_mb": rate.rss_growth_mb,
                }
                for users, rate in self.backlog.items()
            },
            **{f"us_per_action_{n}": us for n, us in zip(NAMES, each.values(), strict=True)},
            "flat_ratio": float(np.median([most.ours_us / least.ours_us for most, least in pairs])),
            "flat_ratio_row": float(
                np.median([most.row_us / least.row_us for most, least in pairs])
            ),
        }

    def describe(self, report: Report) -> None:
        """Both tables."""
        rows: list[Any] = [
            (
                f"{users:,}",
                *(
                    float(np.median([spell.cpu_us[name] for spell in spells]))
                    for name in ("worker", "store", "broker")
                ),
                float(np.median([spell.rows for spell in spells])),
                float(np.median([spell.row_us for spell in spells])),
            )
            for users, spells in self.load.items()
        ]
        report.table(
            f"One load of {STEADY_PER_S:,} actions/s, Poisson, by users with a row; µs of CPU an "
            f"action, {len(self.load[USERS[0]])} rounds",
            [
                *("users with a row", "worker µs", "store µs", "broker µs", "rows an action"),
                "worker and store, µs a row",
            ],
            rows,
        )
        rows = [
            (
                f"{users:,}",
                rate.per_s,
                rate.rows,
                *(us / rate.rows for us in rate.cpu_us.values()),
                rate.rss_growth_mb,
            )
            for users, rate in self.backlog.items()
        ]
        head = ["users with a row", "actions/s", "rows an action", "worker µs", "store µs"]
        report.table(
            "The same backlog over more and more users; µs of CPU a row written, growth of the "
            "worker's memory over the last two thirds",
            [*head, "broker µs", "MB"],
            rows,
        )


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


def by_users(running: Cluster, views: Sequence[ViewPlan], actions: Actions, rounds: int) -> Scale:
    """A worker folds those actions over so many rows, then spells of load, in turns."""
    found = Scale({}, {users: [] for users in USERS})
    for users, view in zip(USERS, views, strict=True):
        ids = FIRST_USER + np.arange(users)
        _prefill(running.store, view, ids)
        drawn = actions.copy()
        drawn["user"] = np.random.default_rng(users).choice(ids, len(drawn))
        ends = asyncio.run(fill(running.broker.address, view.source, batched(drawn)))
        found.backlog[users] = running.rate(view.source, ends, len(drawn))
    start_ms = int(actions["time_ms"][-1])
    for _ in range(rounds):
        for users, view in zip(USERS, views, strict=True):
            start_ms += SPELL_MS
            ids = FIRST_USER + np.arange(users)
            found.load[users].append(steady(running, view.source, ids, actions, start_ms))
    return found


def _prefill(store: RedisRowStore, view: ViewPlan, ids: NDArray[np.int64]) -> None:
    """An empty row of epoch 0 for each user: any message lies beyond it."""
    layout = layout_of(view)
    for start in range(0, len(ids), AT_ONCE):
        part = ids[start : start + AT_ONCE]
        keys = row_keys(view.name, view.generation, part.tolist())
        values = encode_rows(layout, empty_rows(layout, part))
        store.compare_and_set([Write(k, None, v) for k, v in zip(keys, values, strict=True)])
