"""Plans swapped under load: latency around a publication beside that between publications.

One service with its item cache, requests at Poisson times over HTTP. Two kinds of plan are
published in turn: one that serving alone sees (a TTL), and a new generation of an item view, whose
rows are in the store before, as a backfill leaves them, but in no cache. A request counts to the
swap when it was meant to leave within half of the time between two publications, and to the steady
state else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import psutil
from numpy.typing import NDArray

from bench.open_loop import Measured, arrivals
from bench.report import Options, Report
from bench.serve_world import CANDIDATES, HOST, ITEMS, Model, ServeWorld, reply_of, world_over
from bench.server import own_store
from predictor.http_client import Asked, HttpRankingClient
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY, row_keys
from schemas.plan import Plan, dump_plan
from store.base import Write
from store.redis_store import RedisRowStore
from store.wire import StoreConfig

RATES: Final[dict[Model, float]] = {"aggregate": 100.0, "rank": 40.0}
FINE_LIMIT: Final = 100
FIRST_S: Final = 2.0  # not counted: connections open
DEADLINE_MS: Final = 1_000.0
SERVED_S: Final = 60.0
#: Of a p99 and of a p95: fewer do not tell it.
ENOUGH: Final = {99: 2_000, 95: 400}


@dataclass(frozen=True, slots=True)
class Rhythm:
    """publications: of each model's turn, one every `every_s`."""

    publications: int
    every_s: float

    @property
    def swap_s(self) -> float:
        """From a publication on."""
        return self.every_s / 2


QUICK: Final = Rhythm(2, 4.8)
FULL: Final = Rhythm(20, 6.0)


@dataclass(frozen=True, slots=True)
class Published:
    """kind: of the change. at_s: when, on perf_counter."""

    kind: str
    at_s: float


class Publisher:
    """Publishes plans in a thread of its own. rss_mb: of the service, before each publication."""

    def __init__(
        self,
        store: RedisRowStore,
        plan: Plan,
        items: NDArray[np.int64],
        look: Callable[[], float],
    ) -> None:
        self.plan = plan
        self.done: list[Published] = []
        self.rss_mb: list[float] = []
        self._store, self._items, self._look = store, items.tolist(), look
        self._over = threading.Event()

    @contextmanager
    def publishing(self, rhythm: Rhythm, began_s: float) -> Iterator[threading.Thread]:
        """The thread, which is to be joined; left by an exception it publishes no more."""
        thread = threading.Thread(target=self._run, args=(rhythm, began_s))
        thread.start()
        try:
            yield thread
        finally:
            self._over.set()
            thread.join()

    def _run(self, rhythm: Rhythm, began_s: float) -> None:
        """All of them, the first half a beat after began_s."""
        for number in range(rhythm.publications):
            kind, following = self._following(number)
            due_s = began_s + rhythm.every_s * (number + 1) - rhythm.swap_s
            if self._over.wait(max(due_s - time.perf_counter(), 0.0)):
                return
            self.rss_mb.append(self._look())
            self.done.append(Published(kind, time.perf_counter()))
            self._store.put_text(PLAN_KEY, dump_plan(following))
            self._store.put_text(PLAN_VERSION_KEY, str(following.version))
            self.plan = following

    def _following(self, number: int) -> tuple[str, Plan]:
        before = self.plan
        view = next(each for each in before.views if each.entity == "item" and each.accumulators)
        if number % 2:
            kind, changed = "generation", replace(view, generation=view.generation + 1)
            keys, filled = [
                row_keys(each.name, each.generation, self._items) for each in (view, changed)
            ]
            rows = zip(filled, self._store.read(keys), strict=True)
            self._store.compare_and_set([Write(key, None, row) for key, row in rows if row])
        else:
            view = next(each for each in before.views if each.entity == "user")
            kind, changed = "compatible", replace(view, ttl_ms=view.ttl_ms + 86_400_000)
        views = tuple(changed if each.name == view.name else each for each in before.views)
        return kind, replace(before, views=views, version=before.version + 1, parent=before.version)


def run(options: Options) -> Report:
    """The benchmark. Raises LocalError, StoreError, PlanError."""
    rhythm = QUICK if options.quick else FULL
    report = Report()
    with (
        own_store() as (_, port),
        world_over(port, port, FINE_LIMIT, cached=True) as world,
        RedisRowStore(StoreConfig(f"redis://{HOST}:{port}/0", timeout_ms=60_000)) as store,
    ):
        plan, rows = world.workload.program.plan, []
        for model, rate in RATES.items():
            options.say(
                f"swaps: {model} at {rate:g} a second, {rhythm.publications} publications …"
            )
            publisher = Publisher(store, plan, world.workload.items, lambda: _rss_mb(world.pid))
            facts = _measured(world, publisher, model, rhythm)
            plan = publisher.plan
            report.line[model] = facts
            rows += list(_rows(model, facts))
            served = _serves(world, plan.version)
            report.check(served, f"{model}: the last plan did not serve within {SERVED_S:g} s")
    report.line = _keys(report.line, rhythm) | report.line
    check(report)
    head = ["model", "during", "requests", "p50 ms", "p95 ms", "p99 ms", "÷ steady", "failed"]
    head += ["degraded"]
    report.table(f"{CANDIDATES} candidates of {ITEMS:,} cached items over HTTP", head, rows)
    report.note("")
    report.note(
        f"A request counts to a swap for {rhythm.swap_s:g} s from the publication on. Generator, "
        "service, the cache's writer and the store share the machine. A p99 is told of at least "
        f"{ENOUGH[99]:,} requests, a p95 of {ENOUGH[95]}; ÷ steady is of the higher one that both "
        "tell."
    )
    return report


