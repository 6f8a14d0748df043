"""From state to values: what a reader gets of rows at `now_ms`.

One function serves requests, backfill, tests and time travel. A window aggregates the `w` tiles in
`(tile(now) - w, tile(now)]`: the newest is partial, and a value falls while nothing happens.
Tiles after tile(now) and sequence entries after `now_ms` are left out. State remembers T tiles up
to its newest action: for a `now_ms` further back than the ring's spare tiles, tiles that were
already given up count as zero.

A row whose newest event is older than the view's TTL at `now_ms` is as good as none.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from aggregation.features import Features as Features
from aggregation.features import Moment, Step
from aggregation.kinds import KINDS
from schemas.errors import PlanError
from schemas.plan import FeaturePlan, ViewPlan
from schemas.row import Rows


class Finaliser:
    """A view's finalise program, compiled once.

    features: the names wanted, all of the view's unless given. Raises PlanError for a feature the
    view cannot compute.
    """

    def __init__(self, view: ViewPlan, features: Collection[str] | None = None) -> None:
        self.view = view
        known = {feature.name for feature in view.features}
        for name in features or ():
            if name not in known:
                required = f"one of {', '.join(sorted(known))}"
                raise PlanError(f"{view.name}.features", required=required, got=repr(name))
        wanted = known if features is None else set(features)
        within = {
            name
            for each in view.features
            if each.kind == "ratio" and each.name in wanted
            for name in each.sources
        }
        self._steps = _compiled(
            view, [each for each in view.features if each.name in wanted | within]
        )
        self._beside = tuple(within - wanted)

    def __call__(self, rows: Rows, now_ms: int) -> Features:
        """Finalise n rows at now_ms. Touches no clock and changes no row."""
        never = np.zeros(len(rows), bool)  # (n,)
        expired, alive = never, None
        if self.view.ttl_ms > 0:
            expired = rows.newest_ms < now_ms - self.view.ttl_ms  # (n,)
            alive = ~expired if expired.any() else None
        features, moment = Features(expired, never), Moment(now_ms, alive, never)
        for step in self._steps:
            step(rows, moment, features)
        for name in self._beside:
            del features.values[name], features.null[name]
        return features


def finalise(view: ViewPlan, rows: Rows, now_ms: int) -> Features:
    """All features of rows at now_ms. Where a view is finalised often, keep a `Finaliser`."""
    return Finaliser(view)(rows, now_ms)


def _compiled(view: ViewPlan, features: list[FeaturePlan]) -> tuple[Step, ...]:
    by_kind = {kind: [each for each in features if each.kind == kind] for kind in KINDS}
    return tuple(step for kind, members in by_kind.items() for step in KINDS[kind](view, members))
