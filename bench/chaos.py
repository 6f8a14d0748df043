"""`python -m bench chaos [--quick] [--kills N] [--seed S]`: exactly once, whatever dies.

Two to four workers, by the seed, and two item workers fold a load into the demo's views; of both
kinds one more joins, up to four, or one leaves for good, down to two, again and again; and a
seeded deck of events strikes: a process killed (SIGKILL); one stopped for longer than its session
and then let go on; the store killed and its file cut to what was confirmed; the broker restarted
without its log (it keeps none); all clients cut off from it and let in again, its log as it was;
the re-keyed topic lost alone; every view filled anew from the archive and switched to, by a process
that may be killed, stopped and cut off as well. Afterwards every row must equal the oracle bit for
bit. N counts what strikes; who joins and leaves comes on top.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Final

from bench.chaos_check import Logged, Verdict, check_view, histories_of, unlogged
from bench.chaos_deck import deck, moves
from bench.chaos_events import LEFT, Chaos, Crew
from bench.chaos_nursery import Nursery
from bench.chaos_world import Load, World, patient, world
from bench.report import Options, Report
from store.redis_store import RedisRowStore

KILLS: Final = 200
QUICK_KILLS: Final = 12
ACTIONS_PER_S: Final = 1_000
ITEM_WORKERS: Final = 2


def run(options: Options) -> Report:
    """Raises StreamError where the processes do not come to rest."""
    kills = options.kills or (QUICK_KILLS if options.quick else KILLS)
    with tempfile.TemporaryDirectory(prefix="chaos") as directory, world(Path(directory)) as made:
        options.say(f"logs in {directory}")
        begun_s = time.monotonic()
        chaos, exits = strike(made, kills, options)
        struck_s = time.monotonic() - begun_s
        verdict = judge(made, made.logged)
        verdict.unlogged = unlogged(chaos.load.logged, made.logged)
    report, workers = Report(), workers_of(options.seed)
    report.table(
        f"{kills} kills of {workers} workers, {ITEM_WORKERS} item workers, who joined and what they"
        f" need,"
        f" in {struck_s:.0f} s, seed {options.seed}",
        ["event", "times"],
        [*sorted(chaos.done.items()), *sorted((f"ended: {k}", n) for k, n in exits.items())],
    )
    report.note(f"the store lost {made.cut_bytes:,} bytes, the broker {made.epoch - 1} logs")
    report.note(f"every view filled in a new generation and switched to {chaos.crew.filled} times")
    joined, left, drained = (chaos.done["join"], chaos.done["leave"], exits.get(f"{LEFT}exit 0", 0))
    report.note(
        f"{joined} processes joined, {left} were told to leave: {drained} of them drained in order"
    )
    gate = made.gate.counts
    report.note(
        f"cut off: {gate.connections} connections, {gate.halved} in the midst of a reply;"
        f" {chaos.load.unheard} sends unheard, {verdict.unlogged} confirmed actions not in the log"
    )
    report.note(
        f"{verdict.actions:,} actions, {verdict.rows:,} rows: {verdict.unequal} unequal,"
        f" {verdict.lost} actions lost, {verdict.doubled} doubled"
    )
    check(report, verdict)
    report.line = {
        "kills": kills,
        "seed": options.seed,
        "workers": workers,
        "joined": joined,
        "left": left,
        "left_drained": drained,
        "actions": verdict.actions,
        "rows": verdict.rows,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "unequal_rows": verdict.unequal,
        "unlogged": verdict.unlogged,
        "filled": chaos.crew.filled,
        "connections_cut": gate.connections,
        "seconds": struck_s,
    }
    return report


def check(report: Report, verdict: Verdict) -> None:
    """What must hold: every row as the oracle has it, each action in it once."""
    report.check(not verdict.unequal, f"{verdict.unequal} rows differ from the oracle's")
    report.check(not verdict.lost, f"{verdict.lost} actions are lost")
    report.check(not verdict.doubled, f"{verdict.doubled} actions count twice")
    report.check(not verdict.unlogged, f"{verdict.unlogged} confirmed actions are in no log")


def workers_of(seed: int) -> int:
    """How many fold users: 2, 3 or 4."""
    return 2 + seed % 3


def crew_of(seed: int) -> dict[str, str]:
    """Name → kind of the processes."""
    crew = {f"worker-{number}": "worker" for number in range(1, workers_of(seed) + 1)}
    return crew | {f"items-{number}": "items" for number in range(1, ITEM_WORKERS + 1)}


def strike(made: World, kills: int, options: Options) -> tuple[Chaos, dict[str, int]]:
    """Run the deck; returns what was done and how processes ended, the drained ones among them."""
    dice = random.Random(options.seed)
    config = made.config
    with Nursery(config) as nursery:
        kinds = crew_of(options.seed)
        moving = random.Random(f"moves of {options.seed}")
        places = moves(kills, Counter(kinds.values()), moving)
        crew = Crew(nursery, kinds)
        crew.start()
        load = Load(config, options.seed, ACTIONS_PER_S)
        load.start()
        chaos = Chaos(made, crew, dice, moving, load, ACTIONS_PER_S, options.say)
        try:
            chaos.run(deck(kills, dice), places)
        finally:
            chaos.load.leave()
        drained = crew.drain()
        return chaos, {**crew.ended, **{f"drained, {k}": n for k, n in drained.items()}}


def judge(made: World, logged: list[Logged]) -> Verdict:
    """Every row of every view against the oracle."""
    verdict = Verdict(actions=sum(len(actions) for actions, _ in logged))
    views, histories = made.views, histories_of(logged)
    with RedisRowStore(patient(made.store_url)) as store:
        for view in views:
            check_view(store, view, histories, verdict)
    return verdict
