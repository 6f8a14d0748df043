"""The item cache by its size: a cached request, bytes, its start, how soon a change is used.

Each size has a store of its own, with a row of the demo's `videos` and one of `video_activity` for
every item: the log's most seen items over and over, under ids of their own. (5 M items: 6 GB in the
store, whose append-only file is off meanwhile, and 7.5 GB in memory for the cache.) `encore cache`
loads it in a process of its own, is stopped, and starts again from its file.
Requests draw their candidates uniformly from all items: the worst case, since real ones meet the
processor's caches more often. Turn by turn each request is beside one of the smallest cache.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import redis
from numpy.typing import NDArray

from aggregation.cache.memory import CacheMemory
from aggregation.cache.reader import ItemCache, cache_path
from aggregation.cache.record import ItemCodec
from aggregation.program import ServiceProgram
from bench.cached import FOR_GOOD_MS, CachedRequests
from bench.report import Options, Report, Say
from bench.server import own_store
from bench.timing import Timings, take_turns
from bench.workload import SERVICE, Request, Workload, load_workload
from encore.children import Child, ChildSpec, spawn
from schemas.errors import LocalError
from schemas.layout import layout_of
from schemas.names import PLAN_KEY, PLAN_VERSION_KEY, row_keys
from schemas.plan import ViewPlan, dump_plan
from schemas.row import decode_rows, encode_rows
from schemas.stored import RowKeys
from store.base import Write
from store.redis_store import RedisRowStore
from store.wire import StoreConfig

CANDIDATES: Final = 1_000
SMALLEST: Final = 10_000
LARGEST: Final = 5_000_000
SIZES: Final = (SMALLEST, 100_000, 1_000_000, LARGEST)
QUICK_SIZES: Final = (SMALLEST, 50_000, 200_000)
_FILLED_AT_ONCE: Final = 10_000
_PATIENCE_S: Final = 3_600.0

Ids = NDArray[np.int64]


@dataclass(slots=True)
class Size:
    """What was measured with n items cached. Times in seconds."""

    items: int
    bytes_per_item: float = 0.0
    fill_s: float = 0.0
    load_s: float = 0.0
    changes_s: list[float] = field(default_factory=list)
    timings: Timings | None = None


@dataclass(frozen=True, slots=True)
class Cached:
    """A store full of items, their cache, and the process that keeps it."""

    program: ServiceProgram
    store: RedisRowStore
    url: str
    directory: Path
    items: Ids
    samples: dict[str, list[bytes]]

    @property
    def cache(self) -> ItemCache:
        """A reader of its own."""
        return ItemCache(self.directory / "cache", FOR_GOOD_MS)


def run(options: Options) -> Report:
    """The benchmark. Raises LocalError, StoreError, PlanError."""
    sizes = QUICK_SIZES if options.quick else SIZES
    turns = 200 if options.quick else 1_000
    with (
        own_store() as (host, port),
        RedisRowStore(f"redis://{host}:{port}/0") as users,
        load_workload(users, 100, 2_000) as workload,
        ExitStack() as stack,
    ):
        small, *found = [Size(n) for n in sizes]
        first = stack.enter_context(_filled(workload, users, small.items, options.say))
        stack.enter_context(_kept(first, small))
        beside = _requests(first, users, workload)
        _measure_changes(first, small)
        for size in (small, *found):
            with ExitStack() as own:
                if size is not small:
                    here = own.enter_context(_filled(workload, users, size.items, options.say))
                    own.enter_context(_kept(here, size))
                    _measure_changes(here, size)
                else:
                    here = first
                options.say(f"cache: {size.items:,} items: requests …")
                size.timings = _measure(_requests(here, users, workload), beside, turns)
                told = {name: float(f"{value:.4g}") for name, value in _facts(size).items()}
                options.say(f"  {told}")  # the largest takes minutes: whoever stops it has these
    report = Report()
    _describe(report, [small, *found])
    report.line.update(_keys([small, *found]))
    return report


# --- a store and a cache of one size ----------------------------------------------------------


@contextmanager
def _filled(workload: Workload, users: RedisRowStore, items: int, say: Say) -> Iterator[Cached]:
    say(f"cache: {items:,} items: filling a store …")
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    program = workload.program
    ids = np.arange(1, items + 1, dtype=np.int64) * 7_919
    samples = {
        view.name: [
            row
            for row in users.read(
                row_keys(view.name, view.generation, workload.items[:1_000].tolist())
            )
            if row is not None
        ]
        for view in program.item_views
    }
    with (
        own_store() as (host, port),
        tempfile.TemporaryDirectory(prefix="bench", dir=place) as directory,
        RedisRowStore(StoreConfig(f"redis://{host}:{port}/0", timeout_ms=60_000)) as store,
        redis.Redis(host, port) as plain,
    ):
        plain.config_set("appendonly", "no")
        began_s = time.perf_counter()
        for view in program.item_views:
            for start in range(0, len(ids), _FILLED_AT_ONCE):
                part = ids[start : start + _FILLED_AT_ONCE]
                rows = _copies(view, samples[view.name], part, 1)
                keys = row_keys(view.name, view.generation, part.tolist())
                plain.mset(dict(zip(keys, rows, strict=True)))
        held_bytes = int(cast(Any, plain.info("memory"))["used_memory"])
        say(f"  {time.perf_counter() - began_s:.0f} s, {held_bytes / 1e9:.2f} GB in the store")
        store.put_text(PLAN_KEY, dump_plan(program.plan))
        store.put_text(PLAN_VERSION_KEY, "1")
        url = f"redis://{host}:{port}/0"
        yield Cached(program, store, url, Path(directory), ids, samples)


def _copies(view: ViewPlan, rows: list[bytes], ids: Ids, offset: int) -> list[bytes]:
    """Those rows over and over, under these ids."""
    layout = layout_of(view)
    own = np.frombuffer(b"".join(rows), layout.record)["entity_id"]
    decoded, _ = decode_rows(layout, rows, own)
    whole = encode_rows(layout, decoded)
    repeated = np.frombuffer(b"".join(whole), layout.record)[np.arange(len(ids)) % len(rows)].copy()
    repeated["entity_id"], repeated["trailer"]["offset"] = ids, offset
    raw = repeated.view(np.uint8).reshape(len(ids), layout.size)
    fronts = [row[:-4].tobytes() for row in raw]
    return [front + zlib.crc32(front).to_bytes(4, "little") for front in fronts]


@contextmanager
def _kept(cached: Cached, size: Size) -> Iterator[Child]:
    """`encore cache` over it, after it was started once from nothing and once from its file."""
    began_s = time.perf_counter()
    child = _start(cached)
    size.fill_s = _until_live(cached, child) - began_s
    child.stop()
    began_s = time.perf_counter()
    child = _start(cached)
    size.load_s = _until_live(cached, child) - began_s
    codec = ItemCodec(cached.program)
    memory = CacheMemory.open(cache_path(cached.directory / "cache", codec), codec)
    assert memory is not None
    size.bytes_per_item = memory.bytes_per_item() + 8  # the writer's own: when it is due
    memory.close()
    try:
        yield child
    finally:
        child.stop()


def _start(cached: Cached) -> Child:
    environment = {
        **os.environ,
        "ENCORE_BOOTSTRAP": "127.0.0.1:1",  # it asks no broker
        "ENCORE_STORE_URL": cached.url,
        "ENCORE_SERVICE": SERVICE,
        "ENCORE_STORE_TIMEOUT_MS": "60000",
        "ENCORE_ITEM_CACHE_DIR": str(cached.directory / "cache"),
        "ENCORE_ITEM_CACHE_ITEMS": str(int(len(cached.items) * 1.1)),
        "ENCORE_LOG_LEVEL": "info",
    }
    command = [sys.executable, "-m", "encore", "cache"]
    log = cached.directory / "cache.log"
    return spawn(ChildSpec("cache", command, log, environment=environment))


def _until_live(cached: Cached, child: Child) -> float:
    """When the first request could be answered, on perf_counter."""
    cache, deadline_s = cached.cache, time.monotonic() + _PATIENCE_S
    while cache.look_up(cached.program, cached.items[:1], 0) is None:
        if not child.running or time.monotonic() > deadline_s:
            raise LocalError(
                "bench.cache",
                required="a cache that comes up",
                got=child.log_tail() or "nothing in its log",
            )
        time.sleep(0.01)
    cache.close()
    return time.perf_counter()


# --- measurements -----------------------------------------------------------------------------


def _requests(cached: Cached, users: RedisRowStore, workload: Workload) -> _Requests:
    now_ms = time.time_ns() // 1_000_000
    calls = CachedRequests(cached.program, users, cached.cache, now_ms)
    draw = np.random.default_rng(len(cached.items))
    chosen: list[Request] = [
        (user, draw.choice(cached.items, CANDIDATES, replace=False))
        for user, _ in workload.requests(64, 1, seed=1)
    ]
    # Candidates that come again are in the processor's caches: many more than requests.
    many = draw.integers(0, len(cached.items), (256, CANDIDATES))
    return _Requests(
        calls, [(chosen[at % 64][0], cached.items[row]) for at, row in enumerate(many)]
    )


@dataclass(frozen=True, slots=True)
class _Requests:
    calls: CachedRequests
    requests: list[Request]

    def __call__(self, turn: int) -> Any:
        return self.calls.assembled(self.requests[turn % len(self.requests)])

    def look_up(self, turn: int) -> Any:
        """The items' part alone."""
        request = self.requests[(turn + 100) % len(self.requests)]
        found = self.calls.cache.look_up(self.calls.program, request[1], self.calls.now_ms)
        assert found is not None
        return found.completed([])


