"""Every benchmark's own check finds what is wrong: exit code 1 stands for it."""

from __future__ import annotations

import asyncio
import math
from dataclasses import fields

import numpy as np
import pytest

from bench import backfill, chaos, faults, serve, stream, swaps
from bench.chaos_check import Verdict
from bench.faults import Outcome
from bench.open_loop import NO_REPLY, Answer, Measured
from bench.report import Report
from bench.serve import Climb, Step
from bench.stream import Found, bench_plan
from bench.stream_check import unequal_counts
from bench.stream_fresh import Freshness
from bench.stream_log import kuairand_actions
from bench.stream_peers import PeerRate
from bench.swaps import ENOUGH, Published, facts_of, kinds_of, ratio_of
from store.memory import AsyncMemoryRowStore


@pytest.mark.parametrize("what", ["unequal", "lost", "doubled", "unlogged"])
def test_chaos(what: str) -> None:
    right, wrong = Report(), Report()
    assert what in {field.name for field in fields(Verdict)}
    chaos.check(right, Verdict(actions=9, rows=9))
    verdict = Verdict(actions=9, rows=9)
    setattr(verdict, what, 1)
    chaos.check(wrong, verdict)
    assert (len(right.wrong), len(wrong.wrong)) == (0, 1)


def test_stream_rows_are_held_to_the_actions() -> None:
    log = kuairand_actions(6_000)
    view = bench_plan(1).views[0]
    store = AsyncMemoryRowStore()
    asyncio.run(backfill.stream(view, log, store))
    assert unequal_counts(store.store, view, log) == 0
    more = np.concatenate((log, log[-3:]))
    more["user"][-1] = 1 << 50  # one who has no row
    assert 2 * 1 + 1 <= unequal_counts(store.store, view, more) <= 2 * 2 + 1
    assert unequal_counts(store.store, view, log[:-3]) > 0


def test_stream() -> None:
    fresh = Freshness(np.array([1.0, 2.0]), 9_000, 0.1)
    late = Freshness(np.array([1.0, math.inf]), 9_000, 0.1)
    equal, other = PeerRate(1, 1, True), PeerRate(1, 1, False)
    for found, loads, count in (
        (Found({}, {"quix": [equal]}), [fresh], 0),
        (Found({}, {"quix": [equal, other]}), [fresh], 1),
        (Found({}, {"quix": [equal]}, unequal=2), [fresh], 1),
        (Found({}, {"quix": [equal]}), [fresh, late], 1),
    ):
        report = Report()
        stream.check(report, found, loads)
        assert len(report.wrong) == count
    assert late.percentiles_ms(50, 99) == [math.inf, math.inf]


def test_backfill() -> None:
    report = Report()
    backfill.check(report, {"right": (5, 0), "unequal": (5, 1), "nothing": (0, 0)})
    assert [each.split(":")[0] for each in report.wrong] == ["unequal", "nothing"]


def test_serve() -> None:
    whole = Step(100, 1, 1, None, 100, 0, 0, 0, 0, 1, 0, 0, 400)
    silent = Step(100, 1, 1, None, 100, 0, 0, 1, 1, 1, 0, 0, 400)
    for climb, count in (
        (Climb((whole,), ((whole, whole),)), 0),
        (Climb((whole, silent), ((whole, whole),)), 1),
        (Climb((whole,), ((whole, silent),)), 1),
    ):
        report = Report()
        serve.check(report, {("grpc", "rank"): climb})
        assert len(report.wrong) == count


def test_faults() -> None:
    held = Outcome("slow", 9, 1, 0, 0, 0, 0, 0, 0.5, 1.0, 2.0)
    late = Outcome("killed", 9, 1, 0, 0, 1, 0, 0, 0.5, 1.0, 2.0)
    report = Report()
    faults.check(report, [held, late])
    assert report.wrong == ["the store killed: not held"]


def test_swaps() -> None:
    for failed in (0, 1):
        report = Report(line={"failed": failed})
        swaps.check(report)
        assert len(report.wrong) == failed


def test_requests_count_to_a_swap_for_so_long() -> None:
    n = 1_000
    status = [200] * (n - 1) + [NO_REPLY]
    reply = b'{"parameters": {"degraded": ""}}'
    answers = [Answer(each, reply if each == 200 else b"") for each in status]
    intended_s = np.arange(n) / 100
    measured = Measured(intended_s, np.zeros(n), np.full(n, 0.002), answers)
    kinds = kinds_of(measured, [Published("generation", 102.0)], 100.0, 3.0)
    assert (kinds != "steady").nonzero()[0].tolist() == list(range(200, 500))
    steady, swap = facts_of(measured, kinds == "steady"), facts_of(measured, kinds != "steady")
    assert (steady["requests"], steady["failed"], swap["failed"]) == (700, 1, 0)
    assert (steady["p95_ms"], swap["p95_ms"], steady["p99_ms"]) == (2.0, None, None)
    assert ratio_of(swap, steady) is None
    assert ratio_of(steady, steady) == 1.0
    assert ENOUGH == {99: 2_000, 95: 400}
