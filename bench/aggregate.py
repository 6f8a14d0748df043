"""One user and N items → int-ID tensors: library call against library call, on one server.

Ours: keys, one MGET, decode, finalise windows at `now_ms`, ids, tensors. Feast:
`get_online_features`, `to_dict`, then the same vectorised ids and tensors as ours, so that both end
in equal arrays. Feast's regular way is one call of the service; split in a call for the user and
one for the items it does less, which is shown beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from aggregation.native.library import path_in_use
from aggregation.program import Assembled
from aggregation.tensors import Tensors
from bench.cached import CachedRequests, filled_cache
from bench.peers.feast_online import FeastOnline, Response
from bench.peers.raw_mget import RawMget
from bench.report import Options, Report
from bench.server import own_store
from bench.timing import Timings, take_turns
from bench.workload import Request, Workload, load_workload
from schemas.errors import LocalError
from schemas.stored import StoredRows
from store.redis_store import RedisRowStore
from store.reply import pack_mget

SIZES: Final = (1, 100, 500, 1_000)
HEADLINE: Final = 500
LARGEST: Final = SIZES[-1]
#: By size: so often Feast is asked each way.
TURNS: Final = {1: 75, 100: 60, 500: 105, 1_000: 25}
QUICK_TURNS: Final = {1: 15, 100: 12, 500: 15, 1_000: 5}
Answer = tuple[Response, Response]
Ask = Callable[[Request], Answer]


@dataclass(frozen=True, slots=True)
class Contenders:
    """Everybody, warm and connected."""

    workload: Workload
    store: RedisRowStore
    cached: CachedRequests
    feast: FeastOnline
    raw: RawMget

    def ours(self, request: Request) -> Assembled:
        """The store path: nothing cached."""
        program = self.workload.program
        raw = self.store.read_rows(program.row_keys(*request))
        return program.assemble(raw, *request, self.workload.now_ms)

    def tensors(self, answer: Answer) -> Tensors:
        """Feast's answer → tensors, by our own program."""
        return self.workload.program.tensors(*self.feast.blocks(answer))


@dataclass(frozen=True, slots=True)
class Size:
    """Measurements at one N. floor: ours beside the raw MGET; peers: ours beside Feast."""

    floor: Timings
    peers: Timings
    stages: Timings
    request_bytes: float
    equal: bool


def run(options: Options) -> Report:
    """The benchmark. Raises LocalError, StoreError, PlanError."""
    users, items = (100, 2_000) if options.quick else (500, 7_000)
    with (
        own_store() as (host, port),
        tempfile.TemporaryDirectory(prefix="bench") as directory,
        RedisRowStore(f"redis://{host}:{port}/0") as store,
    ):
        options.say("aggregate: filling the store …")
        with (
            load_workload(store, users, items) as workload,
            filled_cache(workload, store, Path(directory) / "cache") as cached,
        ):
            feast = FeastOnline(
                workload.program, (host, port), Path(directory), workload.users_file
            )
            raw = RawMget(host, port)
            contenders = Contenders(workload, store, cached, feast, raw)
            options.say("aggregate: filling Feast and precomputing its vectors …")
            _fill_feast(contenders)
            sizes = {}
            for size in SIZES:
                options.say(f"aggregate: {size:,} items …")
                sizes[size] = _measure(contenders, size, options.quick)
            raw.close()
            facts = store.facts()
    report = Report()
    _describe(report, sizes, facts.server)
    report.line.update(_keys(sizes))
    for count, measured in sizes.items():
        report.check(measured.equal, f"{count:,} items: values or tensors differ between the ways")
    return report


def _fill_feast(contenders: Contenders) -> None:
    """Feast gets the finalised values of all users and items that take part."""
    workload = contenders.workload
    for at, user_id in enumerate(workload.users):
        items = workload.items if at == 0 else workload.items[:0]
        found = contenders.ours((int(user_id), items))
        contenders.feast.load("user", np.array([user_id]), found.user_values)
        if at == 0:
            contenders.feast.load("item", workload.items, found.item_values)
    expected = len(workload.users) + len(workload.items)
    written = contenders.feast.precompute()
    if written != expected:
        raise LocalError(
            "bench.aggregate", required=f"{expected:,} vectors precomputed", got=f"{written:,}"
        )


