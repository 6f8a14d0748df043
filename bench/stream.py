"""Actions → rows: how many a second one worker folds, and how soon a request can read them.

Ours folds the demo's whole `user_activity` view (18 rings, 2 sequences) and one ring more: all
actions by hour. The peers count just that: each user's actions by hour of event time, from the same
one-action messages of the same broker. So ours does the same counts and some twenty-five more.
Counts are compared first, with numpy's over the actions themselves.

Batched: a message for each partition whenever 2,000 actions are gathered. Single: a message an
action. Distinct: batched, each action by a user of its own, so that each is a new row. Store and
broker run on the same cores.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench.cores import Cores
from bench.processes import Piped
from bench.report import Options, Report, Say
from bench.rewriting import Rewriting, again_and_again, held_off
from bench.samples import demo_plan
from bench.stream_check import RING, unequal_counts
from bench.stream_fresh import MESSAGE_ACTIONS, WARM_S, Freshness, measure, probes
from bench.stream_items import TOPIC, item_rate, item_views
from bench.stream_log import (
    PARTITIONS,
    Actions,
    batched,
    distinct_users,
    fill,
    kuairand_actions,
    singles,
)
from bench.stream_peers import (
    HOUR_MS,
    Peer,
    PeerRate,
    at_hand,
    peers,
    run_peer,
    wait_imported,
)
from bench.stream_rates import Cluster, Rate, worker_process
from bench.stream_scale import by_users, small_views
from encore.local import start_broker, start_store
from schemas.names import PLAN_KEY, by_item_topic
from schemas.plan import Plan, ViewPlan, dump_plan
from store.redis_store import RedisRowStore
from store.wire import OWN_DISK, Disks, StoreConfig
from streams.admin import ensure_topics

#: The store may be busy with a worker's rows when it is asked how far that is.
STORE_TIMEOUT_MS: Final = 30_000
#: A topic for each load at which freshness is asked for.
FRESH: Final = "fresh-{}"
FORMS: Final = ("batched", "single", "distinct")


@dataclass(frozen=True, slots=True)
class Load:
    """share: of the rate over distinct users. rewriting: who rewrites the rows' file all along."""

    share: float
    rewriting: Rewriting = "never"

    @property
    def disks(self) -> Disks:
        """That keep the rows."""
        return Disks(own=False, replicas=1) if self.rewriting == "replica" else OWN_DISK


#: Freshness is asked for at these shares of the rate over distinct users, half load first: under a
#: steady load a micro-batch is small and hardly merges a user's actions, as a backlog does.
LOADS: Final = (Load(0.5), Load(0.5, "store"), Load(0.5, "replica"), Load(1.0), Load(2.0))


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many actions each measurement gets, rounds, freshness samples at each of `loads`, and
    the actions folded over stores of more and more users, 0 for none; items: re-keyed.
    """

    actions: Mapping[str, int]
    rounds: int
    probes: int
    by_users: int
    items: int
    loads: tuple[Load, ...]


@dataclass(frozen=True, slots=True)
class Arena:
    """Where all rounds take place."""

    running: Cluster
    plan: Plan
    log: Actions
    sizes: Sizes
    say: Say


@dataclass(slots=True)
class Found:
    """What the rounds measured. unequal: counts of ours that differ from the actions'."""

    rates: dict[str, list[Rate]]
    others: dict[str, list[PeerRate]] = field(default_factory=dict)
    items: list[float] = field(default_factory=list)
    unequal: int = 0


QUICK: Final = Sizes(
    {"batched": 400_000, "single": 150_000, "distinct": 100_000}, 1, 600, 0, 150_000, LOADS[:1]
)
FULL: Final = Sizes(
    {"batched": 2_000_000, "single": 600_000, "distinct": 400_000},
    3,
    3_000,
    1_500_000,
    900_000,
    LOADS,
)