def check(report: Report) -> None:
    """What must hold: no request fails."""
    failed = report.line["failed"]
    report.check(not failed, f"{failed} requests failed")


def _measured(
    world: ServeWorld, publisher: Publisher, model: Model, rhythm: Rhythm
) -> dict[str, Any]:
    requests = world.workload.requests(64, CANDIDATES, seed=1)
    prepared = world.prepare("http", model, requests, DEADLINE_MS)
    times_s = FIRST_S + arrivals(RATES[model], rhythm.every_s * rhythm.publications, seed=1)
    began_s = time.perf_counter()
    with publisher.publishing(rhythm, began_s + FIRST_S) as thread:
        measured = prepared.drive(times_s)
        thread.join()
    kinds = kinds_of(measured, publisher.done, began_s, rhythm.swap_s)
    found: dict[str, Any] = {"steady": facts_of(measured, kinds == "steady")}
    found["swap"] = facts_of(measured, kinds != "steady")
    for kind in ("compatible", "generation"):
        found[kind] = facts_of(measured, kinds == kind)
    for kind in ("swap", "compatible", "generation"):
        found[kind]["ratio"] = ratio_of(found[kind], found["steady"])
    grown = _rss_mb(world.pid) - publisher.rss_mb[len(publisher.rss_mb) // 2]
    return found | {"rss_growth_mb": grown}


def kinds_of(
    measured: Measured, done: list[Published], began_s: float, swap_s: float
) -> NDArray[np.str_]:
    """(n,) what each request counts to."""
    kinds = np.full(len(measured.intended_s), "steady", "U16")
    for each in done:
        since_s = measured.intended_s - (each.at_s - began_s)
        kinds[(since_s >= 0) & (since_s < swap_s)] = each.kind
    return kinds


def facts_of(measured: Measured, which: NDArray[np.bool_]) -> dict[str, Any]:
    """Of the chosen requests, (n,): None for a percentile that so few do not tell."""
    replies = [reply_of("http", measured.answers[at]) for at in np.flatnonzero(which).tolist()]
    told = {
        f"p{percent}_ms": measured.percentile_ms(percent, which) if len(replies) >= least else None
        for percent, least in ENOUGH.items()
    }
    return {
        "requests": len(replies),
        "p50_ms": measured.percentile_ms(50, which) if replies else None,
        **told,
        "failed": sum(each.status != 200 for each in replies),
        "degraded": sum(bool(each.degraded) for each in replies),
    }


def ratio_of(facts: dict[str, Any], steady: dict[str, Any]) -> float | None:
    """Of the highest percentile that both tell; None for none."""
    for name in (f"p{percent}_ms" for percent in ENOUGH):
        if facts[name] is not None and steady[name] is not None:
            return float(facts[name] / steady[name])
    return None


def _keys(models: dict[str, Any], rhythm: Rhythm) -> dict[str, Any]:
    """Percentiles are those of `aggregate`, counts of both. The growth of the service's memory is
    that over the second half of each model's publications."""
    first = models["aggregate"]
    told = {
        f"p{percent}_{kind}_ms": first[kind][f"p{percent}_ms"]
        for percent in ENOUGH
        for kind in ("steady", "swap")
    }
    return {
        "swaps": rhythm.publications * len(models),
        **told,
        "ratio": first["swap"]["ratio"],
        "failed": sum(
            each[kind]["failed"] for each in models.values() for kind in ("steady", "swap")
        ),
        "rss_growth_mb": sum(each["rss_growth_mb"] for each in models.values()),
    }


def _rows(model: Model, facts: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for kind in ("steady", "compatible", "generation"):
        each = facts[kind]
        named = [each[name] for name in ("requests", "p50_ms", "p95_ms", "p99_ms")]
        ratio = 1.0 if kind == "steady" else each["ratio"]
        yield (model, kind, *named, ratio, each["failed"], each["degraded"])


def _rss_mb(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20


def _serves(world: ServeWorld, version: int) -> bool:
    """Whether the plan serves within SERVED_S."""
    with HttpRankingClient(f"{HOST}:{world.ports['http']}") as client:
        ((user, items),) = world.workload.requests(1, 10, seed=0)
        deadline_s = time.monotonic() + SERVED_S
        while time.monotonic() < deadline_s:
            reply = client.aggregate(user, items, Asked(timeout_ms=DEADLINE_MS))
            if reply.parameters["plan_version"] == version:
                return True
            time.sleep(0.1)
    return False