def _measure(contenders: Contenders, size: int, quick: bool) -> Size:
    floor_turns = 400 if quick else 2_000
    feast_turns = (QUICK_TURNS if quick else TURNS)[size]
    requests = contenders.workload.requests(64, size, seed=size)
    program = contenders.workload.program
    packed = [contenders.raw.pack(program.keys(*request)) for request in requests]
    stored = [contenders.store.read_rows(program.row_keys(*request)) for request in requests]
    blocks = [contenders.ours(request) for request in requests]
    count = len(requests)
    raw, feast = contenders.raw, contenders.feast
    floor = take_turns(
        {
            "cached": lambda turn: contenders.cached.assembled(requests[turn % count]),
            "store": lambda turn: contenders.ours(requests[turn % count]),
            "raw": lambda turn: raw.send(packed[turn % count]),
        },
        floor_turns,
        warm=20,
    )

    def through(ask: Ask) -> Callable[[int], Any]:
        return lambda turn: contenders.tensors(ask(requests[turn % count]))

    peers = take_turns(
        {
            "cached": lambda turn: contenders.cached.assembled(requests[turn % count]),
            "store": lambda turn: contenders.ours(requests[turn % count]),
            "regular": through(feast.regular),
            "split": through(feast.split),
            "precomputed": through(feast.precomputed),
            "split_values": lambda turn: feast.split(requests[turn % count]),
        },
        feast_turns,
        settle=True,
    )
    stages = take_turns(
        {
            "keys": lambda turn: pack_mget(program.row_keys(*requests[turn % count])),
            "read": lambda turn: contenders.store.read_rows(
                program.row_keys(*requests[turn % count])
            ),
            "assemble": lambda turn: program.assemble(
                stored[turn % count], *requests[turn % count], contenders.workload.now_ms
            ),
            "tensors": lambda turn: program.tensors(
                blocks[turn % count].user_values, blocks[turn % count].item_values
            ),
            **_cached_stages(contenders, requests, stored),
        },
        floor_turns // 4,
    )
    sizes = [sum(len(row or b"") for row in rows) for rows in stored]
    equal = all(_equal(contenders, request) for request in requests[:4])
    return Size(floor, peers, stages, float(np.mean(sizes)), equal)


def _cached_stages(
    contenders: Contenders, requests: list[Request], stored: list[StoredRows]
) -> dict[str, Callable[[int], Any]]:
    """What a cached request is made of, one part at a time."""
    cached, program, count = contenders.cached, contenders.workload.program, len(requests)
    users = len(program.user_views)
    user_rows = [rows[:users] for rows in stored]
    sides = [
        (cached.user_side(rows, request), cached.item_side(request))
        for rows, request in zip(user_rows, requests, strict=True)
    ]
    return {
        "cached_items": lambda turn: cached.item_side(requests[turn % count]),
        "cached_read": lambda turn: contenders.store.read_rows(
            program.user_row_keys(requests[turn % count][0])
        ),
        "cached_user": lambda turn: cached.user_side(
            user_rows[turn % count], requests[turn % count]
        ),
        "cached_combine": lambda turn: cached.combined(*sides[turn % count]),
    }


def _equal(contenders: Contenders, request: Request) -> bool:
    """All ways give the same values, nulls included, and the same tensors."""
    ours, cached = contenders.ours(request), contenders.cached.assembled(request)
    if cached.item_values.tobytes() != ours.item_values.tobytes():
        return False
    if not np.array_equal(cached.tensors.expand(), ours.tensors.expand()):
        return False
    for ask in (contenders.feast.regular, contenders.feast.split, contenders.feast.precomputed):
        answer = ask(request)
        user, item = contenders.feast.blocks(answer)
        if user.tobytes() != ours.user_values.tobytes():
            return False
        if item.tobytes() != ours.item_values.tobytes():
            return False
        tensors = contenders.tensors(answer)
        if not np.array_equal(tensors.expand(), ours.tensors.expand()):
            return False
        for name, ids in ours.tensors.sequences.items():
            if not np.array_equal(tensors.sequences[name], ids):
                return False
    return True


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _keys(sizes: dict[int, Size]) -> dict[str, Any]:
    rows = {
        str(items): {
            "cached_p50_ms": _ms(size.floor.median("cached")),
            "cached_p95_ms": _ms(size.floor.percentile("cached", 95)),
            "cached_p99_ms": _ms(size.floor.percentile("cached", 99)),
            "store_p50_ms": _ms(size.floor.median("store")),
            "store_p95_ms": _ms(size.floor.percentile("store", 95)),
            "store_p99_ms": _ms(size.floor.percentile("store", 99)),
            "feast_p50_ms": _ms(size.peers.median("regular")),
            "feast_split_p50_ms": _ms(size.peers.median("split")),
            "feast_split_values_p50_ms": _ms(size.peers.median("split_values")),
            "feast_pre_p50_ms": _ms(size.peers.median("precomputed")),
            "raw_mget_p50_ms": _ms(size.floor.median("raw")),
            "raw_mget_p95_ms": _ms(size.floor.percentile("raw", 95)),
            "raw_mget_p99_ms": _ms(size.floor.percentile("raw", 99)),
            "request_bytes": size.request_bytes,
            "stages_us": dict(_stages(size)),
            "cached_stages_us": dict(_stages_of_cached(size)),
        }
        for items, size in sizes.items()
    }
    headline = sizes[HEADLINE]
    return {
        "rows": rows,
        "ratio_feast_cached": headline.peers.ratio("regular", "cached"),
        "ratio_feast_cached_cpu": headline.peers.cpu_ratio("regular", "cached"),
        "ratio_pre_cached_cpu": headline.peers.cpu_ratio("precomputed", "cached"),
        "ratio_raw_cached": sizes[LARGEST].floor.ratio("raw", "cached"),
        "ratio_feast_store": headline.peers.ratio("regular", "store"),
        "ratio_feast_store_cpu": headline.peers.cpu_ratio("regular", "store"),
        "ratio_feast_split_store": headline.peers.ratio("split", "store"),
        "ratio_pre_cached": headline.peers.ratio("precomputed", "cached"),
        "ratio_pre_store": headline.peers.ratio("precomputed", "store"),
        "kernels": path_in_use(),
        "equal_values": all(size.equal for size in sizes.values()),
    }