def run(options: Options) -> Report:
    """The benchmark. Raises LocalError, StoreError, StreamError."""
    sizes = QUICK if options.quick else FULL
    found = Found({form: [] for form in FORMS})
    with cluster() as running:
        options.say("stream: filling topics …")
        contenders = peers(options.quick)
        with at_hand(contenders) as processes:
            plan, small = _published(running, sizes, contenders)
            log = kuairand_actions(max(sizes.actions.values()))
            for topic, peer in {_peer_topic(peer): peer for peer in contenders.values()}.items():
                asyncio.run(fill(running.broker.address, topic, singles(log[: peer.messages])))
            arena = Arena(running, plan, log, sizes, options.say)
            _round(arena, 0, contenders, processes, found)
        for turn in range(1, sizes.rounds):
            with at_hand(contenders) as processes:
                _round(arena, turn, contenders, processes, found)
        per_s = float(np.median([rate.per_s for rate in found.rates["distinct"]]))
        options.say(f"stream: freshness at {LOADS[0].share * per_s:,.0f} actions/s and more …")
        fresh = _freshness(running, plan, log, sizes, per_s)
        if small:
            options.say("stream: more and more users …")
        scale = by_users(running, small, log[: sizes.by_users], sizes.rounds) if small else None
    report = Report(line=_keys(found.rates, found.others, fresh))
    report.line["per_s_items"] = float(np.median(found.items))
    report.line["unequal_counts"] = found.unequal
    _describe(report, sizes, found.rates, found.others, fresh)
    report.note(
        f"Re-keyed by item and folded into rows of items, by one item worker: "
        f"{report.line['per_s_items']:,.0f} actions/s, batched."
    )
    check(report, found, fresh)
    if scale is not None:
        report.line |= scale.keys()
        scale.describe(report)
    return report


def check(report: Report, found: Found, loads: list[Freshness]) -> None:
    """What must hold: all counts are the actions', and every row comes."""
    rows = f"{found.unequal:,} hourly counts of our rows differ from the actions'"
    report.check(not found.unequal, rows)
    for name, rates in found.others.items():
        report.check(
            all(rate.equal for rate in rates), f"counts of {name} differ from the actions'"
        )
    for fresh in loads:
        unseen = f"{fresh.unseen:,} rows never came at {fresh.offered_per_s:,.0f} actions/s"
        report.check(not fresh.unseen, unseen)


def _published(
    running: Cluster, sizes: Sizes, contenders: Mapping[str, Peer]
) -> tuple[Plan, tuple[ViewPlan, ...]]:
    """The plan, which workers find from now on, with all topics; and its views for `by_users`."""
    plan = bench_plan(sizes.rounds)
    small = small_views(plan.views[0], RING) if sizes.by_users else ()
    by_item = item_views(plan.views[0], sizes.rounds)
    plan = replace(plan, views=plan.views + small + by_item)
    running.store.put_text(PLAN_KEY, dump_plan(plan))
    topics = {view.source: PARTITIONS for view in plan.views}
    topics |= {_peer_topic(peer): PARTITIONS for peer in contenders.values()}
    ensure_topics(running.broker.address, topics)
    return plan, small


def _round(
    arena: Arena,
    turn: int,
    contenders: Mapping[str, Peer],
    processes: Mapping[str, Piped],
    found: Found,
) -> None:
    """Everybody once."""
    running, sizes, log = arena.running, arena.sizes, arena.log
    wait_imported(contenders, processes)
    for form in FORMS:
        arena.say(f"stream: {form}, round {turn + 1} …")
        view = _view(arena.plan, f"{form}-{turn}")
        rate, unequal = _ours(running, view, form, log[: sizes.actions[form]])
        found.rates[form].append(rate)
        found.unequal += unequal
    arena.say(f"stream: items, round {turn + 1} …")
    view = _view(arena.plan, by_item_topic(TOPIC.format(turn)))
    per_s, unequal = _items(running, view, turn, log[: sizes.items])
    found.items.append(per_s)
    found.unequal += unequal
    for name, peer in contenders.items():
        arena.say(f"stream: {peer.title}, round {turn + 1} …")
        read = log[: peer.messages]
        rate_of_peer = run_peer(peer, processes[name], _peer_topic(peer), running, read)
        found.others.setdefault(name, []).append(rate_of_peer)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Everything a worker needs, on free loopback ports, ended with the block."""
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        directory = Path(name)
        with worker_process(directory) as process:
            broker = start_broker(directory)
            try:
                server = start_store(directory)
                try:
                    url = f"redis://{server.address}/0"
                    with RedisRowStore(StoreConfig(url, STORE_TIMEOUT_MS)) as store:
                        yield Cluster(broker, server, store, directory, process)
                finally:
                    server.child.kill()
            finally:
                broker.child.kill()


def bench_plan(rounds: int) -> Plan:
    """The demo's user activity with a ring more, once for each topic. Raises LocalError."""
    view = next(view for view in demo_plan().views if view.name == "user_activity")
    ring = next(ring for ring in view.accumulators if ring.hop_ms == HOUR_MS and not ring.column)
    like = next(each for each in view.fields if each.name == ring.field)
    more = replace(like, id=max(each.id for each in view.fields) + 1, name=RING)
    grown = replace(
        view,
        fields=(*view.fields, more),
        accumulators=(*view.accumulators, replace(ring, field=RING, action="*")),
    )
    topics = [f"{form}-{turn}" for turn in range(rounds) for form in FORMS]
    topics += [FRESH.format(turn) for turn in range(len(LOADS))]
    names = {topic: topic.replace("-", "_") for topic in topics}
    views = tuple(replace(grown, name=name, source=topic) for topic, name in names.items())
    return Plan(1, 0, views, ())


