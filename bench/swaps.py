"""Plans swapped under load: latency around a publication beside that between publications.

One service with its item cache, requests at Poisson times over HTTP. Two kinds of plan are
published in turn: one that serving alone sees (a TTL), and a new generation of an item view, whose
rows are in the store before, as a backfill leaves them, but in no cache. A request counts to the
swap when it was meant to leave within SWAP_S of the publication, and to the steady state else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
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

RATES: Final[dict[Model, float]] = {"aggregate": 100.0, "rank": 25.0}
FINE_LIMIT: Final = 100
EVERY_S: Final = 6.0
SWAP_S: Final = 3.0
FIRST_S: Final = 2.0  # not counted: connections open
DEADLINE_MS: Final = 1_000.0

Kinds = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Published:
    """kind: of the change. at_s: when, on perf_counter."""

    kind: str
    at_s: float


class Publisher:
    """Publishes a plan every EVERY_S."""

    def __init__(self, store: RedisRowStore, plan: Plan, items: NDArray[np.int64]) -> None:
        self.plan = plan
        self.done: list[Published] = []
        self._store, self._items = store, items.tolist()

    def run(self, publications: int, began_s: float) -> None:
        """So many, the first EVERY_S - SWAP_S after began_s."""
        for number in range(publications):
            kind, following = self._following(number)
            due_s = began_s + EVERY_S * number + EVERY_S - SWAP_S
            time.sleep(max(due_s - time.perf_counter(), 0.0))
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
    publications = 2 if options.quick else 20
    report = Report()
    with (
        own_store() as (_, port),
        world_over(port, port, FINE_LIMIT, cached=True) as world,
        RedisRowStore(StoreConfig(f"redis://{HOST}:{port}/0", timeout_ms=60_000)) as store,
    ):
        plan = world.workload.program.plan
        rows = []
        for model, rate in RATES.items():
            options.say(f"swaps: {model} at {rate:g} a second, {publications} publications …")
            publisher = Publisher(store, plan, world.workload.items)
            facts = _measured(world, publisher, model, publications)
            plan = publisher.plan
            report.line[model] = facts
            rows += list(_rows(model, facts))
            _check_served(world, plan.version)
    head = ["model", "during", "requests", "p50 ms", "p99 ms", "÷ steady p99", "failed", "degraded"]
    report.table(f"{CANDIDATES} candidates of {ITEMS:,} cached items over HTTP", head, rows)
    report.note("")
    report.note(
        f"A request counts to a swap for {SWAP_S:g} s from the publication on. Generator, service, "
        "the cache's writer and the store share the machine."
    )
    if options.quick:
        report.note("So few requests tell of failures, not of a p99: that is the full form's.")
    return report


def _measured(
    world: ServeWorld, publisher: Publisher, model: Model, publications: int
) -> dict[str, Any]:
    requests = world.workload.requests(64, CANDIDATES, seed=1)
    prepared = world.prepare("http", model, requests, DEADLINE_MS)
    times_s = FIRST_S + arrivals(RATES[model], EVERY_S * publications, seed=1)
    began_s = time.perf_counter()
    thread = threading.Thread(target=publisher.run, args=(publications, began_s + FIRST_S))
    thread.start()
    measured = prepared.drive(times_s)
    thread.join()
    kinds = _kinds(measured, publisher.done, began_s)
    found: dict[str, Any] = {}
    for kind in ("steady", "compatible", "generation"):
        found[kind] = _facts(measured, kinds == kind)
    for kind in ("compatible", "generation"):
        found[kind]["ratio"] = found[kind]["p99_ms"] / found["steady"]["p99_ms"]
    return found


def _kinds(measured: Measured, done: list[Published], began_s: float) -> NDArray[np.str_]:
    """(n,) what each request counts to."""
    kinds = np.full(len(measured.intended_s), "steady", "U16")
    for each in done:
        since_s = measured.intended_s - (each.at_s - began_s)
        kinds[(since_s >= 0) & (since_s < SWAP_S)] = each.kind
    return kinds


def _facts(measured: Measured, which: NDArray[np.bool_]) -> dict[str, Any]:
    replies = [reply_of("http", measured.answers[at]) for at in np.flatnonzero(which).tolist()]
    return {
        "requests": len(replies),
        "p50_ms": measured.percentile_ms(50, which),
        "p99_ms": measured.percentile_ms(99, which),
        "failed": sum(each.status != 200 for each in replies),
        "degraded": sum(bool(each.degraded) for each in replies),
    }


def _rows(model: Model, facts: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for kind, each in facts.items():
        named = [each[name] for name in ("requests", "p50_ms", "p99_ms")]
        yield (model, kind, *named, each.get("ratio", 1.0), each["failed"], each["degraded"])


def _check_served(world: ServeWorld, version: int) -> None:
    """The last plan serves, within a minute."""
    with HttpRankingClient(f"{HOST}:{world.ports['http']}") as client:
        ((user, items),) = world.workload.requests(1, 10, seed=0)
        deadline_s = time.monotonic() + 60
        while True:
            reply = client.aggregate(user, items, Asked(timeout_ms=DEADLINE_MS))
            if reply.parameters["plan_version"] == version:
                return
            assert time.monotonic() < deadline_s, "the last plan never served"
            time.sleep(0.1)