def _measure(here: _Requests, beside: _Requests, turns: int) -> Timings:
    return take_turns(
        {
            "here": here,
            "beside": beside,
            "look_up": here.look_up,
            "look_up_beside": beside.look_up,
        },
        turns,
        warm=20,
    )


def _measure_changes(cached: Cached, size: Size, changes: int = 60) -> None:
    """From the store's answer to a write until a look-up gives the new row."""
    view, cache = cached.program.item_views[0], cached.cache
    now_ms = time.time_ns() // 1_000_000
    draw = np.random.default_rng(1)
    for offset in range(2, changes + 2):
        ids = draw.choice(cached.items, 1)
        keys = RowKeys(view.name, view.generation, ids).names()
        (old,) = cached.store.read(keys)
        assert old is not None
        (new,) = _copies(view, [old], ids, offset)
        cached.store.compare_and_set([Write(keys[0], old[-24:-12], new)])
        began_s = time.perf_counter()
        while True:
            found = cache.look_up(cached.program, ids, now_ms)
            if found is not None and not len(found.missing):
                fences = found.completed([]).block.fences
                if int(fences["offset"][0, 0]) == offset:
                    break
            time.sleep(0.0002)
        size.changes_s.append(time.perf_counter() - began_s)
        time.sleep(0.005)
    cache.close()