def _stages(size: Size) -> list[tuple[str, float]]:
    """A request's stages, one after the other, in µs."""
    at = {name: size.stages.median(name) * 1e6 for name in size.stages.seconds}
    return [
        ("keys", at["keys"]),
        ("read", at["read"] - at["keys"]),
        ("rows to values", at["assemble"] - at["tensors"]),
        ("values to ids", at["tensors"]),
    ]


def _stages_of_cached(size: Size) -> list[tuple[str, float]]:
    """The same of a cached request."""
    names = ("items", "read", "user", "combine")
    return [(name, size.stages.median(f"cached_{name}") * 1e6) for name in names]


def _describe(report: Report, sizes: dict[int, Size], server: str) -> None:
    rows = [
        (
            f"{items:,}",
            _ms(size.floor.median("store")),
            _ms(size.floor.percentile("store", 95)),
            _ms(size.floor.median("raw")),
            _ms(size.peers.median("regular")),
            _ms(size.peers.median("split")),
            _ms(size.peers.median("precomputed")),
            size.peers.ratio("regular", "store"),
            size.peers.ratio("split", "store"),
            size.peers.ratio("precomputed", "store"),
            "yes" if size.equal else "NO",
        )
        for items, size in sizes.items()
    ]
    head = ["items", "ours p50", "p95", "raw MGET p50", "Feast", "Feast split", "Feast precomp."]
    head += ["Feast ÷ ours", "split ÷ ours", "precomp. ÷ ours", "equal"]
    report.table(f"1 user + N items → tensors, ms, store path, {server}", head, rows)
    _describe_cached(report, sizes)
    report.note("")
    headline = sizes[HEADLINE]
    raw_us = headline.floor.median("raw") * 1e6
    report.note(
        f"What bounds {HEADLINE} items: {headline.request_bytes / 1e3:,.0f} kB of rows, which a "
        f"bare MGET moves in {raw_us:,.0f} µs ({headline.request_bytes / raw_us:,.0f} MB/s). Ours: "
        + ", ".join(f"{name} {us:,.0f} µs" for name, us in _stages(headline))
        + "."
    )
    cpu = headline.peers.cpu_ratio
    report.note(
        f"This process's own time at {HEADLINE} items, the store's and all waiting left out: Feast "
        f"÷ ours {cpu('regular', 'store'):,.0f}, split ÷ ours {cpu('split', 'store'):,.0f}, "
        f"precomputed ÷ ours {cpu('precomputed', 'store'):,.0f}; with items cached "
        f"{cpu('regular', 'cached'):,.0f}, {cpu('split', 'cached'):,.0f} and "
        f"{cpu('precomputed', 'cached'):,.0f}."
    )
    report.note(
        "Ratios are medians of ratios taken turn by turn, each timed call after an untimed one of "
        "the same contender. Split: a call for the user, one for the "
        "items. Precomputed: split, from `precompute_online` vectors. Values alone, without "
        f"tensors, take split Feast {headline.peers.median('split_values') * 1e3:,.1f} ms at "
        f"{HEADLINE} items."
    )
    report.note(
        f"Ours computes by {path_in_use()} kernels. "
        "Warm: connections, Feast's registry cache, interpreter. Not counted: loading, Feast's "
        "precomputing, the filling of the item cache."
    )


def _describe_cached(report: Report, sizes: dict[int, Size]) -> None:
    rows = [
        (
            f"{items:,}",
            _ms(size.floor.median("cached")),
            _ms(size.floor.percentile("cached", 95)),
            _ms(size.floor.percentile("cached", 99)),
            _ms(size.floor.median("raw")),
            _ms(size.floor.percentile("raw", 99)),
            size.floor.ratio("raw", "cached"),
            size.peers.ratio("regular", "cached"),
            size.peers.ratio("split", "cached"),
            size.peers.ratio("precomputed", "cached"),
        )
        for items, size in sizes.items()
    ]
    head = ["items", "cached p50", "p95", "p99", "raw MGET p50", "p99", "raw ÷ cached"]
    head += ["Feast ÷ cached", "split ÷ cached", "precomp. ÷ cached"]
    report.table("The same with all items in the item cache, the user's rows read", head, rows)
    report.note(
        f"A cached request of {LARGEST:,} items: "
        + ", ".join(f"{name} {us:,.0f} µs" for name, us in _stages_of_cached(sizes[LARGEST]))
        + "."
    )
