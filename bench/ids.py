"""Raw values → int ids for 1,000 candidates of the demo's slots, the user's slots in front.

Ours: the value blocks of a request through the service's program, all values of a transform at
once. Beside it pipelines keyed by strings, which look at one value after the other: each value is
a token `slot=value` (numbers in the same buckets as ours, since nobody hashes raw play times),
which is hashed into a table or looked up in a dictionary. All end in one (N, S) int32 array, but
scikit-learn in the columns of a sparse matrix.

Equal ids: the dictionary that holds our ids must give our tensor back, value for value, which shows
that the tokens tell apart what our ids tell apart; and scikit-learn's columns must be those of
murmur3 over the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from aggregation.native.library import path_in_use
from aggregation.program import Assembled, ServiceProgram
from bench.peers.string_ids import StringRequest, StringSlots, feature_hasher, values_of
from bench.report import Options, Report
from bench.server import own_store
from bench.timing import Timings, memory_bandwidth, take_turns
from bench.workload import Request, Workload, load_workload
from store.redis_store import RedisRowStore

CANDIDATES: Final = 1_000
REQUESTS: Final = 16

Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Case:
    """One request: what ours reads, and the same values as the string pipelines get them."""

    assembled: Assembled
    strings: StringRequest


@dataclass(frozen=True, slots=True)
class Result:
    """Measurements. equal: contender -> whether its ids are as they must be."""

    timings: Timings
    slots: tuple[int, int]
    values_bytes: int
    equal: dict[str, bool]
    sklearn: str | None


def run(options: Options) -> Report:
    """The benchmark. Raises LocalError, StoreError, PlanError."""
    with (
        own_store() as (host, port),
        RedisRowStore(f"redis://{host}:{port}/0") as store,
    ):
        options.say("ids: real users and videos …")
        with load_workload(store, 100, 4_000) as loaded:
            workload = without_crosses(loaded)
            requests = workload.requests(REQUESTS, CANDIDATES, seed=1)
            cases = [case_of(workload, store, request) for request in requests]
            options.say("ids: measuring …")
            result = _measure(workload, cases, 48 if options.quick else 400)
    report = Report()
    _describe(report, result)
    report.line.update(_keys(result))
    for name, equal in result.equal.items():
        report.check(equal, f"{name}: its ids do not tell apart what ours do")
    return report


def without_crosses(workload: Workload) -> Workload:
    """The same with the slots that are one value's id each: what a string pipeline can compute."""
    program = workload.program
    service = replace(program.service, crosses=())
    plan = replace(program.plan, services=(service,))
    return replace(workload, program=ServiceProgram(plan, service.name))


def case_of(workload: Workload, store: RedisRowStore, request: Request) -> Case:
    """Reads a request's rows and takes the values out of them, for both sides."""
    program = workload.program
    found = program.assemble(store.read(program.keys(*request)), *request, workload.now_ms)
    service = program.service
    user = values_of(service.user_slots, found.user_values)
    items = values_of(service.item_slots, found.item_values)
    return Case(found, StringRequest(user[0], items))


def _measure(workload: Workload, cases: list[Case], turns: int) -> Result:
    program = workload.program
    slots = StringSlots(program.service)
    count = len(cases)

    def ours(case: Case) -> Ids:
        found = case.assembled
        return program.tensors(found.user_values, found.item_values).expand()

    dictionary: dict[str, int] = {}
    for case in cases:
        slots.learn(dictionary, case.strings, ours(case))
    ways: dict[str, Callable[[StringRequest], Any]] = {
        "xxhash": slots.xxhash_ids,
        "murmur": slots.murmur_ids,
        "split": slots.split_ids,
        "dictionary": lambda strings: slots.known_ids(dictionary, strings),
    }
    hasher = feature_hasher()
    if hasher is not None:
        ways["sklearn"] = lambda strings: hasher.ids(slots, strings)
    equal = {
        "dictionary": all(
            np.array_equal(slots.known_ids(dictionary, case.strings), ours(case)) for case in cases
        )
    }
    if hasher is not None:
        equal["sklearn"] = all(hasher.agrees(slots, case.strings) for case in cases[:2])

    def through(way: Callable[[StringRequest], Any]) -> Callable[[int], Any]:
        return lambda turn: way(cases[turn % count].strings)

    timings = take_turns(
        {
            "encore": lambda turn: ours(cases[turn % count]),
            **{name: through(way) for name, way in ways.items()},
        },
        turns,
        settle=True,
    )
    first = cases[0].assembled
    return Result(
        timings,
        (len(program.service.user_slots), len(program.service.item_slots)),
        first.user_values.nbytes + first.item_values.nbytes,
        equal,
        None if hasher is None else hasher.version,
    )