def _peer_topic(peer: Peer) -> str:
    return f"first-{peer.messages}"


def _view(plan: Plan, topic: str) -> ViewPlan:
    return next(view for view in plan.views if view.source == topic)


def _ours(running: Cluster, view: ViewPlan, form: str, actions: Actions) -> tuple[Rate, int]:
    """Fill the view's topic, fold it, compare: how many counts differ."""
    if form == "distinct":
        actions = distinct_users(actions)
    messages = singles(actions) if form == "single" else batched(actions)
    ends = asyncio.run(fill(running.broker.address, view.source, messages))
    rate = running.rate(view.source, ends, len(actions))
    return rate, unequal_counts(running.store, view, actions)


def _items(running: Cluster, view: ViewPlan, turn: int, actions: Actions) -> tuple[float, int]:
    """Actions a second into rows of items, and how many counts differ. Raises LocalError."""
    topic = TOPIC.format(turn)
    ensure_topics(running.broker.address, dict.fromkeys((topic, by_item_topic(topic)), PARTITIONS))
    ends = asyncio.run(fill(running.broker.address, topic, batched(actions)))
    return item_rate(running, topic, ends, len(actions)), unequal_counts(
        running.store, view, actions
    )


def _freshness(
    running: Cluster, plan: Plan, log: Actions, sizes: Sizes, per_s: float
) -> list[Freshness]:
    """At each of the loads, of so many probes and those of the time before any counts. The worker
    has a core to itself where there are two. Each load has a topic of its own: the embedded broker
    needs the more processor for a message the more its partition holds."""
    servers = running.broker, running.store_server
    cores, found = Cores.here(), []
    with (
        held_off(running.store_server),
        cores.others([server.child.pid for server in servers]),
    ):
        for turn, load in enumerate(sizes.loads):
            view, at_per_s = _view(plan, FRESH.format(turn)), load.share * per_s
            count = sizes.probes + math.ceil(WARM_S * at_per_s / MESSAGE_ACTIONS)
            files = running.directory / f"load-{turn}"
            files.mkdir()
            with (
                again_and_again(running.store_server, files, load.rewriting) as took_s,
                running.worker(view.source, core=cores.service, disks=load.disks),
            ):
                made = probes(view, log, count)  # while the worker joins its group
                measured = measure(
                    running.broker.address, view.source, running.store_url, made, at_per_s
                )
                fresh = replace(asyncio.run(measured), rewriting=load.rewriting, took_s=took_s)
                found.append(fresh)
    return found