# --- what is said -----------------------------------------------------------------------------


def _facts(size: Size) -> dict[str, float]:
    timings = size.timings
    assert timings is not None
    return {
        "p50_us": timings.median("here") * 1e6,
        "p50_us_beside": timings.median("beside") * 1e6,
        "ratio": timings.ratio("here", "beside"),
        "look_up_us": timings.median("look_up") * 1e6,
        "look_up_us_beside": timings.median("look_up_beside") * 1e6,
        "bytes_per_item": size.bytes_per_item,
        "load_s": size.load_s,
        "fill_s": size.fill_s,
        "change_to_use_ms": float(np.median(size.changes_s)) * 1e3,
        "change_to_use_p90_ms": float(np.percentile(size.changes_s, 90)) * 1e3,
    }


def _keys(sizes: list[Size]) -> dict[str, Any]:
    facts = {size.items: _facts(size) for size in sizes}
    growth = facts[LARGEST]["ratio"] if LARGEST in facts else None
    return {
        "sizes": {str(items): each for items, each in facts.items()},
        "growth": growth,
        "growth_of": sizes[-1].items,
        "growth_measured": facts[sizes[-1].items]["ratio"],
    }


_SHOWN: Final = (
    "p50_us",
    "p50_us_beside",
    "ratio",
    "look_up_us",
    "bytes_per_item",
    "fill_s",
    "load_s",
    "change_to_use_ms",
    "change_to_use_p90_ms",
)


def _describe(report: Report, sizes: list[Size]) -> None:
    head = ["items", "request µs", "beside 10 k", "ratio", "look-up µs", "bytes an item"]
    head += ["from the store s", "from its file s", "change → use ms", "p90"]
    rows: list[tuple[str | float, ...]] = []
    for size in sizes:
        at = _facts(size)
        named = [at[name] for name in _SHOWN]
        rows.append((f"{size.items:,}", *named))
    report.table(f"{CANDIDATES:,} cached items of one user, by what is cached", head, rows)
    report.note("")
    report.note(
        "Request: the user's rows from a store, items from the cache, tensors. Candidates uniform "
        "over all items. Ratios are medians of ratios taken turn by turn. From its file: the "
        "process starts, and compares every row with the store by its checksum. Bytes: record, "
        "stored rows, its share of the index, and 8 of the writer's."
    )