def fastest_string(timings: Timings) -> str:
    """Which hash function serves the string pipeline best: it stands for all of them."""
    return min(("xxhash", "murmur"), key=timings.median)


def _keys(result: Result) -> dict[str, Any]:
    timings, string = result.timings, fastest_string(result.timings)
    sklearn = result.sklearn is not None
    return {
        "us_encore": timings.median("encore") * 1e6,
        "us_string": timings.median(string) * 1e6,
        "us_string_split": timings.median("split") * 1e6,
        "us_dictionary": timings.median("dictionary") * 1e6,
        "us_sklearn": timings.median("sklearn") * 1e6 if sklearn else None,
        "ratio_string": timings.ratio(string, "encore"),
        "ratio_string_split": timings.ratio("split", "encore"),
        "ratio_dictionary": timings.ratio("dictionary", "encore"),
        "ratio_sklearn": timings.ratio("sklearn", "encore") if sklearn else None,
        "candidates": CANDIDATES,
        "user_slots": result.slots[0],
        "item_slots": result.slots[1],
        "equal_ids": all(result.equal.values()),
    }


def _describe(report: Report, result: Result) -> None:
    timings, (user, item) = result.timings, result.slots
    titles = {
        "encore": f"encore, {path_in_use()} kernels",
        "xxhash": "strings, xxh3-64 in C, a whole example a candidate",
        "murmur": "strings, murmur3 in C, a whole example a candidate",
        "split": "strings, murmur3 in C, the user's once a request",
        "dictionary": "dictionary of known strings, the user's once",
        "sklearn": f"scikit-learn {result.sklearn} FeatureHasher",
    }
    rows = [
        (
            titles[name],
            timings.median(name) * 1e6,
            None if name == "encore" else timings.ratio(name, "encore"),
            {True: "yes", False: "NO", None: None}[result.equal.get(name)],
        )
        for name in timings.seconds
    ]
    title = f"{CANDIDATES:,} candidates × ({user} user + {item} item slots) → int ids"
    report.table(title, ["pipeline", "µs", "÷ ours", "equal"], rows)
    report.note("")
    if result.sklearn is None:
        report.note("scikit-learn is not installed (the extra `bench`): its keys are null.")
    ids_bytes = 4 * CANDIDATES * (item + user)
    copy_us = (result.values_bytes + ids_bytes) / memory_bandwidth() * 1e6
    report.note(
        f"What bounds it: {result.values_bytes / 1e3:,.0f} kB of values in and "
        f"{ids_bytes / 1e3:,.0f} kB of ids out take {copy_us:,.0f} µs to move; the rest is hashing "
        "and boundaries at the core's rate; by numpy, a call's cost for each transform, too."
    )
    report.note(
        "Given to the strings for nothing: values as plain Python numbers, prefixes ready, buckets "
        "of numbers by bisect in C. `us_string` is the faster hash with a whole example a "
        "candidate, as such pipelines and scikit-learn take them; `us_string_split` hashes the "
        "user once, as ours does. Ours computes the user's sequences, too. Ratios are medians "
        "taken turn by turn; nothing here waits for a store."
    )