def _keys(
    rates: dict[str, list[Rate]], others: dict[str, list[PeerRate]], loads: list[Freshness]
) -> dict[str, Any]:
    fresh = loads[0]

    def median(found: list[Any], name: str) -> float:
        return float(np.median([getattr(each, name) for each in found]))

    line: dict[str, Any] = {f"per_s_{form}": median(rates[form], "per_s") for form in FORMS}
    for name in ("feast_push", "feast_push_memory", "faust_table", "quix"):
        line[f"{name}_per_s"] = median(others[name], "per_s") if name in others else None
    kept = [name for name in others if name != "feast_push_memory"]
    best = max(kept, key=lambda name: median(others[name], "per_s"))
    enough = len(fresh.latency_ms) >= 2_000
    return line | {
        "best_peer": best,
        "ratio_best_peer": _ratio(rates["batched"], others[best]),
        "ratio_best_peer_single": _ratio(rates["single"], others[best]),
        "ratio_feast_push_memory": _ratio(rates["batched"], others["feast_push_memory"])
        if "feast_push_memory" in others
        else None,
        "fresh_p50_ms": fresh.percentiles_ms(50)[0],
        "fresh_p95_ms": fresh.percentiles_ms(95)[0],
        "fresh_p99_ms": fresh.percentiles_ms(99)[0] if enough else None,
        "fresh_actions_per_s": fresh.offered_per_s,
        "fresh_by_rate": {
            round(each.offered_per_s): dict(
                zip(("p50_ms", "p95_ms"), each.percentiles_ms(50, 95), strict=True)
            )
            for each in loads
            if each.rewriting == "never"
        },
        "fresh_rewriting_p99_ms": _p99_ms(loads, "store"),
        "fresh_replica_rewriting_p99_ms": _p99_ms(loads, "replica"),
        "rss_growth_mb": median(rates["batched"], "rss_growth_mb"),
        "worker_cpu_us": {
            form: float(np.median([rate.cpu_us["worker"] for rate in rates[form]]))
            for form in FORMS
        },
        "equal_counts": all(rate.equal for found in others.values() for rate in found),
    }


def _p99_ms(loads: list[Freshness], rewriting: Rewriting) -> float | None:
    found = [each for each in loads if each.rewriting == rewriting]
    return found[0].percentiles_ms(99)[0] if found else None


def _ratio(ours: list[Rate], theirs: list[PeerRate]) -> float:
    """Median over the rounds of ours ÷ theirs."""
    pairs = zip(ours, theirs, strict=True)
    return float(np.median([rate.per_s / other.per_s for rate, other in pairs]))


def _describe(
    report: Report,
    sizes: Sizes,
    rates: dict[str, list[Rate]],
    others: dict[str, list[PeerRate]],
    loads: list[Freshness],
) -> None:
    per_s = float(np.median([rate.per_s for rate in rates["batched"]]))
    rows: list[Any] = []
    for form, found in rates.items():
        cpu = [float(np.median([r.cpu_us[name] for r in found])) for name in found[0].cpu_us]
        rows.append((f"encore, {form}", float(np.median([r.per_s for r in found])), None, *cpu))
    for name, theirs in others.items():
        cpu_us = float(np.median([rate.cpu_us for rate in theirs]))
        equal = all(rate.equal for rate in theirs)
        title = f"{name}{'' if equal else ' (COUNTS DIFFER)'}"
        rate = float(np.median([rate.per_s for rate in theirs]))
        rows.append((title, rate, per_s / rate, cpu_us, None, None))
    head = ["", "actions/s", "batched ÷ it", "µs CPU", "store µs", "broker µs"]
    report.table(f"Actions into rows, one worker, {sizes.rounds} round(s)", head, rows)
    report.note("")
    if "quix" not in others:
        report.note("quixstreams could not be installed beside this run: its key is null.")
    for fresh in loads:
        p50, p95, p99 = fresh.percentiles_ms(50, 95, 99)
        spells = ", ".join(f"{took_s:.1f}" for took_s in fresh.took_s)
        beside = f" while the {fresh.rewriting} rewrites its file ({spells} s)" if spells else ""
        report.note(
            f"Freshness at {fresh.offered_per_s:,.0f} actions/s{beside}: p50 {p50:,.1f} ms, p95 "
            f"{p95:,.1f} ms, p99 {p99:,.1f} ms of {len(fresh.latency_ms):,} samples; the sender "
            f"was {fresh.late_ms:,.1f} ms late at p99."
        )
    report.note(
        "Freshness is from the intended send to the row that a read answers, sends are Poisson, "
        "the worker has a core to itself where there are two; unless told, nothing was rewritten. "
        "Where a replica rewrites, it alone keeps a file."
    )
    report.note(
        "These rates are 1/2 and more of the one over distinct users: under a steady load a "
        "micro-batch is small and merges little, as a backlog of a few users' actions does."
    )
    report.note(
        "Counts equal numpy's in every row of ours. A peer's CPU is its process's; feast_push "
        "reads its counts back before it adds, so that they outlive it as the others' do; "
        "feast_push_memory (not in --quick) keeps them in a dictionary that ends with it, and is "
        "no contender for the ratio."
    )
